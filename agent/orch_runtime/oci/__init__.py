"""The OCI command line: containers made from bundles for other engines, without a daemon.

It shares with the supervisor what touches the kernel (`kernel`, `child`, `cgroups`) and what reads configs (`config`).
"""
