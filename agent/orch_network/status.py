"""What the network process says about itself."""

# pathlib is not loaded in this small process
# ruff: noqa: PTH208

from __future__ import annotations

import os
from dataclasses import asdict

from orch_network import limits
from orch_network.engine import Engine


def status(engine: Engine) -> dict[str, object]:
    """Wanted against kernel, networks by id, warnings as sentences. Reads the kernel, changes nothing."""
    networks = {
        network_id: {
            "name": router.network.name,
            "subnet": router.network.subnet,
            "tasks": len(router.tasks),
            "services": len(router.services),
            "ports": len(router.ports),
            "present": engine.namespaces.is_namespace(router.path),
        }
        for network_id, router in engine.routers.items()
    }
    mounted = sum(engine.namespaces.is_namespace(engine.places.task(task_id)) for task_id in engine.tasks)
    return {
        "wanted": {
            "networks": len(engine.routers),
            "tasks": len(engine.tasks),
            "services": sum(len(router.services) for router in engine.routers.values()),
            "ports": len(engine.ports),
        },
        "kernel": {
            "networks": sum(each["present"] is True for each in networks.values()),
            "tasks": mounted,
            "namespaces": len(os.listdir(engine.places.namespaces)),
        },
        "networks": networks,
        "tasks": sorted(engine.tasks),
        "warnings": _warnings(engine),
        "counters": stats(engine),
    }


def _warnings(engine: Engine) -> list[str]:
    warnings = engine.node.forward_warnings()
    for router in engine.routers.values():
        warnings += [
            f"VIP {vip} of network {router.network.name} has more than {limits.SLOTS} endpoints: only {limits.SLOTS} "
            f"of them serve it on this node (tasks.NAME in the DNS has all)"
            for vip in router.overfull()
        ]
    return warnings


def stats(engine: Engine) -> dict[str, object]:
    """Counters since the start, and a few sizes."""
    values: dict[str, object] = asdict(engine.counters)
    values["dns_tcp_connections"] = engine.resolver.tcp_connections
    return values
