"""``orch config``: files for tasks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from orch_cli.commands import stored
from orch_cli.output.listing import Listing
from orch_cli.verbs import Verb

CONFIGS: Final = Listing(
    columns=(("ID", "ID"), ("Name", "NAME"), ("CreatedAt", "CREATED"), ("UpdatedAt", "UPDATED")),
    quiet="ID",
    extra=(("Digest", "DIGEST"),),
)


async def _run_ls(arguments: argparse.Namespace) -> int:
    from orch_proto.types_pb2 import OBJECT_KIND_CONFIG

    return await stored.run_ls(arguments, OBJECT_KIND_CONFIG, CONFIGS)


async def _run_create(arguments: argparse.Namespace) -> int:
    from orch_proto.types_pb2 import OBJECT_KIND_CONFIG

    return await stored.run_create(arguments, OBJECT_KIND_CONFIG)


def _configure_references(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="CONFIG", nargs="+", help="name, id or beginning of an id")


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    _configure_references(parser)
    parser.add_argument("--pretty", action="store_true", help="indented text instead of JSON")


async def _run_inspect(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.objects import inspect
    from orch_proto.types_pb2 import OBJECT_KIND_CONFIG

    return await inspect(arguments, OBJECT_KIND_CONFIG)


async def _run_rm(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.objects import remove
    from orch_proto.types_pb2 import OBJECT_KIND_CONFIG

    return await remove(arguments, OBJECT_KIND_CONFIG)


VERBS: Final[Mapping[str, Verb]] = {
    "ls": Verb(stored.configure_ls, _run_ls),
    "create": Verb(stored.configure_create, _run_create),
    "inspect": Verb(_configure_inspect, _run_inspect),
    "rm": Verb(_configure_references, _run_rm),
}
