"""``orch node``: the machines of the cluster."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orch_cli.errors import EXIT_OK, UsageError
from orch_cli.output.listing import Listing, add_list_options, natural_key, print_listing
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.objects_pb2 import Node
    from orch_proto.specs_pb2 import NodeAvailability

NODES: Final = Listing(
    columns=(
        ("ID", "ID"),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
    ),
    quiet="PlainID",
    extra=(
        ("Self", "SELF"),
        ("TLSStatus", "TLS STATUS"),
        ("PlainID", "ID"),
        ("Address", "ADDRESS"),
        ("CPUs", "CPUS"),
        ("Memory", "MEMORY"),
    ),
)
NODE_FILTERS: Final = ("id", "name", "label", "membership", "role")


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    add_list_options(parser, filters=True)


async def _run_ls(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S, fetch, parse_filters
    from orch_cli.connection import calling, control
    from orch_proto.control_pb2 import ClusterInfoRequest
    from orch_proto.objects_pb2 import Node
    from orch_proto.types_pb2 import OBJECT_KIND_NODE

    filters = parse_filters(arguments.filter, NODE_FILTERS)
    async with control(arguments.host) as stub:
        nodes = await fetch(stub, OBJECT_KIND_NODE, filters)
        with calling("ask for the state of the cluster"):
            info = await stub.ClusterInfo(ClusterInfoRequest(), timeout=CALL_TIMEOUT_S)
    rows = [node_row(node, info.node_id) for node in nodes if isinstance(node, Node)]
    print_listing(NODES, sorted(rows, key=lambda row: natural_key(row["Hostname"])), arguments)
    return EXIT_OK


def node_row(node: Node, own_id: str) -> dict[str, str]:
    """One row; the node that was asked has a star behind its id."""
    from orch_cli.output.units import format_memory
    from orch_proto.objects_pb2 import NodeState, Reachability
    from orch_proto.specs_pb2 import NODE_ROLE_MANAGER, NodeAvailability

    manager = ""
    if node.role == NODE_ROLE_MANAGER or node.HasField("manager"):
        reach = Reachability.Name(node.manager.reachability).removeprefix("REACHABILITY_").capitalize()
        manager = "Leader" if node.manager.leader else reach
    availability = NodeAvailability.Name(node.spec.availability).removeprefix("NODE_AVAILABILITY_").capitalize()
    return {
        "ID": f"{node.id} *" if node.id == own_id else node.id,
        "PlainID": node.id,
        "Self": "true" if node.id == own_id else "false",
        "Hostname": node.description.hostname,
        "Status": NodeState.Name(node.status.state).removeprefix("NODE_STATE_").capitalize(),
        "Availability": "Active" if availability == "Unspecified" else availability,
        "ManagerStatus": manager,
        "EngineVersion": node.description.engine.version,
        "TLSStatus": "Ready" if node.certificate.certificate_pem else "",
        "Address": node.status.address,
        "CPUs": f"{node.description.resources.nano_cpus / 1e9:g}",
        "Memory": format_memory(node.description.resources.memory_bytes),
    }


def _configure_ps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="NODE", nargs="*", help="default: this node")
    parser.add_argument("--no-resolve", action="store_true", help="show the ids of nodes, not their names")
    add_list_options(parser, no_trunc=True, filters=True)


async def _run_ps(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import fetch, for_each, nodes_by_id, parse_filters
    from orch_cli.connection import control
    from orch_cli.output.tasks import TASK_FILTERS, TASKS, task_rows
    from orch_proto.objects_pb2 import Task
    from orch_proto.types_pb2 import OBJECT_KIND_TASK

    filters = parse_filters(arguments.filter, TASK_FILTERS)
    identifiers: set[str] = set()
    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            identifiers.add((await find_node(stub, reference)).id)

        status = await for_each(arguments.references or ["self"], one)
        tasks = [task for task in await fetch(stub, OBJECT_KIND_TASK, filters) if isinstance(task, Task)]
        nodes = await nodes_by_id(stub)
    own = [task for task in tasks if task.node_id in identifiers]
    print_listing(
        TASKS, task_rows(own, nodes, no_trunc=arguments.no_trunc, resolve=not arguments.no_resolve), arguments
    )
    return status


async def find_node(stub: ControlAsyncStub, reference: str) -> Node:
    """A node by reference; ``self`` is the one that was asked."""
    from orch_cli.commands.common import CALL_TIMEOUT_S, get
    from orch_cli.connection import calling
    from orch_proto.control_pb2 import ClusterInfoRequest
    from orch_proto.objects_pb2 import Node
    from orch_proto.types_pb2 import OBJECT_KIND_NODE

    if reference == "self":
        with calling("ask for this node's id"):
            reference = (await stub.ClusterInfo(ClusterInfoRequest(), timeout=CALL_TIMEOUT_S)).node_id
    node = await get(stub, OBJECT_KIND_NODE, reference)
    assert isinstance(node, Node)
    return node


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="NODE", nargs="+", help="self, name, id or beginning of an id")
    parser.add_argument("--pretty", action="store_true", help="indented text instead of JSON")


async def _run_inspect(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import for_each
    from orch_cli.connection import control
    from orch_cli.output.objects import print_inspected

    found: list[Node] = []
    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            found.append(await find_node(stub, reference))

        status = await for_each(arguments.references, one)
    print_inspected(found, pretty=arguments.pretty)
    return status


# ---- changes -----------------------------------------------------------------------------------------

_AVAILABILITY: Final = ("active", "pause", "drain")


def _configure_update(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="NODE")
    parser.add_argument(
        "--availability", choices=_AVAILABILITY, help="active, pause (nothing new) or drain (tasks move away)"
    )
    parser.add_argument("--label-add", action="append", default=[], metavar="NAME=VALUE", help="set a label")
    parser.add_argument("--label-rm", action="append", default=[], metavar="NAME", help="remove a label")


async def _run_update(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import parse_pairs
    from orch_cli.connection import control

    labels = parse_pairs(arguments.label_add, "label")
    if not (arguments.availability or labels or arguments.label_rm):
        raise UsageError("nothing to change", "no flag is given", "see `orch node update --help`")
    async with control(arguments.host) as stub:
        await _change(stub, arguments.reference, _availability(arguments.availability), labels, arguments.label_rm)
    print(arguments.reference)
    return EXIT_OK


def _availability(word: str | None) -> NodeAvailability.ValueType | None:
    from orch_proto.specs_pb2 import NodeAvailability

    return None if word is None else NodeAvailability.Value(f"NODE_AVAILABILITY_{word.upper()}")


async def _change(
    stub: ControlAsyncStub,
    reference: str,
    availability: NodeAvailability.ValueType | None,
    add: Mapping[str, str],
    remove: list[str],
) -> None:
    """Reads the node, changes its specification, and writes it with the version that was read."""
    from orch_cli.commands.common import CALL_TIMEOUT_S
    from orch_cli.connection import calling
    from orch_proto.control_pb2 import Spec, UpdateRequest
    from orch_proto.types_pb2 import OBJECT_KIND_NODE
    from orch_rpc.errors import OutOfDate

    for attempt in range(3):
        node = await find_node(stub, reference)
        spec = node.spec
        if availability is not None:
            spec.availability = availability
        spec.annotations.labels.update(add)
        for name in remove:
            if name not in spec.annotations.labels:
                raise UsageError(
                    f"cannot remove the label {name!r}",
                    "the node does not have it",
                    "`orch node inspect` shows its labels",
                )
            del spec.annotations.labels[name]
        request = UpdateRequest(
            kind=OBJECT_KIND_NODE, id=node.id, version_index=node.meta.version_index, spec=Spec(node=spec)
        )
        try:
            with calling(f"update the node {reference}"):
                await stub.Update(request, timeout=CALL_TIMEOUT_S)
        except OutOfDate:
            # Its status changes by itself all the time; ours is still the newest wish.
            if attempt == 2:
                raise
        else:
            return


def _configure_references(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="NODE", nargs="+", help="self, name, id or beginning of an id")


async def _set_availability(arguments: argparse.Namespace, word: str) -> int:
    from orch_cli.commands.common import for_each
    from orch_cli.connection import control

    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            await _change(stub, reference, _availability(word), {}, [])
            print(reference)

        return await for_each(arguments.references, one)


async def _run_drain(arguments: argparse.Namespace) -> int:
    return await _set_availability(arguments, "drain")


async def _run_activate(arguments: argparse.Namespace) -> int:
    return await _set_availability(arguments, "active")


# ---- info --------------------------------------------------------------------------------------------


def _configure_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text or json")


async def _run_info(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.cluster import print_node_info

    return await print_node_info(arguments.host, as_json=arguments.format == "json")


VERBS: Final[Mapping[str, Verb]] = {
    "ls": Verb(_configure_ls, _run_ls),
    "ps": Verb(_configure_ps, _run_ps),
    "inspect": Verb(_configure_inspect, _run_inspect),
    "update": Verb(_configure_update, _run_update),
    "drain": Verb(_configure_references, _run_drain),
    "activate": Verb(_configure_references, _run_activate),
    "info": Verb(_configure_info, _run_info),
}
