"""``orch cluster update``: what holds for the whole cluster."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from orch_cli.errors import EXIT_OK, UsageError
from orch_cli.verbs import Verb


def _duration_ms(text: str) -> int:
    from orch_cli.compose.units import parse_duration_ms

    try:
        return parse_duration_ms(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _configure_update(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cert-expiry", type=_duration_ms, default=None, metavar="DURATION", help="life of nodes' certificates (90d)"
    )
    parser.add_argument(
        "--dispatcher-heartbeat",
        type=_duration_ms,
        default=None,
        metavar="DURATION",
        help="time between heartbeats of nodes (5s); a node is down after three",
    )
    parser.add_argument(
        "--task-history-limit", type=int, default=None, metavar="COUNT", help="old tasks kept per slot (5)"
    )


async def _run_update(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S
    from orch_cli.connection import calling, control
    from orch_proto.control_pb2 import ClusterInfoRequest, Spec, UpdateRequest
    from orch_proto.types_pb2 import OBJECT_KIND_CLUSTER

    wanted = (arguments.cert_expiry, arguments.dispatcher_heartbeat, arguments.task_history_limit)
    if all(value is None for value in wanted):
        raise UsageError("cannot update the cluster", "nothing to change was named", "see orch cluster update --help")
    async with control(arguments.host) as stub:
        with calling("ask for the state of the cluster"):
            info = await stub.ClusterInfo(ClusterInfoRequest(), timeout=CALL_TIMEOUT_S)
        spec = info.cluster.spec
        if arguments.cert_expiry is not None:
            spec.ca.node_certificate_lifetime_ms = arguments.cert_expiry
        if arguments.dispatcher_heartbeat is not None:
            spec.dispatcher.heartbeat_period_ms = arguments.dispatcher_heartbeat
        if arguments.task_history_limit is not None:
            spec.orchestration.task_history_limit = arguments.task_history_limit
        request = UpdateRequest(
            kind=OBJECT_KIND_CLUSTER,
            id=info.cluster.id,
            version_index=info.cluster.meta.version_index,
            spec=Spec(cluster=spec),
        )
        with calling("update the cluster"):
            await stub.Update(request, timeout=CALL_TIMEOUT_S)
    print("Cluster updated.")
    return EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {"update": Verb(_configure_update, _run_update)}
