"""``orch node promote|demote|rm``: which nodes are managers, and which are in the cluster at all."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orch_cli.errors import EXIT_OK
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.specs_pb2 import NodeRole

_ATTEMPTS: Final = 5


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="NODE", nargs="+", help="self, name, id or beginning of an id")


async def _run_promote(arguments: argparse.Namespace) -> int:
    from orch_proto.specs_pb2 import NODE_ROLE_MANAGER

    return await _set_roles(arguments, NODE_ROLE_MANAGER, "manager")


async def _run_demote(arguments: argparse.Namespace) -> int:
    from orch_proto.specs_pb2 import NODE_ROLE_WORKER

    return await _set_roles(arguments, NODE_ROLE_WORKER, "worker")


async def _set_roles(arguments: argparse.Namespace, role: NodeRole.ValueType, word: str) -> int:
    from orch_cli.commands.common import for_each, note
    from orch_cli.connection import control

    unwise: list[str] = []
    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            changed, warnings = await _set_role(stub, reference, role)
            unwise[:] = warnings or unwise
            print(f"Node {reference} becomes a {word}." if changed else f"Node {reference} is a {word} already.")

        status = await for_each(arguments.references, one)
    for text in unwise:
        note(f"warning: {text}")
    return status


async def _set_role(stub: ControlAsyncStub, reference: str, role: NodeRole.ValueType) -> tuple[bool, list[str]]:
    """Writes the wanted role; whether that changed something, and what is unwise about it."""
    from orch_cli.commands.common import CALL_TIMEOUT_S
    from orch_cli.commands.node import find_node
    from orch_cli.connection import calling
    from orch_proto.control_pb2 import Spec, UpdateRequest
    from orch_proto.types_pb2 import OBJECT_KIND_NODE
    from orch_rpc.errors import OutOfDate

    for attempt in range(_ATTEMPTS):
        node = await find_node(stub, reference)
        if (node.spec.desired_role or node.role) == role:
            return False, []
        node.spec.desired_role = role
        request = UpdateRequest(
            kind=OBJECT_KIND_NODE, id=node.id, version_index=node.meta.version_index, spec=Spec(node=node.spec)
        )
        try:
            with calling(f"change the role of node {reference}"):
                answer = await stub.Update(request, timeout=CALL_TIMEOUT_S)
        except OutOfDate:
            # Its status changes by itself all the time; ours is still the newest wish.
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return True, list(answer.warnings)
    return False, []


def _configure_rm(parser: argparse.ArgumentParser) -> None:
    _configure(parser)
    parser.add_argument(
        "-f", "--force", action="store_true", help="also a node that is not down, or a manager that cannot be demoted"
    )


async def _run_rm(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S, for_each, note
    from orch_cli.connection import calling, control
    from orch_proto.control_pb2 import RemoveRequest
    from orch_proto.types_pb2 import OBJECT_KIND_NODE

    unwise: list[str] = []
    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            request = RemoveRequest(kind=OBJECT_KIND_NODE, reference=reference, force=arguments.force)
            with calling(f"remove node {reference}"):
                answer = await stub.Remove(request, timeout=CALL_TIMEOUT_S)
            unwise[:] = list(answer.warnings) or unwise
            print(reference)

        status = await for_each(arguments.references, one)
    for text in unwise:
        note(f"warning: {text}")
    return status or EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {
    "promote": Verb(_configure, _run_promote),
    "demote": Verb(_configure, _run_demote),
    "rm": Verb(_configure_rm, _run_rm),
}
