"""A manager on a small disk, which can be filled."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from cluster.playground_driver import Playground, wait_for
from orch_cli.playground.power import processes_of_part
from orch_proto import control_pb2, control_pb2_grpc, types_pb2
from orch_proto.specs_pb2 import ConfigSpec

#: Room for the log's segments of 16 MiB and its snapshots.
DISK_MIB = 96
_FILLER = "filler"
#: Enough writes to need another segment.
_LARGE_WRITES = 44
_LARGE_BYTES = 450_000


@dataclass(frozen=True)
class SmallDisk:
    """The folder of a manager's state on a file system of its own."""

    folder: Path

    def fill(self) -> None:
        """Leaves no byte free."""
        with (self.folder / _FILLER).open("wb", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def make_room(self) -> None:
        """Takes away what `fill` wrote."""
        (self.folder / _FILLER).unlink()


@contextmanager
def small_disk(playground: Playground, node: int) -> Iterator[SmallDisk]:
    """Moves the state of a node's manager to a small disk, and back at the end."""
    folder = playground.place(node).state_dir / "manager"
    aside = folder.with_name("manager-aside")
    _stop(playground, node)
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "orch-test", str(folder)], check=True)
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        playground.start(node)
        yield SmallDisk(folder)
    finally:
        _stop(playground, node)
        shutil.rmtree(aside)
        shutil.copytree(folder, aside, ignore=shutil.ignore_patterns(_FILLER))
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
        aside.rename(folder)
        playground.start(node)


def _stop(playground: Playground, node: int) -> None:
    """Kill -9 of the daemon and its manager; tasks go on."""
    place = playground.place(node)

    def gone() -> bool:
        left = [*processes_of_part(place, "orchd"), *processes_of_part(place, "manager")]
        for one in left:
            one.kill()
        return not left

    wait_for(gone, f"the end of the manager of node {node}")


def write_large_objects(playground: Playground, node: int) -> None:
    """Writes through a manager until every log needs another segment; what was written is removed."""
    with grpc.insecure_channel(f"unix:{playground.place(node).manager_socket}") as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        for number in range(_LARGE_WRITES):
            spec = ConfigSpec(data=bytes(_LARGE_BYTES))
            spec.annotations.name = f"large-{number}"
            stub.Create(control_pb2.CreateRequest(spec=control_pb2.Spec(config=spec)), timeout=20)
            stub.Remove(
                control_pb2.RemoveRequest(kind=types_pb2.OBJECT_KIND_CONFIG, reference=f"large-{number}"), timeout=20
            )
