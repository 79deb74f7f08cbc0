"""Bundles and the daemonless `orch-runtime` command line for tests."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from orch_runtime.cgroups.interface import remove_tree
from orch_runtime.config import default_config


class OciRoot:
    """A `--root` of its own, with bundles whose groups are below one folder."""

    def __init__(self, folder: Path, rootfs: Path) -> None:
        self.folder = folder
        self.rootfs = rootfs
        self.top = f"orch-test-{uuid.uuid4().hex[:8]}"
        self.root = folder / "root"

    def config(self, *args: str) -> dict[str, Any]:
        """Return a config running `args`; the rootfs is writable, as the tests' own copy is."""
        config = default_config(args=list(args), env=["PATH=/bin:/usr/bin"])
        config["root"]["path"] = str(self.rootfs)
        return config

    def bundle(self, container_id: str, config: dict[str, Any]) -> Path:
        """Write a bundle; returns its folder."""
        config["linux"].setdefault("cgroupsPath", f"/{self.top}/{container_id}")
        folder = self.folder / f"bundle-{container_id}"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def command(self, *words: str, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "orch_runtime.command", "--root", str(self.root), *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            **options,
        )

    def run(self, container_id: str, config: dict[str, Any], *flags: str) -> subprocess.CompletedProcess[str]:
        """Run a container in the foreground."""
        return self.command("run", "--bundle", str(self.bundle(container_id, config)), *flags, container_id)

    def detached(self, verb: str, container_id: str, config: dict[str, Any], *flags: str) -> int:
        """Create or run a container that keeps no stream of ours; returns the exit code."""
        bundle = self.bundle(container_id, config)
        words = [sys.executable, "-m", "orch_runtime.command", "--root", str(self.root), verb, "--bundle", str(bundle)]
        nowhere = subprocess.DEVNULL
        return subprocess.run(
            [*words, *flags, container_id], stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=30, check=False
        ).returncode

    def state(self, container_id: str) -> dict[str, Any]:
        """Return a container's state."""
        document: dict[str, Any] = json.loads(self.command("state", container_id).stdout)
        return document

    def groups(self) -> list[Path]:
        """Return what is left of the containers' groups."""
        return [path for path in Path("/sys/fs/cgroup").glob(f"*/{self.top}/*") if path.is_dir()]

    def clean(self) -> None:
        """Delete every container and the folder of groups."""
        for container_id in self.command("list", "-q").stdout.split():
            self.command("delete", "--force", container_id)
        for path in Path("/sys/fs/cgroup").glob(f"*/{self.top}"):
            remove_tree(str(path))
