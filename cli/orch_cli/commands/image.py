"""``orch image``: images on the nodes."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from orch_cli.commands import build
from orch_cli.errors import EXIT_ERROR, EXIT_OK, CliError, UsageError, format_error
from orch_cli.output.listing import Listing, add_list_options, natural_key, print_listing, short_id
from orch_cli.verbs import Verb
from orch_proto import defaults

if TYPE_CHECKING:
    from orch_proto.control_pb2 import NodeAnswer
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.node_pb2 import ImageSummary, NodeCall, RelayCall

IMAGES: Final = Listing(
    columns=(
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("Size", "SIZE"),
        ("Node", "NODE"),
    ),
    quiet="ID",
    extra=(("CreatedAt", "CREATED AT"), ("UniqueSize", "UNIQUE SIZE"), ("Digest", "DIGEST")),
)


async def ask_nodes(stub: ControlAsyncStub, call: NodeCall, node: str, doing: str) -> list[NodeAnswer]:
    """Asks one node or all; answers with errors are told on standard error and left out.

    Raises:
        OrchError: when all that answered failed alike.
    """
    from orch_cli.connection import calling
    from orch_proto.control_pb2 import CallNodesRequest
    from orch_rpc.errors import from_call_error

    with calling(doing):
        answer = await stub.CallNodes(
            CallNodesRequest(node=node, call=call), timeout=defaults.NODE_CALL_TIMEOUT_MS / 1000 + 5
        )
    good = [item for item in answer.answers if not item.result.HasField("error")]
    bad = [item for item in answer.answers if item.result.HasField("error")]
    if bad and not good:
        raise from_call_error(bad[0].result.error.code, bad[0].result.error.message)
    if not good:
        raise CliError(f"cannot {doing}", "no node is ready", "`orch node ls` shows the nodes")
    for item in bad:
        if item.result.error.code != "NOT_FOUND":
            error = from_call_error(item.result.error.code, item.result.error.message)
            print(format_error(f"node {item.node_hostname}: {error.what}", error.why, error.todo), file=sys.stderr)
    return good


# ---- ls, inspect -------------------------------------------------------------------------------------


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repository", metavar="REPOSITORY[:TAG]", nargs="?", default="")
    parser.add_argument("--node", default="", metavar="NODE", help="one node's images; else of all nodes")
    add_list_options(parser, no_trunc=True)


async def _run_ls(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import control
    from orch_proto.node_pb2 import ImageListCall, NodeCall

    async with control(arguments.host) as stub:
        answers = await ask_nodes(stub, NodeCall(image_list=ImageListCall()), arguments.node, "list the images")
    rows = []
    for answer in answers:
        for image in answer.result.image_list.images:
            rows.extend(image_rows(image, answer.node_hostname or answer.node_id, no_trunc=arguments.no_trunc))
    name, colon, tag = arguments.repository.partition(":")
    if name:
        rows = [row for row in rows if row["Repository"] == name and (not colon or row["Tag"] == tag)]
    rows.sort(key=lambda row: (natural_key(row["Repository"]), natural_key(row["Tag"]), row["Node"]))
    print_listing(IMAGES, rows, arguments)
    return EXIT_OK


def image_rows(image: ImageSummary, node: str, *, no_trunc: bool) -> list[dict[str, str]]:
    """One row per name; an image without a name has one too."""
    from orch_cli.output.units import format_ago, format_size, format_time

    rows = []
    tagged = [reference for reference in image.references if "@" not in reference]
    repositories = {reference.rpartition(":")[0] for reference in tagged}
    # A digest that a registry knows the image by has a row only where no tag stands for it.
    by_digest = {reference.partition("@")[0] for reference in image.references if "@" in reference} - repositories
    for reference in [*tagged, *(f"{name}:<none>" for name in sorted(by_digest))] or ["<none>:<none>"]:
        name, colon, tag = reference.rpartition(":")
        if not colon or "/" in tag:
            name, tag = reference, "latest"
        rows.append(
            {
                "Repository": name,
                "Tag": tag,
                "ID": short_id(image.id, full=no_trunc),
                "CreatedSince": format_ago(image.created_at_unix_ms),
                "CreatedAt": format_time(image.created_at_unix_ms),
                "Size": format_size(image.size_bytes),
                "UniqueSize": format_size(image.unique_bytes),
                "Digest": image.id,
                "Node": node,
            }
        )
    return rows


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="IMAGE", nargs="+")
    parser.add_argument("--node", default="", metavar="NODE", help="ask this node; else all")


async def _run_inspect(arguments: argparse.Namespace) -> int:
    import json

    from orch_cli.commands.common import for_each
    from orch_cli.connection import control
    from orch_cli.output.objects import to_json
    from orch_proto.node_pb2 import ImageInspectCall, NodeCall

    found: dict[tuple[str, str], dict[str, object]] = {}
    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            call = NodeCall(image_inspect=ImageInspectCall(reference=reference))
            for answer in await ask_nodes(stub, call, arguments.node, f"inspect the image {reference}"):
                result = answer.result.image_inspect
                entry = found.setdefault((reference, result.image.id), {**to_json(result.image), "nodes": []})
                nodes = entry["nodes"]
                assert isinstance(nodes, list)
                nodes.append(answer.node_hostname)
                entry["config"] = json.loads(result.config_json or b"{}")

        status = await for_each(arguments.references, one)
    print(json.dumps(list(found.values()), indent=4, ensure_ascii=False))
    return status


# ---- pull, push --------------------------------------------------------------------------------------------


def _configure_pull(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="NAME[:TAG|@DIGEST]")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the name alone")
    parser.add_argument("--node", default="", metavar="NODE", help="to this node; else to the manager's own")


async def _run_pull(arguments: argparse.Namespace) -> int:
    from orch_cli.compose.service import check_reference
    from orch_proto.node_pb2 import ImagePullCall, RelayCall

    if problem := check_reference(arguments.reference):
        raise UsageError(f"{arguments.reference!r} is no name of an image", problem, "write name:tag")
    call = RelayCall(image_pull=ImagePullCall(reference=arguments.reference))
    await _send(arguments, call, iter(()), f"pull {arguments.reference}")
    print(arguments.reference)
    return EXIT_OK


def _configure_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="NAME[:TAG]")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the name alone")
    parser.add_argument("--node", default="", metavar="NODE", help="from this node; else from one that has it")
    parser.add_argument(
        "--to-cluster", action="store_true", help="to the nodes that lack it, and to no registry; layers they have stay"
    )


async def _run_push_to_cluster(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import control
    from orch_cli.deploy.delivery import deliver_image

    async with control(arguments.host) as stub:
        delivered = await deliver_image(stub, arguments.reference, node=arguments.node, quiet=arguments.quiet)
    if not delivered.got_it and not delivered.failed and not arguments.quiet:
        print(f"all {len(delivered.had_it)} ready nodes have it already", file=sys.stderr)
    print(arguments.reference)
    return EXIT_ERROR if delivered.failed else EXIT_OK


async def _run_push(arguments: argparse.Namespace) -> int:
    if arguments.to_cluster:
        return await _run_push_to_cluster(arguments)
    from orch_cli.connection import control
    from orch_proto.node_pb2 import ImageInspectCall, ImagePushCall, NodeCall, RelayCall

    doing = f"push {arguments.reference}"
    async with control(arguments.host) as stub:
        call = NodeCall(image_inspect=ImageInspectCall(reference=arguments.reference))
        holders = await ask_nodes(stub, call, arguments.node, doing)
    if len({holder.result.image_inspect.image.id for holder in holders}) > 1:
        names = ", ".join(holder.node_hostname for holder in holders)
        why = f"it is not the same image on {names}"
        raise CliError(f"cannot {doing}", why, "name the node that has the right one: --node NODE")
    arguments.node = holders[0].node_id
    await _send(arguments, RelayCall(image_push=ImagePushCall(reference=arguments.reference)), iter(()), doing)
    print(arguments.reference)
    return EXIT_OK


# ---- save -------------------------------------------------------------------------------------


def _configure_save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="IMAGE", nargs="+", help="names or ids; layers in common are kept once")
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="to this file; else to standard output")
    parser.add_argument("--node", default="", metavar="NODE", help="from this node; else from one that has the first")


async def _run_save(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import control
    from orch_cli.deploy.transfer import send_to_node
    from orch_proto.node_pb2 import ImageInspectCall, ImageSaveCall, NodeCall, RelayCall

    doing = f"save {' '.join(arguments.references)}"
    if not arguments.output and sys.stdout.isatty():
        raise UsageError("standard output is a terminal", "an archive goes there", "write -o FILE, or use a pipe")
    async with control(arguments.host) as stub:
        question = NodeCall(image_inspect=ImageInspectCall(reference=arguments.references[0]))
        holders = await ask_nodes(stub, question, arguments.node, doing)
        call = RelayCall(image_save=ImageSaveCall(references=arguments.references))
        with _whole_file(arguments.output) as file:
            await send_to_node(stub, call, iter(()), doing=doing, node=holders[0].node_id, take=file.write)
    return EXIT_OK


@contextlib.contextmanager
def _whole_file(path: str) -> Iterator[BinaryIO]:
    """A file that is there when all of it was written; standard output for an empty path."""
    if not path:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with tempfile.NamedTemporaryFile(dir=Path(path).absolute().parent, prefix=".orch-save-", delete=False) as file:
            try:
                yield file  # type: ignore[misc]  # a wrapper of a BinaryIO
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        Path(file.name).replace(path)
    except OSError as error:
        raise CliError(f"cannot write {path}", error.strerror or str(error), "check the path") from error


# ---- load, import -----------------------------------------------------------------------------


def _chunks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """A stream in pieces of a relay frame."""
    with stream:
        while True:
            try:
                chunk = stream.read(defaults.RELAY_CHUNK_BYTES)
            except OSError as error:
                raise CliError(f"cannot read {name}", error.strerror or str(error)) from error
            if not chunk:
                return
            yield chunk


def _open(path: str) -> BinaryIO:
    if path == "-":
        if sys.stdin.isatty():
            raise UsageError(
                "standard input is a terminal", "an archive is expected there", "name a file, or use a pipe"
            )
        return sys.stdin.buffer
    try:
        return open(path, "rb")
    except OSError as error:
        raise CliError(f"cannot read {path}", error.strerror or str(error), "check the path") from error


def _configure_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "archive", metavar="FILE", nargs="?", default="", help="an archive of docker save, or an OCI layout"
    )
    parser.add_argument("-i", "--input", default="", metavar="FILE", help="the same; else standard input")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("--node", default="", metavar="NODE", help="on this node; else on the manager's own")


async def _run_load(arguments: argparse.Namespace) -> int:
    from orch_proto.node_pb2 import ImageLoadCall, RelayCall

    path = arguments.input or arguments.archive or "-"
    stream = _open(path)
    images = await _send(arguments, RelayCall(image_load=ImageLoadCall()), _chunks(stream, path), f"load {path}")
    for image in images:
        for reference in image.references or [image.id]:
            print(f"Loaded image: {reference}")
    return EXIT_OK


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", metavar="FILE", help="tar of a root file system; - is standard input")
    parser.add_argument("reference", metavar="REPOSITORY[:TAG]")
    parser.add_argument(
        "-c",
        "--change",
        action="append",
        default=[],
        metavar="INSTRUCTION",
        help="a Dockerfile instruction for the image's settings",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("--node", default="", metavar="NODE", help="on this node; else on the manager's own")


async def _run_import(arguments: argparse.Namespace) -> int:
    from orch_proto.node_pb2 import ImageImportCall, RelayCall

    stream = _open(arguments.archive)
    call = RelayCall(image_import=ImageImportCall(reference=arguments.reference, changes=arguments.change))
    for image in await _send(arguments, call, _chunks(stream, arguments.archive), f"import {arguments.archive}"):
        print(image.id)
    return EXIT_OK


async def _send(
    arguments: argparse.Namespace, call: RelayCall, chunks: Iterator[bytes], doing: str
) -> list[ImageSummary]:
    from orch_cli.connection import control
    from orch_cli.deploy.transfer import send_to_node

    show = (lambda _text: None) if arguments.quiet else None
    async with control(arguments.host) as stub:
        result = await send_to_node(stub, call, chunks, doing=doing, node=arguments.node, show=show)
    return list(result.images)


# ---- rm, tag -----------------------------------------------------------------------------------------


def _configure_rm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="IMAGE", nargs="+")
    parser.add_argument("-f", "--force", action="store_true", help="also what ended tasks still use")
    parser.add_argument("--node", default="", metavar="NODE", help="on this node; else on all")


async def _run_rm(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import for_each
    from orch_cli.connection import control
    from orch_proto.node_pb2 import ImageRemoveCall, NodeCall

    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            call = NodeCall(image_remove=ImageRemoveCall(reference=reference, force=arguments.force))
            for answer in await ask_nodes(stub, call, arguments.node, f"remove the image {reference}"):
                for name in answer.result.image_remove.untagged:
                    print(f"Untagged: {name}")
                for identifier in answer.result.image_remove.deleted:
                    print(f"Deleted: {identifier}")

        return await for_each(arguments.references, one)


def _configure_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-a", "--all", action="store_true", help="also images that have a name, and the build cache; else those without"
    )
    parser.add_argument("-f", "--force", action="store_true", help="as docker's; orch does not ask in any case")
    parser.add_argument("--node", default="", metavar="NODE", help="on this node; else on all")


async def _run_prune(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import control
    from orch_cli.output.units import format_size
    from orch_proto.node_pb2 import ImagePruneCall, NodeCall

    async with control(arguments.host) as stub:
        call = NodeCall(image_prune=ImagePruneCall(all=arguments.all))
        answers = await ask_nodes(stub, call, arguments.node, "remove the images that nothing wants")
    freed_bytes = 0
    for answer in answers:
        pruned = answer.result.image_prune
        freed_bytes += pruned.freed_bytes
        for name in pruned.untagged:
            print(f"Untagged: {name} ({answer.node_hostname})")
        for identifier in pruned.deleted:
            print(f"Deleted: {identifier} ({answer.node_hostname})")
    print(f"Freed: {format_size(freed_bytes)}")
    return EXIT_OK


def _configure_tag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IMAGE")
    parser.add_argument("target", metavar="NAME[:TAG]")
    parser.add_argument("--node", default="", metavar="NODE", help="on this node; else on all that have it")


async def _run_tag(arguments: argparse.Namespace) -> int:
    from orch_cli.compose.service import check_reference
    from orch_cli.connection import control
    from orch_cli.deploy.build import tag_image

    if problem := check_reference(arguments.target):
        raise UsageError(f"{arguments.target!r} is no name of an image", problem, "write name:tag")
    async with control(arguments.host) as stub:
        await tag_image(stub, arguments.source, arguments.target, arguments.node)
    return EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {
    "ls": Verb(_configure_ls, _run_ls),
    "pull": Verb(_configure_pull, _run_pull),
    "push": Verb(_configure_push, _run_push),
    "load": Verb(_configure_load, _run_load),
    "save": Verb(_configure_save, _run_save),
    "import": Verb(_configure_import, _run_import),
    "build": Verb(build.configure, build.run),
    "inspect": Verb(_configure_inspect, _run_inspect),
    "tag": Verb(_configure_tag, _run_tag),
    "rm": Verb(_configure_rm, _run_rm),
    "prune": Verb(_configure_prune, _run_prune),
}
