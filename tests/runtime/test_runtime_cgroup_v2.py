"""The core of the cgroup v2 back end on a real cgroup2 mount; it needs no controller."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orch_runtime.cgroups import read_cgroup_mounts
from orch_runtime.cgroups.v2 import CgroupV2
from orch_runtime.kernel import process
from runtime.runtime_node import wait_for


def test_birth_freeze_kill(tmp_path: Path) -> None:
    """A process is born inside its group, can be frozen, and is killed while frozen; the group goes with it."""
    mount = read_cgroup_mounts()[1]
    if os.geteuid() != 0 or not mount:
        pytest.skip("needs root and a cgroup2 mount")
    backend = CgroupV2(mount, f"/orch-test-{os.getpid()}/n")
    try:
        backend.create("c")
        folder = backend.open_for_clone("c")
        pid, pidfd = process.clone3(0, folder)
        if pid == 0:
            while True:
                os.sched_yield()
        os.close(folder)
        assert backend.processes("c") == [pid]
        backend.freeze("c", frozen=True)
        events = Path(f"{mount}/orch-test-{os.getpid()}/n/c/cgroup.events")
        wait_for(lambda: "frozen 1" in events.read_text(), "frozen")
        backend.kill("c")
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        assert ended is not None
        assert ended.si_status == 9
        wait_for(lambda: backend.remove("c"), "removal")
        assert backend.names() == []
    finally:
        backend.remove("c")
        assert backend.remove_parent()
