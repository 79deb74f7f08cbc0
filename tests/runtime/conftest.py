"""Fixtures for tests that run real containers; each node is checked for leaks when it ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch_runtime.client import RuntimeClient
from runtime.runtime_node import BUSYBOX, RuntimeNode, make_busybox_rootfs, wait_for


def _mounts(folder: str) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if folder in line]


def _groups(top: str) -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{top}")]


def _processes(folder: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in command:
            found.append(f"{entry.name}: {command}")
    return found


@pytest.fixture(scope="session")
def busybox_rootfs() -> Iterator[Path]:
    """A read-only layer with busybox."""
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    if not Path(BUSYBOX).exists():
        pytest.skip("busybox-static is not installed")
    with tempfile.TemporaryDirectory(prefix="orch-rootfs-") as folder:
        yield make_busybox_rootfs(Path(folder) / "rootfs")


def _node(rootfs: Path) -> Iterator[RuntimeNode]:
    # On tmpfs where there is one: ROOT is on /run of a real node, and tests are not about the disk.
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="orch-test-", dir=base))
    node = RuntimeNode(folder, rootfs, folder.name.removeprefix("orch-test-"))
    node.start()
    try:
        yield node
    finally:
        node.stop()
        try:
            wait_for(lambda: not _processes(str(folder)), f"processes left: {_processes(str(folder))}", 5.0)
            assert _mounts(str(folder)) == []
            wait_for(lambda: not _groups(node.top_cgroup), f"groups left: {_groups(node.top_cgroup)}", 5.0)
        finally:
            log = node.root / "keeper.log"
            print(log.read_text()[-4000:] if log.exists() else "")  # shown with a failure
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def node(busybox_rootfs: Path) -> Iterator[RuntimeNode]:
    """A node shared by the tests of a module."""
    yield from _node(busybox_rootfs)


@pytest.fixture
def own_node(busybox_rootfs: Path) -> Iterator[RuntimeNode]:
    """A node of the test's own, to do violence to."""
    yield from _node(busybox_rootfs)


@pytest.fixture
def client(node: RuntimeNode) -> Iterator[RuntimeClient]:
    """A connection to the shared node."""
    with node.client() as connection:
        yield connection
