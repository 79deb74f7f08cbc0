"""``orch network``: networks of services."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from orch_cli.errors import EXIT_OK, UsageError
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


def _configure_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "-d", "--driver", default="overlay", choices=("overlay",), help="overlay, which spans the nodes"
    )
    parser.add_argument("--subnet", default="", metavar="CIDR", help="such as 10.5.0.0/24; else the next free one")
    parser.add_argument("--gateway", default="", metavar="ADDRESS", help="its first address unless named")
    parser.add_argument("--ip-range", default="", metavar="CIDR", help="addresses are given out from this part alone")
    parser.add_argument(
        "--aux-address", action="append", default=[], metavar="NAME=ADDRESS", help="an address that is not given out"
    )
    parser.add_argument("--internal", action="store_true", help="no way out of the network")
    parser.add_argument("--attachable", action="store_true", help="as docker's; kept with the network")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="a label of the network")
    parser.add_argument("-o", "--opt", action="append", default=[], metavar="mtu=BYTES", help="the network's MTU")


def _network_mtu(options: Mapping[str, str]) -> int:
    for name, value in options.items():
        if name not in {"mtu", "com.docker.network.driver.mtu"}:
            raise UsageError(f"the option {name!r} is not known", "networks have mtu alone", "write --opt mtu=1400")
        if not value.isdigit() or not 68 <= int(value) <= 65535:
            raise UsageError(f"{value!r} is no MTU", "it has 68 to 65535 bytes", "write --opt mtu=1400")
        return int(value)
    return 0


async def _run_create(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S, content, parse_pairs
    from orch_cli.connection import calling, control
    from orch_proto.control_pb2 import CreateRequest, Spec
    from orch_proto.objects_pb2 import Network
    from orch_proto.specs_pb2 import NetworkSpec
    from orch_proto.types_pb2 import Annotations, Ipam, IpamPool

    pool = IpamPool(
        subnet=arguments.subnet,
        gateway=arguments.gateway,
        ip_range=arguments.ip_range,
        auxiliary_addresses=parse_pairs(arguments.aux_address, "auxiliary address"),
    )
    spec = NetworkSpec(
        annotations=Annotations(name=arguments.name, labels=parse_pairs(arguments.label, "label")),
        driver=arguments.driver,
        internal=arguments.internal,
        attachable=arguments.attachable,
        mtu=_network_mtu(parse_pairs(arguments.opt, "option")),
        ipam=Ipam(driver="default", pools=[pool]) if pool.ByteSize() else None,
    )
    async with control(arguments.host) as stub:
        with calling(f"make the network {arguments.name}"):
            answer = await stub.Create(CreateRequest(spec=Spec(network=spec)), timeout=CALL_TIMEOUT_S)
    made = content(answer.object)
    assert isinstance(made, Network)
    print(made.id)
    return EXIT_OK


def _configure_rm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="NETWORK", nargs="+", help="name, id or beginning of an id")


async def _run_rm(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.objects import remove
    from orch_proto.types_pb2 import OBJECT_KIND_NETWORK

    return await remove(arguments, OBJECT_KIND_NETWORK)


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="NETWORK", nargs="+", help="name, id or beginning of an id")
    parser.add_argument("--pretty", action="store_true", help="indented text instead of JSON")


async def _run_inspect(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.objects import inspect
    from orch_proto.types_pb2 import OBJECT_KIND_NETWORK

    return await inspect(arguments, OBJECT_KIND_NETWORK)


VERBS: Final[Mapping[str, Verb]] = {
    "ls": Verb(_configure_ls, _run_ls),
    "create": Verb(_configure_create, _run_create),
    "inspect": Verb(_configure_inspect, _run_inspect),
    "rm": Verb(_configure_rm, _run_rm),
}
