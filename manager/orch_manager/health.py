"""The standard health service (grpc.health.v1), as load balancers and probes ask for it.

A manager that serves is SERVING; the service "orch.v1.Control" is SERVING only while a leader is known, so that writes
and linearizable reads may be sent here.
"""

from __future__ import annotations

from typing import Final

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]  # the stubs leave it out

from orch_manager.forwarding.leader import Leader

CONTROL: Final = "orch.v1.Control"
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """See the module.

    Args:
        leader: knows whether there is one.
    """

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._servicer = health_aio.HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answers on a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def follow(self) -> None:
        """Tells how it is, until cancelled."""
        await self._servicer.set("", _SERVING)
        while True:
            known = self._leader.where() is not None
            await self._servicer.set(CONTROL, _SERVING if known else _NOT_SERVING)
            await self._leader.changes(known=known)

    async def stop(self) -> None:
        """Whoever asks from now on, or watches, is told to go elsewhere."""
        await self._servicer.enter_graceful_shutdown()
