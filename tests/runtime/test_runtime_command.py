"""The `orch-runtime` command line on a real node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from orch_runtime.config import default_config
from runtime.runtime_node import RuntimeNode, wait_for


def _command(node: RuntimeNode, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orch_runtime.command", "--root", str(node.root), *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _bundle(node: RuntimeNode, folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "rootfs").symlink_to(node.rootfs)
    config["root"]["path"] = str(node.rootfs)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_run_in_the_foreground(node: RuntimeNode, tmp_path: Path) -> None:
    """`run` gives the program the caller's streams, ends with its code, and leaves nothing."""
    bundle = _bundle(node, tmp_path / "b", default_config(args=["sh", "-c", "echo hello; echo oops >&2; exit 7"]))
    result = _command(node, "run", "--bundle", bundle, "fg")
    assert (result.returncode, result.stdout, result.stderr) == (7, "hello\n", "oops\n")
    assert json.loads(_command(node, "list", "--format", "json").stdout) == []


def test_oci_life(node: RuntimeNode, tmp_path: Path) -> None:
    """create, start, state, exec, kill, delete do what the OCI specification says."""
    bundle = _bundle(node, tmp_path / "b", default_config(args=["sleep", "100"]))
    pid_file = tmp_path / "pid"
    # A container holds the streams of its creator: with pipes, `communicate` would wait for its end.
    create = [sys.executable, "-m", "orch_runtime.command", "--root", str(node.root), "create", "-b", bundle]
    nowhere = subprocess.DEVNULL
    done = subprocess.run(
        [*create, "--pid-file", str(pid_file), "oci"], stdout=nowhere, stderr=nowhere, timeout=30, check=False
    )
    assert done.returncode == 0
    state = json.loads(_command(node, "state", "oci").stdout)
    assert (state["status"], state["bundle"], state["pid"]) == ("created", bundle, int(pid_file.read_text()))
    assert _command(node, "start", "oci").returncode == 0
    result = _command(node, "exec", "-u", "web", "oci", "sh", "-c", "id -u; exit 3")
    assert (result.returncode, result.stdout) == (3, "1000\n")
    assert _command(node, "delete", "oci").returncode == 1
    assert _command(node, "kill", "oci", "KILL").returncode == 0
    wait_for(lambda: json.loads(_command(node, "state", "oci").stdout)["status"] == "stopped", "end")
    assert _command(node, "delete", "oci").returncode == 0
    gone = _command(node, "state", "oci")
    assert gone.returncode == 1
    assert "no container 'oci'" in gone.stderr


def test_errors_for_people(node: RuntimeNode, tmp_path: Path) -> None:
    """A missing bundle, an unsupported key and a runtime that is not running each give one clear line."""
    missing = _command(node, "run", "-b", str(tmp_path / "none"), "x")
    assert missing.returncode == 1
    assert "config.json" in missing.stderr
    config = default_config(args=["true"])
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}
    refused = _command(node, "run", "-b", _bundle(node, tmp_path / "b", config), "x")
    assert (
        refused.stderr
        == "orch-runtime: linux.seccomp.listenerPath: user notification is not supported by this runtime\n"
    )
    unknown = _bundle(node, tmp_path / "c", default_config(args=["nope"]))
    assert _command(node, "run", "-b", unknown, "x").returncode == 127
    nobody = subprocess.run(
        [sys.executable, "-m", "orch_runtime.command", "--root", str(tmp_path), "version"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert nobody.returncode == 1
    assert "orch-runtime keeper" in nobody.stderr
