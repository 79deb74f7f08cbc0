"""``orch volume``: data that outlives tasks, on the nodes that hold it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from orch_cli.errors import EXIT_OK
from orch_cli.output.listing import Listing, add_list_options, natural_key, print_listing
from orch_cli.verbs import Verb

VOLUMES: Final = Listing(
    columns=(("Driver", "DRIVER"), ("Name", "VOLUME NAME"), ("Node", "NODE")),
    quiet="Name",
    extra=(("Mountpoint", "MOUNTPOINT"), ("CreatedAt", "CREATED AT"), ("Labels", "LABELS")),
)


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", default="", metavar="NODE", help="one node's volumes; else of all nodes")
    add_list_options(parser)


async def _run_ls(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.image import ask_nodes
    from orch_cli.connection import control
    from orch_cli.output.units import format_time
    from orch_proto.node_pb2 import NodeCall, VolumeListCall

    async with control(arguments.host) as stub:
        answers = await ask_nodes(stub, NodeCall(volume_list=VolumeListCall()), arguments.node, "list the volumes")
    rows = [
        {
            "Driver": volume.driver or "local",
            "Name": volume.name,
            "Node": answer.node_hostname or answer.node_id,
            "Mountpoint": volume.mountpoint,
            "CreatedAt": format_time(volume.created_at_unix_ms),
            "Labels": ",".join(f"{name}={value}" for name, value in sorted(volume.labels.items())),
        }
        for answer in answers
        for volume in answer.result.volume_list.volumes
    ]
    print_listing(VOLUMES, sorted(rows, key=lambda row: (natural_key(row["Name"]), row["Node"])), arguments)
    return EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {"ls": Verb(_configure_ls, _run_ls)}
