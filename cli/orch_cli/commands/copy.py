"""``orch cp``: files out of a running task and into it, wherever in the cluster it runs."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from orch_cli.errors import EXIT_OK, UsageError
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_cli.containers.stream import TaskStream
    from orch_proto.control_pb2_grpc import ControlAsyncStub

_FRAME_BYTES = 128 * 1024


class Place(NamedTuple):
    """One end of a copy; an empty target is this machine."""

    target: str
    path: str


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--archive", action="store_true", help="keep user and group of the files")
    parser.add_argument("-L", "--follow-link", action="store_true", help="copy what a link at SOURCE points to")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say what was copied")
    parser.add_argument("source", metavar="SOURCE", help="TASK:PATH, a local path, or - for a tar on standard input")
    parser.add_argument("destination", metavar="DESTINATION", help="TASK:PATH, a local path, or - for a tar")


def parse_place(text: str) -> Place:
    """``web.1:/etc/hosts``, a local path, or ``-``; a local name with a colon begins with ``./``, as docker has it."""
    target, colon, path = text.partition(":")
    if not colon or not target or target.startswith((".", "/")) or "/" in target:
        return Place("", text)
    return Place(target, path)


async def _run(arguments: argparse.Namespace) -> int:
    source, destination = parse_place(arguments.source), parse_place(arguments.destination)
    if bool(source.target) == bool(destination.target):
        why = "both are tasks" if source.target else "neither is a task"
        raise UsageError("a copy is between a task and this machine", why, "write `orch cp web.1:/etc/hosts .`")
    for place in (source, destination):
        if not place.path:
            raise UsageError("there is no path", "it stands after the colon", f"write {place.target or 'web.1'}:/path")
    from orch_cli.connection import control
    from orch_cli.output.units import format_size

    async with control(arguments.host) as stub:
        if source.target:
            copied = await _copy_out(stub, source, destination.path, arguments)
        else:
            copied = await _copy_in(stub, source.path, destination, arguments)
    if not arguments.quiet and "-" not in (source.path, destination.path):
        print(f"Copied {format_size(copied)} to {arguments.destination}", file=sys.stderr)
    return EXIT_OK


# ---- out -------------------------------------------------------------------------------------------------------------


async def _copy_out(stub: ControlAsyncStub, source: Place, destination: str, arguments: argparse.Namespace) -> int:
    from orch_cli.containers.archive import Unpacker
    from orch_cli.containers.stream import task_stream
    from orch_proto.control_pb2 import ExecStart
    from orch_proto.node_pb2 import CopyOutCall, RelayCall

    if destination == "-" and sys.stdout.isatty():
        raise UsageError("a tar is not for a terminal", "standard output is one", "redirect it, or name a folder")
    call = RelayCall(copy_out=CopyOutCall(path=source.path, follow_link=arguments.follow_link))
    async with task_stream(
        stub, ExecStart(target=source.target, task_call=call), f"copy from {source.target}"
    ) as stream:
        if destination == "-":
            return await _drain(stream, sys.stdout.fileno())
        unpacker = Unpacker(destination, contents_only=source.path.endswith("/."), keep_owners=arguments.archive)
        reader, writer = os.pipe()

        def unpack() -> None:
            with os.fdopen(reader, "rb") as tar:
                unpacker.unpack(tar)

        unpacking = asyncio.create_task(asyncio.to_thread(unpack))
        try:
            copied = await _drain(stream, writer)
        except BrokenPipeError:
            copied = 0  # what the unpacking stumbled over says more
        except BaseException:
            os.close(writer)
            writer = -1
            await asyncio.wait({unpacking})
            unpacking.exception()
            raise
        finally:
            if writer >= 0:
                os.close(writer)
        await unpacking
        return copied


async def _drain(stream: TaskStream, descriptor: int) -> int:
    """Writes the tar that comes; returns its size in bytes."""
    copied = 0
    async for output in stream.outputs():
        if output.WhichOneof("output") == "data":
            copied += len(output.data)
            await asyncio.to_thread(_write_all, descriptor, output.data)
    return copied


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


# ---- in --------------------------------------------------------------------------------------------------------------


async def _copy_in(stub: ControlAsyncStub, source: str, destination: Place, arguments: argparse.Namespace) -> int:
    from orch_cli.containers.archive import is_folder, source_name
    from orch_cli.containers.stream import task_stream
    from orch_proto.control_pb2 import ExecStart
    from orch_proto.node_pb2 import CopyInCall, RelayCall

    follow = arguments.follow_link or source.endswith("/")
    is_directory = source != "-" and is_folder(source, follow_link=follow)
    copy = CopyInCall(
        path=destination.path,
        source_name="" if source == "-" else source_name(source),
        contents_only=source.endswith("/.") or source == ".",
        source_is_directory=is_directory,
        keep_owners=arguments.archive,
    )
    start = ExecStart(target=destination.target, task_call=RelayCall(copy_in=copy))
    async with task_stream(stub, start, f"copy to {destination.target}") as stream:
        return await _feed(stream, source, copy.source_name, follow_link=follow)


async def _feed(stream: TaskStream, source: str, name: str, *, follow_link: bool) -> int:
    """Sends the tar of a local path, or standard input, once the node is ready; returns its size in bytes."""
    from orch_cli.commands.common import note
    from orch_cli.containers.archive import pack
    from orch_proto.node_pb2 import RelayInput

    copied = 0
    reader, writer = os.pipe()

    def make() -> list[str]:
        with os.fdopen(writer, "wb") as tar:
            return pack(source, name, tar, follow_link=follow_link)

    async def send() -> None:
        nonlocal copied
        making = asyncio.create_task(asyncio.to_thread(make)) if source != "-" else None
        while data := await asyncio.to_thread(os.read, reader if making is not None else 0, _FRAME_BYTES):
            copied += len(data)
            await stream.send(RelayInput(data=data))
        if making is not None:
            for text in await making:
                note(f"orch: {text}")
        await stream.send(RelayInput(end_of_data=True))

    sending: asyncio.Task[None] | None = None
    try:
        async for output in stream.outputs():
            if output.WhichOneof("output") == "ready":
                sending = asyncio.create_task(send())
        if sending is not None:
            await sending
    finally:
        os.close(reader)
        if sending is None:
            os.close(writer)
        elif not sending.done():
            sending.cancel()
    return copied


VERBS: Final[Mapping[str, Verb]] = {"cp": Verb(_configure, _run)}
