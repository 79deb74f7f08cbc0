"""Keeps each service as specified: as many tasks as wanted, of the newest version, replaced when they end.

`slots` decides on one replicated service, `orch_proto.restart` whether and when a task is replaced, `updating` which
slots change next; all pure. `loop` feeds them. Global services and jobs get a module each beside `slots`.
"""
