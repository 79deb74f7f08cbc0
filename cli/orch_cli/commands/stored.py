"""What ``orch secret`` and ``orch config`` share: small data in the cluster's store."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from orch_cli.errors import EXIT_OK, CliError, UsageError
from orch_cli.output.listing import Listing, add_list_options, natural_key, print_listing
from orch_proto import defaults

if TYPE_CHECKING:
    from orch_proto.types_pb2 import ObjectKind

_FILTERS = ("id", "name", "label", "stack")


def configure_ls(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``ls``."""
    add_list_options(parser, filters=True)


async def run_ls(arguments: argparse.Namespace, kind: ObjectKind.ValueType, listing: Listing) -> int:
    """Lists secrets or configs by name."""
    from orch_cli.commands.common import fetch, parse_filters
    from orch_cli.connection import control
    from orch_cli.output.units import format_ago
    from orch_proto.objects_pb2 import Config, Secret

    filters = parse_filters(arguments.filter, _FILTERS)
    async with control(arguments.host) as stub:
        items = await fetch(stub, kind, filters)
    rows = [
        {
            "ID": item.id,
            "Name": item.spec.annotations.name,
            "Driver": "",
            "CreatedAt": format_ago(item.meta.created_at_unix_ms),
            "UpdatedAt": format_ago(item.meta.updated_at_unix_ms),
            "Digest": item.content_digest,
        }
        for item in items
        if isinstance(item, Secret | Config)
    ]
    print_listing(listing, sorted(rows, key=lambda row: natural_key(row["Name"])), arguments)
    return EXIT_OK


def configure_create(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``create``."""
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="the data; - (the default) is standard input"
    )
    parser.add_argument(
        "-l", "--label", action="append", default=[], metavar="NAME=VALUE", help="a label; repeat for more"
    )


async def run_create(arguments: argparse.Namespace, kind: ObjectKind.ValueType) -> int:
    """Makes a secret or config, and prints its id."""
    from orch_cli.commands.common import CALL_TIMEOUT_S, content, kind_word, parse_pairs
    from orch_cli.connection import calling, control
    from orch_proto.control_pb2 import CreateRequest, Spec
    from orch_proto.objects_pb2 import Config, Secret
    from orch_proto.specs_pb2 import ConfigSpec, SecretSpec
    from orch_proto.types_pb2 import OBJECT_KIND_SECRET, Annotations

    secret = kind == OBJECT_KIND_SECRET
    data = read_data(arguments.file, defaults.SECRET_BYTES if secret else defaults.CONFIG_BYTES)
    annotations = Annotations(name=arguments.name, labels=parse_pairs(arguments.label, "label"))
    if secret:
        spec = Spec(secret=SecretSpec(annotations=annotations, data=data))
    else:
        spec = Spec(config=ConfigSpec(annotations=annotations, data=data))
    async with control(arguments.host) as stub:
        with calling(f"make the {kind_word(kind)} {arguments.name}"):
            answer = await stub.Create(CreateRequest(spec=spec), timeout=CALL_TIMEOUT_S)
    item = content(answer.object)
    assert isinstance(item, Secret | Config)
    print(item.id)
    return EXIT_OK


def read_data(path: str, limit: int) -> bytes:
    """At most ``limit`` bytes of a file or of standard input.

    Raises:
        CliError: it cannot be read, or is too large.
        UsageError: standard input is a terminal.
    """
    if path == "-":
        if sys.stdin.isatty():
            raise UsageError("standard input is a terminal", "the data is expected there", "name a file, or use a pipe")
        data = sys.stdin.buffer.read(limit + 1)
    else:
        try:
            with open(path, "rb") as stream:
                data = stream.read(limit + 1)
        except OSError as error:
            raise CliError(f"cannot read {path}", error.strerror or str(error), "check the path") from error
    if len(data) > limit:
        raise CliError(f"{path} is too large", f"the limit is {limit} bytes", "use a volume instead")
    return data
