"""``inspect`` and ``rm`` for any kind of object."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orch_cli.commands.common import CALL_TIMEOUT_S, for_each, get, kind_word
from orch_cli.connection import calling, control
from orch_cli.output.objects import print_inspected
from orch_proto.control_pb2 import RemoveRequest
from orch_proto.types_pb2 import ObjectKind

if TYPE_CHECKING:
    from google.protobuf.message import Message


def configure_inspect(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``inspect``."""
    parser.add_argument("references", metavar="NAME", nargs="+", help="name, id or beginning of an id")
    parser.add_argument("--pretty", action="store_true", help="indented text instead of JSON")


def configure_rm(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``rm``."""
    parser.add_argument("references", metavar="NAME", nargs="+", help="name, id or beginning of an id")


async def inspect(arguments: argparse.Namespace, kind: ObjectKind.ValueType) -> int:
    """Prints what was found, even when something else was not."""
    found: list[Message] = []
    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            found.append(await get(stub, kind, reference))

        status = await for_each(arguments.references, one)
    print_inspected(found, pretty=arguments.pretty)
    return status


async def remove(arguments: argparse.Namespace, kind: ObjectKind.ValueType) -> int:
    """Removes each, and prints the names as they were given."""
    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            with calling(f"remove the {kind_word(kind)} {reference}"):
                await stub.Remove(RemoveRequest(kind=kind, reference=reference), timeout=CALL_TIMEOUT_S)
            print(reference)

        return await for_each(arguments.references, one)
