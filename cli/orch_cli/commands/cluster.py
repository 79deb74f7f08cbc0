"""``orch cluster``: making, showing and leaving a cluster."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orch_cli.errors import EXIT_OK
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_proto.control_pb2 import ClusterInfoResponse, RaftMemberStatus


def _configure_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--advertise-addr", default="", metavar="ADDRESS", help="the address that other nodes reach this one at"
    )
    parser.add_argument("--listen-addr", default="", metavar="ADDRESS", help="where the manager listens")
    parser.add_argument("--data-path-addr", default="", metavar="ADDRESS", help="the address for traffic between tasks")
    parser.add_argument(
        "--availability", choices=("active", "pause", "drain"), default="active", help="whether the node takes tasks"
    )
    parser.add_argument(
        "--default-addr-pool", action="append", default=[], metavar="NETWORK", help="networks are cut from it"
    )
    parser.add_argument(
        "--default-addr-pool-mask-length", type=int, default=0, metavar="BITS", help="how large the cuts are"
    )
    parser.add_argument("--task-history-limit", type=int, default=None, metavar="COUNT", help="old tasks kept per slot")


async def _run_init(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S
    from orch_cli.connection import calling, daemon
    from orch_proto.daemon_pb2 import InitClusterRequest
    from orch_proto.specs_pb2 import ClusterSpec, NetworkDefaults, NodeAvailability, OrchestrationConfig

    pools = [pool for text in arguments.default_addr_pool for pool in text.split(",")]
    spec = ClusterSpec(
        network=NetworkDefaults(address_pools=pools, subnet_prefix_length=arguments.default_addr_pool_mask_length)
        if pools or arguments.default_addr_pool_mask_length
        else None,
        orchestration=OrchestrationConfig(task_history_limit=arguments.task_history_limit)
        if arguments.task_history_limit is not None
        else None,
    )
    request = InitClusterRequest(
        advertise_address=arguments.advertise_addr,
        listen_address=arguments.listen_addr,
        data_path_address=arguments.data_path_addr,
        availability=NodeAvailability.Value(f"NODE_AVAILABILITY_{arguments.availability.upper()}"),
        spec=spec,
    )
    async with daemon(arguments.host) as stub:
        with calling("make a cluster"):
            answer = await stub.InitCluster(request, timeout=CALL_TIMEOUT_S + 20)
    print(f"Cluster {answer.cluster_id} is made; this node ({answer.node_id}) is its manager.")
    if answer.worker_join_command:
        print(f"\nTo add a worker, run there:\n\n    {answer.worker_join_command}\n")
    return EXIT_OK


def _configure_leave(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--force", action="store_true", help="leave even as a manager: with the last one the cluster is lost"
    )


async def _run_leave(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import note
    from orch_cli.connection import calling, daemon
    from orch_proto.daemon_pb2 import LeaveClusterRequest

    async with daemon(arguments.host) as stub:
        with calling("leave the cluster"):
            answer = await stub.LeaveCluster(LeaveClusterRequest(force=arguments.force), timeout=120)
    for text in answer.notes:
        note(text)
    print("Node left the cluster.")
    return EXIT_OK


def _configure_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text or json")


async def _run_info(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S, note
    from orch_cli.connection import calling, control
    from orch_cli.output.objects import to_json
    from orch_proto.control_pb2 import ClusterInfoRequest

    async with control(arguments.host) as stub:
        with calling("ask for the state of the cluster"):
            info = await stub.ClusterInfo(ClusterInfoRequest(), timeout=CALL_TIMEOUT_S)
    if arguments.format == "json":
        print(json.dumps(to_json(info), indent=4, ensure_ascii=False))
        return EXIT_OK
    lines = [
        ("Cluster", info.cluster.id),
        ("Version", info.version),
        ("This manager", info.node_id),
        ("Leader", _leader(info)),
        ("Raft", f"term {info.raft_term}, index {info.raft_index}"),
        ("Managers", _managers(info)),
        ("Locked", "yes" if info.cluster.spec.autolock else "no"),
        ("Nodes", _counts(info.nodes_by_state)),
        ("Stacks", str(info.stacks)),
        ("Services", str(info.services)),
        ("Tasks", _counts(info.tasks_by_state)),
    ]
    print("\n".join(f"{label + ':':<14} {value}" for label, value in lines))
    if len(info.members) > 1:
        print()
        for member in sorted(info.members, key=lambda each: (each.hostname, each.node_id)):
            print(f"  {member.hostname or member.node_id:<20} {member.address:<22} {_standing(member)}")
    for text in info.warnings:
        note(f"warning: {text}")
    return EXIT_OK


def _leader(info: ClusterInfoResponse) -> str:
    for member in info.members:
        if member.leader:
            return f"{member.hostname} ({member.node_id})" if member.hostname else member.node_id
    return f"none for {info.no_leader_for_ms / 1000:.0f} s"


def _managers(info: ClusterInfoResponse) -> str:
    """``3, 1 may be lost``."""
    voters = [member for member in info.members if not member.learner]
    learners = len(info.members) - len(voters)
    text = str(max(len(voters), 1))
    if learners:
        text += f" and {learners} catching up"
    away = sum(1 for member in voters if not member.reachable)
    if away and info.leader_node_id:
        text += f" ({away} cannot be reached)"
    if away:
        return f"{text}, {info.tolerates or 'no'} more may be lost"
    return f"{text}, {info.tolerates or 'none'} may be lost"


def _standing(member: RaftMemberStatus) -> str:
    if member.leader:
        return "Leader"
    reach = "Reachable" if member.reachable else "Unreachable"
    return f"{reach}, catching up" if member.learner else reach


def _counts(counts: Mapping[str, int]) -> str:
    """``2 ready, 1 down``."""
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()) if count) or "none"


async def print_node_info(host: str, *, as_json: bool) -> int:
    """What the daemon of this node says of itself (``orch node info``)."""
    from orch_cli.commands.common import CALL_TIMEOUT_S
    from orch_cli.connection import calling, daemon
    from orch_cli.output.objects import to_json
    from orch_proto.daemon_pb2 import MembershipState, NodeInfoRequest
    from orch_proto.specs_pb2 import NodeRole

    async with daemon(host) as stub:
        with calling("ask this node's daemon"):
            info = await stub.NodeInfo(NodeInfoRequest(), timeout=CALL_TIMEOUT_S)
    if as_json:
        print(json.dumps(to_json(info), indent=4, ensure_ascii=False))
        return EXIT_OK
    lines = [
        ("State", MembershipState.Name(info.state).removeprefix("MEMBERSHIP_STATE_").lower()),
        ("Node", info.node_id),
        ("Cluster", info.cluster_id),
        ("Role", NodeRole.Name(info.role).removeprefix("NODE_ROLE_").lower()),
        ("Host", info.hostname),
        ("Version", info.version),
        ("Manager", "running" if info.manager_running else "not running"),
        ("Session", "connected" if info.session_connected else "not connected"),
        ("Error", info.error),
    ]
    print("\n".join(f"{label + ':':<10} {value}" for label, value in lines if value))
    return EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {
    "init": Verb(_configure_init, _run_init),
    "info": Verb(_configure_info, _run_info),
    "leave": Verb(_configure_leave, _run_leave),
}
