import itertools
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orch_agent.build.builder import Builder
from orch_agent.build.runtime_runner import RuntimeStepRunner
from orch_agent.images.store import ImageStore
from orch_runtime.client import RuntimeClient
from orch_runtime.daemon import ensure_keeper

BUSYBOX = shutil.which("busybox")


def _is_static(program: str) -> bool:
    return subprocess.run(["ldd", program], capture_output=True, check=False).returncode != 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why these tests cannot run here, if they cannot."""
    reason = ""
    if os.geteuid() != 0:
        reason = "containers need root"
    elif BUSYBOX is None or not _is_static(BUSYBOX):
        reason = "needs busybox-static"
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


def _mounts(folder: Path) -> list[str]:
    """The mounts that mention a folder of these tests; others on this machine come and go as they like."""
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]


def _cgroups(name: str) -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{name}*")]


@pytest.fixture(scope="session")
def runtime_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A runtime of its own for these tests; afterwards no mount and no cgroup of it is left."""
    root = str(tmp_path_factory.mktemp("runtime"))
    cgroup = f"orch-test-images-{os.getpid()}"
    ensure_keeper(root, f"/{cgroup}")
    socket = f"{root}/runtime.sock"
    yield socket
    with RuntimeClient(socket) as client:
        left = [state.id for state in client.list()]
        pids = [state.pid for state in client.list()]
        client.shutdown(force=True)
    keeper = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _runs(path, root)]
    for pid in keeper:
        _wait_gone(pid)
    assert left == [], f"containers left running: {left} {pids}"
    assert _mounts(tmp_path_factory.getbasetemp()) == []
    for folder in sorted(_cgroups(cgroup), key=len, reverse=True):
        _remove_cgroup(Path(folder))
    assert _cgroups(cgroup) == []


def _runs(process: Path, root: str) -> bool:
    try:
        return root.encode() in (process / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_gone(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([descriptor], [], [], 20)
    os.close(descriptor)


def _remove_cgroup(folder: Path) -> None:
    """The runtime keeps its parent group for its next start; these tests have none."""
    for child in sorted((path for path in folder.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
        child.rmdir()
    folder.rmdir()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store that does not wait for the disk."""
    return ImageStore(tmp_path / "images", durable=False)


@pytest.fixture
def builder(store: ImageStore, runtime_socket: str) -> Builder:
    """A builder whose RUN runs in real containers."""
    return Builder(store, RuntimeStepRunner(runtime_socket, timeout_s=40))


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Path]:
    """Makes a build's folder with busybox and a Dockerfile that begins with a shell in an otherwise empty image."""
    numbers = itertools.count()

    def make(dockerfile: str, **contents: str) -> Path:
        folder = tmp_path / f"context{next(numbers)}"
        folder.mkdir()
        assert BUSYBOX is not None
        shutil.copy(BUSYBOX, folder / "busybox")
        (folder / "Dockerfile").write_text(
            'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\n' + dockerfile
        )
        for name, text in contents.items():
            (folder / name).write_text(text)
        return folder

    return make
