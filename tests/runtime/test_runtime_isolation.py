"""What a container sees, and what it cannot reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orch_runtime.client import RuntimeClient
from orch_runtime.config import DEFAULT_CAPABILITIES
from orch_runtime.config.default_seccomp import default_profile
from orch_runtime.config.seccomp_profile import Host, resolve_profile
from orch_runtime.errors import KernelError, StartFailed
from runtime.runtime_node import RuntimeNode, wait_for


def _shell(node: RuntimeNode, client: RuntimeClient, script: str, **options: Any) -> str:
    state, output = node.run_to_end(client, node.plan(["sh", "-c", script], **options))
    assert state.exit_code == 0, output
    return output


def test_namespaces(node: RuntimeNode, client: RuntimeClient) -> None:
    """A container has its own pid, mount, uts, ipc, cgroup and network namespaces."""
    kinds = ("pid", "mnt", "uts", "ipc", "cgroup", "net")
    output = _shell(node, client, "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds))
    own = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in kinds]
    inside = output.split()
    assert len(inside) == len(kinds)
    assert not set(inside) & set(own)


def test_processes_and_name(node: RuntimeNode, client: RuntimeClient) -> None:
    """The program is pid 1, sees no process of the host, and has the host name it was given."""
    output = _shell(node, client, "hostname; echo $$; ls -d /proc/[0-9]*")
    assert output.split()[:3] == ["box", "1", "/proc/1"]
    assert len(output.split()) <= 4


def test_loopback_only(node: RuntimeNode, client: RuntimeClient) -> None:
    """A new network namespace has loopback, up, and nothing else."""
    lines = _shell(node, client, "ip -o link; ls /sys/class/net").splitlines()
    assert "lo" in lines[0]
    assert "UP" in lines[0]
    assert lines[1:] == ["lo"]


def test_host_files_are_out_of_reach(node: RuntimeNode, client: RuntimeClient) -> None:
    """After the change of root no mount of the host is left, and .. ends at the container's root."""
    output = _shell(node, client, "ls /../../; cat /proc/self/mountinfo")
    assert "home" in output.split()
    # Mount targets on the left of " - ": none is below the host's own folders.
    targets = {line.split()[4] for line in output.splitlines() if " - " in line}
    assert "/" in targets
    assert not [target for target in targets if target.startswith((str(node.folder), "/work", "/mnt"))]


def test_capabilities_and_no_new_privileges(node: RuntimeNode, client: RuntimeClient) -> None:
    """Root in a container has the twelve default capabilities, none inheritable or ambient, and no way to more."""
    output = _shell(node, client, "grep -E 'Cap|NoNew' /proc/self/status")
    status = dict(line.split(":\t") for line in output.splitlines())
    # CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT AUDIT_WRITE SETFCAP
    assert int(status["CapBnd"], 16) == int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0xA00405FB
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_masked_and_readonly_paths(node: RuntimeNode, client: RuntimeClient) -> None:
    """Masked files are empty, masked folders too, and /proc/sys, /sys and the cgroup tree cannot be written."""
    script = """
    cat /proc/keys /proc/timer_list /proc/interrupts; ls /sys/firmware /proc/acpi 2>/dev/null | grep -v :
    for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/uevent_seqnum /sys/fs/cgroup/pids/pids.max; do
        (echo x > $f) 2>/dev/null && echo wrote $f
    done
    mount -o remount,rw /proc/sys 2>/dev/null && echo remounted
    true
    """
    assert _shell(node, client, script).strip() == ""


def test_devices(node: RuntimeNode, client: RuntimeClient) -> None:
    """The usual devices work, and no other can be made or opened."""
    script = """
    echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c
    ls -l /dev/fd /dev/stdout /dev/ptmx | wc -l
    mknod /dev/kmsg c 1 11 2>/dev/null && echo made
    true
    """
    assert _shell(node, client, script).split() == ["4", "4", "3"]


def test_readonly_rootfs(node: RuntimeNode, client: RuntimeClient) -> None:
    """With a read-only root nothing can be written but to the mounts that allow it."""
    output = _shell(
        node,
        client,
        "touch /x 2>/dev/null && echo root; touch /dev/shm/x && echo shm; pwd",
        change=lambda config: (config["root"].update(readonly=True), config["process"].update(cwd="/made/here")),
    )
    assert output.split() == ["shm", "/made/here"]


def test_binds(node: RuntimeNode, client: RuntimeClient) -> None:
    """Folders and files can be bound, read-only ones stay so, and their targets are made where missing."""
    source = node.folder / "data"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("content\n")

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [
            {"destination": "/data/deep", "type": "bind", "source": str(source), "options": ["rbind", "rw"]},
            {"destination": "/etc/conf", "type": "bind", "source": str(source / "file"), "options": ["bind", "ro"]},
            {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=700"]},
        ]

    script = """
    cat /etc/conf; echo new > /data/deep/sub/out; (echo x > /etc/conf) 2>/dev/null && echo wrote
    stat -c %a /scratch; dd if=/dev/zero of=/scratch/f bs=1k count=128 2>/dev/null || echo full
    """
    assert _shell(node, client, script, change=change).split() == ["content", "700", "full"]
    assert (source / "sub/out").read_text() == "new\n"


def test_symlinked_target_cannot_escape(node: RuntimeNode, client: RuntimeClient) -> None:
    """A mount target that an image made a symlink to the host is resolved inside the container's root."""
    layer = node.folder / "evil"
    outside = node.folder / "outside"
    outside.mkdir()
    (layer / "inner").mkdir(parents=True)
    (layer / "data").symlink_to(str(outside))
    (layer / "up").symlink_to("../../../../../../../../inner")
    source = node.folder / "source"
    source.mkdir()
    (source / "mark").write_text("")

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [
            {"destination": "/up", "type": "bind", "source": str(source), "options": ["bind"]},
        ]

    assert "mark" in _shell(node, client, "ls /inner", change=change, lower=[str(layer)])

    def escape(config: dict[str, Any]) -> None:
        config["mounts"] += [
            {"destination": "/data/x", "type": "bind", "source": str(source), "options": ["bind"]},
        ]

    with pytest.raises(StartFailed):
        client.run(node.plan(["true"], change=escape, lower=[str(layer)]))
    assert list(outside.iterdir()) == []


def test_proc_must_not_be_a_symlink(node: RuntimeNode, client: RuntimeClient) -> None:
    """An image whose /proc is a symlink is refused: masked paths would be masked elsewhere."""
    layer = node.folder / "proclink"
    (layer / "elsewhere").mkdir(parents=True)
    (layer / "proc").symlink_to("elsewhere")
    with pytest.raises(StartFailed, match="/proc"):
        client.run(node.plan(["true"], lower=[str(layer)]))


def test_missing_bind_source_is_named(node: RuntimeNode, client: RuntimeClient) -> None:
    """A bind whose source does not exist fails with its path, and nothing of the container is left."""

    def change(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "/x", "type": "bind", "source": "/nowhere", "options": ["bind"]})

    plan = node.plan(["true"], change=change)
    with pytest.raises(StartFailed, match="/nowhere"):
        client.run(plan)
    assert plan["id"] not in [state.id for state in client.list()]


def test_missing_network_namespace_is_named(node: RuntimeNode, client: RuntimeClient) -> None:
    """A network namespace that is not there fails before anything is made."""
    with pytest.raises(KernelError, match="/run/no-such-netns"):
        client.run(node.plan(["true"], netns_path="/run/no-such-netns"))


def test_sysctls(node: RuntimeNode, client: RuntimeClient) -> None:
    """Unprivileged programs may listen on low ports and ping inside the container: the default sysctls are set."""
    output = _shell(
        node, client, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"
    )
    assert output.split() == ["0", "0", "2147483647"]


def test_many_layers(node: RuntimeNode, client: RuntimeClient) -> None:
    """A root file system of 60 layers with long names starts."""
    layers = []
    for number in range(60):
        layer = node.folder / "many" / f"layer-{number:03d}-{'x' * 100}"
        layer.mkdir(parents=True)
        (layer / f"f{number}").write_text("")
        layers.append(str(layer))
    assert _shell(node, client, "ls -d /f* | wc -l", lower=layers).strip() == "60"


@pytest.mark.parametrize(
    ("name", "gains", "options"),
    [("plain", False, {}), ("init", False, {"init": True}), ("user", False, {"user": "web"}), ("gains", True, {})],
)
def test_default_filter_of_system_calls(
    node: RuntimeNode, client: RuntimeClient, name: str, *, gains: bool, options: dict[str, Any]
) -> None:
    """The program, and commands that enter, run under the filter, as whoever and with or without new privileges."""

    def filtered(config: dict[str, Any]) -> None:
        config["linux"]["seccomp"] = resolve_profile(default_profile(), DEFAULT_CAPABILITIES, Host.here())
        config["process"]["noNewPrivileges"] = not gains

    script = "grep -E '^Seccomp|NoNew' /proc/self/status; unshare -m true; mount -t tmpfs t /tmp; sleep 100"
    client.run(node.plan(["sh", "-c", script], container_id=name, change=filtered, **options))
    wait_for(lambda: "mount:" in node.output(name), "the program's output")
    output = node.output(name)
    assert f"NoNewPrivs:\t{int(not gains)}" in output
    assert "Seccomp:\t2" in output
    assert "Seccomp_filters:\t1" in output or "Seccomp_filters" not in output
    assert output.count("Operation not permitted") + output.count("permission denied") >= 2, output
    entered = client.exec(name, ["sh", "-c", "grep ^Seccomp: /proc/self/status; unshare -m true"])
    assert "Seccomp:\t2" in entered.output
    assert "Operation not permitted" in entered.output
    client.delete(name, force=True)
