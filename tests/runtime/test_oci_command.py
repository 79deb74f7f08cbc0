"""The daemonless OCI command line on the real kernel."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.oci_bundle import OciRoot
from runtime.runtime_node import wait_for


@pytest.fixture(scope="module")
def oci(busybox_rootfs: Path) -> Iterator[OciRoot]:
    """A root with a writable rootfs; it leaves no group, no mount."""
    folder = Path(tempfile.mkdtemp(prefix="orch-oci-"))
    shutil.copytree(busybox_rootfs, folder / "rootfs", symlinks=True)
    root = OciRoot(folder, folder / "rootfs")
    try:
        yield root
    finally:
        root.clean()
        mounts = Path("/proc/self/mountinfo").read_text()
        shutil.rmtree(folder)
        assert str(folder) not in mounts


def test_run_gives_streams_and_exit_code_and_leaves_nothing(oci: OciRoot) -> None:
    """`run` in the foreground has the caller's streams, ends with the program's code, and leaves no group or state."""
    result = oci.run("fg", oci.config("sh", "-c", "read x; echo got$x; echo oops >&2; exit 7"))
    assert (result.returncode, result.stdout, result.stderr) == (7, "got\n", "oops\n")
    assert oci.groups() == []
    assert oci.command("list", "-q").stdout == ""


def test_life_cycle(oci: OciRoot) -> None:
    """create, start, exec, ps, update, pause, resume, kill and delete follow the OCI specification's states."""
    pid_file = oci.folder / "pid"
    assert oci.detached("create", "life", oci.config("sleep", "100"), "--pid-file", str(pid_file)) == 0
    state = oci.state("life")
    assert (state["status"], state["pid"]) == ("created", int(pid_file.read_text()))
    assert oci.command("start", "life").returncode == 0
    assert oci.state("life")["status"] == "running"
    assert oci.command("start", "life").returncode == 1
    result = oci.command("exec", "--user", "1000:1000", "--env", "A=b", "life", "sh", "-c", "id -u; echo $A; exit 3")
    assert (result.returncode, result.stdout) == (3, "1000\nb\n")
    assert json.loads(oci.command("ps", "--format", "json", "life").stdout) == [state["pid"]]
    assert oci.command("update", "--resources", "-", "life", stdin='{"pids": {"limit": 77}}').returncode == 0
    assert json.loads(oci.command("events", "--stats", "life").stdout)["data"]["pids"]["limit"] == 77
    assert oci.command("pause", "life").returncode == 0
    assert oci.state("life")["status"] == "paused"
    assert oci.command("resume", "life").returncode == 0
    assert "not stopped" in oci.command("delete", "life").stderr
    assert oci.command("kill", "life", "KILL").returncode == 0
    wait_for(lambda: oci.state("life")["status"] == "stopped", "end")
    assert "not running" in oci.command("kill", "life", "TERM").stderr
    assert oci.command("delete", "life").returncode == 0
    assert oci.groups() == []


def test_what_cannot_run_leaves_nothing(oci: OciRoot) -> None:
    """A program that is missing ends with 127, another failure names its place, and neither leaves a container."""
    missing = oci.run("bad", oci.config("nope"))
    assert (missing.returncode, "nope: executable file not found" in missing.stderr) == (127, True)
    config = oci.config("true")
    config["mounts"].append({"destination": "/x", "type": "bind", "source": "/does/not/exist", "options": ["bind"]})
    failed = oci.run("bad", config, "--pid-file", str(oci.folder / "never"))
    assert failed.returncode == 1
    assert "/does/not/exist: No such file" in failed.stderr
    log = oci.folder / "log"
    config = oci.config("true")
    config["process"]["cwd"] = "relative"
    bundle = str(oci.bundle("bad", config))
    assert oci.command("--log", str(log), "--log-format", "json", "create", "-b", bundle, "bad").returncode == 1
    assert json.loads(log.read_text())["msg"] == "process.cwd: must be an absolute path, not 'relative'"
    assert not (oci.folder / "never").exists()
    assert oci.groups() == []


def test_user_namespace(oci: OciRoot) -> None:
    """With a user namespace root of the container is the mapped user outside, and may set its own hostname."""
    config = oci.config("sh", "-c", "cat /proc/self/uid_map; id -u; hostname; echo 1 > /dev/null && echo device")
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    config["hostname"] = "inner"
    config["linux"]["sysctl"] = {}  # the default range of groups is wider than what is mapped
    os.chmod(oci.folder, 0o755)  # noqa: PTH101 -- the mapped user has to reach the rootfs
    for folder in (oci.rootfs, oci.rootfs / "dev"):
        folder.mkdir(exist_ok=True)
        os.chown(folder, 100000, 100000)
    try:
        result = oci.run("userns", config)
    finally:
        os.chown(oci.rootfs, 0, 0)
        os.chown(oci.rootfs / "dev", 0, 0)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["0", "100000", "65536", "0", "inner", "device"]


def test_hooks_run_in_order_with_the_state(oci: OciRoot) -> None:
    """Each hook gets the container's state on its standard input, in the order that the specification has."""
    log = oci.folder / "hooks"
    config = oci.config("true")
    stages = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    config["hooks"] = {
        stage: [
            {"path": "/bin/sh", "args": ["sh", "-c", f"echo {stage} $(grep -o '\"status\": \"[a-z]*\"') >> {log}"],
             "env": ["PATH=/usr/bin:/bin"]}
        ] for stage in stages
    }  # fmt: skip
    assert oci.run("hooks", config).returncode == 0
    words = [line.split() for line in log.read_text().splitlines()]
    assert [line[0] for line in words] == list(stages)
    assert [line[2] for line in words] == ['"created"', '"created"', '"created"', '"running"', '"stopped"']
    config["hooks"]["createRuntime"] = [{"path": "/bin/false"}]
    assert "createRuntime hook /bin/false: ended with 1" in oci.run("hooks", config).stderr


def test_seccomp_filters_by_call_and_argument(oci: OciRoot) -> None:
    """A filter refuses the calls it names, with the error it names, and only for the arguments it names."""
    config = oci.config("sh", "-c", "mkdir /tmp/d; sleep 0 && echo slept; kill -9 $$")
    config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]},
        ],
    }
    result = oci.run("seccomp", config)
    assert "No space left" in result.stderr
    assert result.stdout == "slept\n"
    assert result.returncode == 1


def test_terminal_goes_over_the_console_socket(oci: OciRoot) -> None:
    """With a terminal the program's streams are one of the container's own, whose other end the caller receives."""
    config = oci.config("sh", "-c", "tty; stty size")
    config["process"].update(terminal=True, consoleSize={"height": 33, "width": 99})
    path = oci.folder / "console"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(20)
        assert oci.detached("create", "tty", config, "--console-socket", str(path)) == 0
        connection, _ = listener.accept()
        _, descriptors, _, _ = socket.recv_fds(connection, 64, 1)
        connection.close()
    assert oci.command("start", "tty").returncode == 0
    wait_for(lambda: oci.state("tty")["status"] == "stopped", "end")
    output = os.read(descriptors[0], 4096).decode()
    os.close(descriptors[0])
    assert output.split() == ["/dev/pts/0", "33", "99"]
    assert oci.command("delete", "tty").returncode == 0


def test_nothing_of_the_host_leaks_in(oci: OciRoot) -> None:
    """The caller's descriptors stay outside the container unless they are preserved."""
    script = "ls /proc/self/fd | wc -l; cat <&3 2>/dev/null"
    with (oci.folder / "secret").open("w+") as file:
        file.write("preserved\n")
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        target = 3
        saved = os.dup(target) if Path(f"/proc/self/fd/{target}").exists() else -1
        os.dup2(file.fileno(), target, inheritable=True)
        try:
            bundle = str(oci.bundle("leak", oci.config("sh", "-c", script)))
            closed = oci.command("run", "-b", bundle, "leak", pass_fds=(target,))
            kept = oci.command("run", "-b", bundle, "--preserve-fds", "1", "leak", pass_fds=(target,))
        finally:
            os.close(target)
            if saved >= 0:
                os.dup2(saved, target, inheritable=False)
                os.close(saved)
    assert closed.stdout.split() == ["4"]
    assert kept.stdout.split() == ["5", "preserved"]


def test_the_interpreter_cannot_be_written_from_a_container(oci: OciRoot) -> None:
    """What a process on its way into a container shows as /proc/PID/exe lies on a read-only mount."""
    assert oci.detached("create", "exe", oci.config("sleep", "100")) == 0
    flags = os.statvfs(f"/proc/{oci.state('exe')['pid']}/exe").f_flag
    assert oci.command("delete", "--force", "exe").returncode == 0
    assert flags & os.ST_RDONLY


def test_symbolic_links_of_the_image_do_not_lead_mounts_out(oci: OciRoot) -> None:
    """A mount whose target is a symbolic link to the host's path lands inside the rootfs; /proc may not be a link."""
    outside = oci.folder / "outside"
    outside.mkdir()
    (oci.rootfs / "link").symlink_to(outside)
    inside = oci.rootfs / str(outside).lstrip("/")
    inside.mkdir(parents=True)
    config = oci.config("sh", "-c", f"echo x > /link/file; ls {outside}")
    config["mounts"].append({"destination": "/link", "type": "tmpfs", "source": "tmpfs"})
    result = oci.run("link", config)
    assert (result.stdout, list(outside.iterdir()), list(inside.iterdir())) == ("file\n", [], [])
    (oci.rootfs / "link").unlink()


def test_podman_runs_a_container(oci: OciRoot) -> None:
    """Podman drives orch-runtime: run, exec and rm, with the program's own exit codes."""
    podman = shutil.which("podman")
    runtime = shutil.which("orch-runtime")
    if podman is None or runtime is None:
        pytest.skip("podman or orch-runtime is not on PATH")
    store = oci.folder / "podman"
    words = [podman, "--root", str(store / "root"), "--runroot", str(store / "run"), "--tmpdir", str(store / "tmp"),
             "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", runtime,
             "--events-backend", "none"]  # fmt: skip

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, *arguments], capture_output=True, text=True, timeout=50, check=False)

    limits = ["--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1024:4096", "--network", "none"]
    try:
        done = run(
            "run", "--rm", *limits, "--cgroup-parent", f"/{oci.top}", "--rootfs", str(oci.rootfs), "sh", "-c",
            "echo from podman; exit 9",
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (9, "from podman\n"), done.stderr
    finally:
        run("rm", "--all", "--force")
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if str(store) in line:
                subprocess.run(["umount", "-l", line.split()[4]], check=False)
