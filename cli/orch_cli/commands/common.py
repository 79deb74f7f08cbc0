"""What commands share: reading objects, filters, names, doing the same to several objects."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

from orch_cli.compose.report import nearest
from orch_cli.connection import calling
from orch_cli.errors import EXIT_ERROR, EXIT_OK, UsageError, format_error
from orch_proto import defaults
from orch_proto.control_pb2 import Filter, GetRequest, ListRequest
from orch_proto.objects_pb2 import Node, Object
from orch_proto.types_pb2 import OBJECT_KIND_NODE, ObjectKind

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from orch_proto.control_pb2_grpc import ControlAsyncStub

#: Longer than the manager's own limits, so that its explanation arrives before we give up.
CALL_TIMEOUT_S: Final = defaults.RPC_TIMEOUT_MS / 1000 + 5


def kind_word(kind: ObjectKind.ValueType) -> str:
    """``service`` for OBJECT_KIND_SERVICE."""
    return ObjectKind.Name(kind).removeprefix("OBJECT_KIND_").lower()


def content(item: Object) -> Message:
    """The object inside the envelope."""
    which = item.WhichOneof("object")
    assert which is not None, "the manager sent an empty object"
    message: Message = getattr(item, which)
    return message


async def fetch(stub: ControlAsyncStub, kind: ObjectKind.ValueType, filters: Sequence[Filter] = ()) -> list[Message]:
    """All objects of a kind that match."""
    with calling(f"list the {kind_word(kind)}s"):
        answer = await stub.List(ListRequest(kind=kind, filters=filters), timeout=CALL_TIMEOUT_S)
    return [content(item) for item in answer.objects]


async def get(stub: ControlAsyncStub, kind: ObjectKind.ValueType, reference: str) -> Message:
    """One object by id, prefix of an id, or name."""
    with calling(f"find the {kind_word(kind)} {reference}"):
        answer = await stub.Get(GetRequest(kind=kind, reference=reference), timeout=CALL_TIMEOUT_S)
    return content(answer.object)


async def nodes_by_id(stub: ControlAsyncStub) -> dict[str, Node]:
    """All nodes: task lists show their names, and whether they are heard of."""
    return {node.id: node for node in await fetch(stub, OBJECT_KIND_NODE) if isinstance(node, Node)}


def parse_filters(values: Sequence[str], known: Collection[str]) -> list[Filter]:
    """``KEY=VALUE`` options as filters; the values of one key are alternatives.

    Raises:
        UsageError: for another form or an unknown key.
    """
    found: dict[str, list[str]] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"cannot read the filter {text!r}", "it has no =", "write KEY=VALUE")
        if key not in known:
            hint = nearest(key, known) or f"known: {', '.join(sorted(known))}"
            raise UsageError(f"the filter {key!r} is unknown here", "", hint)
        found.setdefault(key, []).append(value)
    return [Filter(key=key, values=items) for key, items in found.items()]


def parse_pairs(values: Sequence[str], what: str) -> dict[str, str]:
    """``NAME=VALUE`` options; a name alone has the empty value.

    Raises:
        UsageError: for a missing name.
    """
    result = {}
    for text in values:
        name, _, value = text.partition("=")
        if not name:
            raise UsageError(f"cannot read the {what} {text!r}", "the name is missing", "write NAME=VALUE")
        result[name] = value
    return result


async def for_each(references: Sequence[str], work: Callable[[str], Awaitable[None]]) -> int:
    """Does the same to several objects: all are tried, failures told as they come; the status says if one was."""
    from orch_rpc.errors import OrchError

    status = EXIT_OK
    for reference in references:
        try:
            await work(reference)
        except OrchError as error:
            print(format_error(error.what, error.why, error.todo), file=sys.stderr)
            status = EXIT_ERROR
    return status


def note(text: str) -> None:
    """Something for people, on standard error."""
    print(text, file=sys.stderr)
