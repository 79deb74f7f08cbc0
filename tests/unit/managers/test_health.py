"""What a load balancer is told by the standard health service of a manager."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orch_manager.health import CONTROL
from orch_rpc.channels import unix_channel
from unit.managers.manager_cluster import ManagerNode, managers, until

pytestmark = pytest.mark.timeout(90)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def asked(node: ManagerNode, service: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
    """What a manager says of a service."""
    async with unix_channel(node.socket) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return answer.status


def test_a_manager_without_a_leader_says_so(tmp_path: Path) -> None:
    """Each manager serves; when the majority is lost, the one that is left serves, but not the control API."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            for node in cluster.nodes:
                assert await asked(node, "") == SERVING
                await until(lambda node=node: _serves(node), "it knows the leader")  # type: ignore[misc]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked(cluster.nodes[0], "nothing")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            left, *lost = cluster.nodes
            for node in lost:
                await node.stop(signal.SIGKILL)

            async def refuses() -> bool:
                return await asked(left, CONTROL) == NOT_SERVING

            await until(refuses, "it notices that nobody leads")
            assert await asked(left, "") == SERVING
            await lost[0].start()
            await until(lambda: _serves(left), "there is a leader again")

    asyncio.run(story())


async def _serves(node: ManagerNode) -> bool:
    return await asked(node, CONTROL) == SERVING
