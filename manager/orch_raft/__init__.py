"""Consensus: a replicated log with snapshots behind a small engine interface.

`engine` is the interface, `single` the engine of a cluster of one, `storage` founds a cluster in a folder,
`log` is what stands on disk, `errors` what can go wrong.
"""
