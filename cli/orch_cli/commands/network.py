"""``orch network``: networks of services."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from orch_cli.errors import EXIT_OK
from orch_cli.output.listing import Listing, add_list_options, natural_key, print_listing, short_id
from orch_cli.verbs import Verb

NETWORKS: Final = Listing(
    columns=(("ID", "NETWORK ID"), ("Name", "NAME"), ("Driver", "DRIVER"), ("Scope", "SCOPE")),
    quiet="ID",
    extra=(("Subnet", "SUBNET"), ("Internal", "INTERNAL"), ("Attachable", "ATTACHABLE"), ("CreatedAt", "CREATED AT")),
)
NETWORK_FILTERS: Final = ("id", "name", "label", "driver", "stack")


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    add_list_options(parser, no_trunc=True, filters=True)


async def _run_ls(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import fetch, parse_filters
    from orch_cli.connection import control
    from orch_cli.output.units import format_time
    from orch_proto.objects_pb2 import Network
    from orch_proto.types_pb2 import OBJECT_KIND_NETWORK

    filters = parse_filters(arguments.filter, NETWORK_FILTERS)
    async with control(arguments.host) as stub:
        networks = await fetch(stub, OBJECT_KIND_NETWORK, filters)
    rows = [
        {
            "ID": short_id(network.id, full=arguments.no_trunc),
            "Name": network.spec.annotations.name,
            "Driver": network.spec.driver or "overlay",
            "Scope": "cluster",
            "Subnet": ", ".join(pool.subnet for pool in network.ipam.pools),
            "Internal": str(network.spec.internal).lower(),
            "Attachable": str(network.spec.attachable).lower(),
            "CreatedAt": format_time(network.meta.created_at_unix_ms),
        }
        for network in networks
        if isinstance(network, Network)
    ]
    print_listing(NETWORKS, sorted(rows, key=lambda row: natural_key(row["Name"])), arguments)
    return EXIT_OK


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="NETWORK", nargs="+", help="name, id or beginning of an id")
    parser.add_argument("--pretty", action="store_true", help="indented text instead of JSON")


async def _run_inspect(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.objects import inspect
    from orch_proto.types_pb2 import OBJECT_KIND_NETWORK

    return await inspect(arguments, OBJECT_KIND_NETWORK)


VERBS: Final[Mapping[str, Verb]] = {
    "ls": Verb(_configure_ls, _run_ls),
    "inspect": Verb(_configure_inspect, _run_inspect),
}
