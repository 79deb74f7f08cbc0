"""What holds for the whole cluster, and how it is changed while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orch_proto import control_pb2 as control
from orch_proto.objects_pb2 import Cluster
from orch_proto.specs_pb2 import ClusterSpec
from orch_proto.types_pb2 import ObjectKind
from orch_rpc.errors import InvalidArgument, rpc_errors
from unit.managers.manager_cluster import ManagerNode, managers, told

pytestmark = pytest.mark.timeout(60)


async def update(node: ManagerNode, spec: ClusterSpec) -> Cluster:
    """Gives the cluster another specification."""
    found = (await node.info()).cluster
    request = control.UpdateRequest(kind=ObjectKind.OBJECT_KIND_CLUSTER, id=found.id, spec=control.Spec(cluster=spec))
    async with node.control() as stub:
        with rpc_errors("update the cluster"):
            return (await stub.Update(request, timeout=10)).object.cluster


def test_settings_of_the_cluster_change_while_it_runs_and_bad_ones_do_not(tmp_path: Path) -> None:
    """Lifetimes, heartbeat and history change within their limits; the rest of the specification does not this way."""

    async def story() -> None:
        async with managers(tmp_path, 1) as cluster:
            node = cluster.nodes[0]
            spec = (await node.info()).cluster.spec
            spec.ca.node_certificate_lifetime_ms = 7_200_000
            spec.dispatcher.heartbeat_period_ms = 2_000
            spec.orchestration.task_history_limit = 0
            assert (await update(node, spec)).spec == spec
            assert (await node.info()).cluster.spec == spec

            wrong = ClusterSpec()
            wrong.CopyFrom(spec)
            wrong.ca.node_certificate_lifetime_ms = 60_000
            wrong.dispatcher.heartbeat_period_ms = 1
            with told(InvalidArgument, "lives an hour at least", "heartbeat period is 0.5 s at least"):
                await update(node, wrong)
            wrong.CopyFrom(spec)
            wrong.autolock = True
            with told(InvalidArgument, "only the certificates' lifetime", "orch cluster lock"):
                await update(node, wrong)
            assert (await node.info()).cluster.spec == spec

    asyncio.run(story())
