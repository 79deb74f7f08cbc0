"""A node's runtime for tests: a keeper of its own below a temporary folder, with a busybox root file system."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orch_runtime.client import RuntimeClient
from orch_runtime.config import compile_config, default_config
from orch_runtime.daemon import ensure_keeper
from orch_runtime.errors import Unavailable
from orch_runtime.plan import LogOptions, OverlayRootfs, Plan
from orch_runtime.protocol import ContainerState, ExitEvent

BUSYBOX = "/usr/bin/busybox"
APPLETS = [
    "sh",
    "unshare",
    "ls",
    "cat",
    "sleep",
    "mount",
    "id",
    "echo",
    "ps",
    "true",
    "false",
    "hostname",
    "stat",
    "env",
    "ip",
    "touch",
    "mkdir",
    "dd",
    "head",
    "seq",
    "wc",
    "kill",
    "readlink",
    "grep",
    "test",
    "umount",
    "mknod",
    "chown",
    "tail",
    "pwd",
    "yes",
    "tr",
]


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 15.0) -> Any:
    """Poll until condition() is true; fail with `what` after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {timeout_s} s: {what}")
        time.sleep(0.01)


def make_busybox_rootfs(path: Path) -> Path:
    """Make a small root file system."""
    (path / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, path / "bin/busybox")
    for applet in APPLETS:
        (path / "bin" / applet).symlink_to("busybox")
    (path / "etc").mkdir()
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:web:/home/web:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\nweb:x:1001:\nextra:x:2000:web,root\nother:x:3000:\n")
    (path / "home/web").mkdir(parents=True)
    os.chown(path / "home/web", 1000, 1001)
    (path / "tmp").mkdir(mode=0o1777)
    (path / "tmp").chmod(0o1777)
    return path


class RuntimeNode:
    """A running keeper and supervisor, and a way to make plans for it."""

    def __init__(self, folder: Path, rootfs: Path, name: str) -> None:
        self.root = folder / "run"
        self.folder = folder
        self.rootfs = rootfs
        self.cgroup_parent = f"/orch-test-{name}/node"
        self.top_cgroup = f"orch-test-{name}"
        self._count = 0

    def start(self, **options: Any) -> RuntimeNode:
        """Start the keeper."""
        ensure_keeper(str(self.root), self.cgroup_parent, **options)
        return self

    def client(self) -> RuntimeClient:
        """Connect."""
        return RuntimeClient(str(self.root / "runtime.sock"), timeout_s=30.0)

    def plan(
        self,
        args: Sequence[str],
        *,
        container_id: str = "",
        change: Callable[[dict[str, Any]], object] | None = None,
        log: LogOptions | None = None,
        lower: Sequence[str] = (),
        **options: Any,
    ) -> Plan:
        """Make a plan with an overlay of its own; `change` edits the OCI config."""
        self._count += 1
        container_id = container_id or f"t{self._count}"
        config = default_config(args=args, hostname="box")
        if change is not None:
            change(config)
        layers = self.folder / "layers" / container_id
        for part in ("upper", "work"):
            (layers / part).mkdir(parents=True, exist_ok=True)
        return compile_config(
            config,
            rootfs=OverlayRootfs((*lower, str(self.rootfs)), str(layers / "upper"), str(layers / "work")),
            container_id=container_id,
            log=log or LogOptions(str(self.log_path(container_id))),
            **options,
        )

    def log_path(self, container_id: str) -> Path:
        """Where a container's log is."""
        return self.folder / f"{container_id}.log"

    def output(self, container_id: str, stream: str = "") -> str:
        """Return what a container has written."""
        path = self.log_path(container_id)
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return "".join(record["log"] for record in records if stream in ("", record["stream"]))

    def run_to_end(self, client: RuntimeClient, plan: Plan, timeout_s: float = 15.0) -> tuple[ContainerState, str]:
        """Run, wait for the exit, delete; returns the final state and the output."""
        client.run(plan)
        state = self.wait_exit(client, plan["id"], timeout_s)
        client.delete(plan["id"])
        return state, self.output(plan["id"])

    def wait_exit(self, client: RuntimeClient, container_id: str, timeout_s: float = 15.0) -> ContainerState:
        """Wait until a container has exited."""

        def exited() -> ContainerState | None:
            state = client.state(container_id)
            return state if state.status == "exited" else None

        state: ContainerState = wait_for(exited, f"exit of {container_id}", timeout_s)
        return state

    def pids(self) -> Mapping[str, int]:
        """Return the process ids of keeper and supervisor."""
        with self.client() as client:
            version = client.version()
        return {"supervisor": int(version["pid"]), "keeper": int(version["keeper_pid"])}

    def stop(self) -> None:
        """Stop everything and remove every trace."""
        try:
            client = self.client()
        except Unavailable:
            self.start()
            client = self.client()
        with client:
            keeper = int(client.version()["keeper_pid"])
            client.shutdown(force=True)
        wait_for(lambda: not _alive(keeper), "end of the keeper")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def kill_and_wait(pid: int) -> None:
    """Kill -9, and wait until the process is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not _alive(pid), f"death of {pid}")


def first_exit(client: RuntimeClient, container_id: str, timeout_s: float = 15.0) -> ExitEvent:
    """Return the exit event of a container."""
    for event in client.events(timeout_s):
        if isinstance(event, ExitEvent) and event.id == container_id:
            return event
    raise AssertionError(f"no exit event of {container_id}")
