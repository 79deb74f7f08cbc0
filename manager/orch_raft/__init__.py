"""Consensus: a replicated log with snapshots behind a small engine interface.

`engine` is the interface, `driver` the engine, `core` what decides, `transport` what carries messages, `storage` a
state folder, `log` is what stands on disk, `errors` what can go wrong.
"""
