"""OCI configs to plans: what is accepted, what is refused, and how it is said."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_runtime.capabilities import NUMBERS
from orch_runtime.config import DEFAULT_CAPABILITIES, compile_config, default_config
from orch_runtime.errors import InvalidConfig
from orch_runtime.plan import BindRootfs, OverlayRootfs, Plan

ROOTFS = OverlayRootfs(("/l/a", "/l/b"), "/u", "/w")


def _compile(config: dict[str, Any], **options: Any) -> Plan:
    return compile_config(config, **{"rootfs": ROOTFS, "container_id": "c", **options})


def _config() -> dict[str, Any]:
    return default_config(args=["true"])


def test_default_config_compiles() -> None:
    """The secure default is a valid config, its plan is plain JSON, and it stages the kernel's trees."""
    plan = _compile(_config())
    assert json.loads(json.dumps(plan)) == plan
    assert [stage["target"] for stage in plan["stage"]] == ["/proc", "/dev", "/sys/fs/cgroup"]
    assert [mount["target"] for mount in plan["mounts"]] == ["/sys"]
    assert plan["limits"]["pids_max"] == 4096
    assert plan["process"]["no_new_privileges"]


def test_default_capabilities() -> None:
    """NET_RAW and MKNOD are not among the defaults; the rest of Docker's fourteen are."""
    assert len(DEFAULT_CAPABILITIES) == 12
    assert not {"CAP_NET_RAW", "CAP_MKNOD", "CAP_SYS_ADMIN"} & set(DEFAULT_CAPABILITIES)
    assert set(DEFAULT_CAPABILITIES) <= set(NUMBERS)


def test_same_stages_same_key() -> None:
    """Plans that differ only in what is not staged share pooled children."""
    one = _config()
    other = _config()
    other["process"]["args"] = ["other"]
    other["mounts"].append({"destination": "/data", "type": "bind", "source": "/data", "options": ["rbind"]})
    assert _compile(one)["stage_key"] == _compile(other)["stage_key"]
    other["linux"]["maskedPaths"].remove("/proc/keys")
    assert _compile(one)["stage_key"] != _compile(other)["stage_key"]


def test_bind_below_a_stage_keeps_its_place() -> None:
    """A bind below /dev or /proc is mounted on top of the staged tree, and is not masked away."""
    config = _config()
    config["mounts"].append({"destination": "/dev/thing", "type": "bind", "source": "/dev/null", "options": ["bind"]})
    config["mounts"].append({"destination": "/proc/keys", "type": "bind", "source": "/etc/hosts", "options": ["bind"]})
    plan = _compile(config)
    assert [mount["target"] for mount in plan["mounts"]] == ["/sys", "/dev/thing", "/proc/keys"]
    assert "/proc/keys" not in plan["stage"][0]["masked"]


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (lambda c: c.update(hooks={"prestart": [{}]}), "hooks", "not supported"),
        (lambda c: c["linux"].update(seccomp={"defaultAction": "x"}), "linux.seccomp.defaultAction", "not supported"),
        (lambda c: c["process"].update(terminal=True), "process.terminal", "not supported"),
        (lambda c: c["process"].update(args=[]), "process.args", "must name a program"),
        (lambda c: c["process"].update(args="true"), "process.args", "must be a list"),
        (lambda c: c["process"].update(env=["NOVALUE"]), "process.env[0]", "NAME=value"),
        (lambda c: c["process"].update(cwd="rel"), "process.cwd", "absolute"),
        (lambda c: c["process"]["user"].update(uid=-1), "process.user.uid", "between"),
        (lambda c: c["process"].update(apparmorProfile="x"), "process.apparmorProfile", "not supported"),
        (lambda c: c["process"]["capabilities"]["bounding"].append("CAP_X"), "capabilities.bounding[12]", "not a cap"),
        (lambda c: c["linux"]["namespaces"].append({"type": "user"}), "linux.namespaces[6].type", "not supported"),
        (lambda c: c["linux"]["namespaces"].pop(0), "linux.namespaces", "pid namespace"),
        (lambda c: c["linux"]["sysctl"].update({"vm.swappiness": "1"}), "linux.sysctl.vm.swappiness", "namespace"),
        (lambda c: c["mounts"].append({"destination": "/", "type": "tmpfs"}), "mounts[7].destination", "rootfs"),
        (lambda c: c["mounts"].append({"destination": "/a/../b", "type": "tmpfs"}), "mounts[7].destination", "'..'"),
        (lambda c: c["mounts"].append({"destination": "/a", "type": "nfs"}), "mounts[7].type", "not supported"),
        (
            lambda c: c["mounts"].append({"destination": "/a", "source": "/b", "options": ["rshared", "bind"]}),
            "mounts[7].options[0]",
            "not supported",
        ),
        (lambda c: c["linux"]["resources"].update(memory={"limit": 1000}), "memory.limit", "at least"),
        (lambda c: c["linux"]["resources"].update(memory={"swap": 1 << 30}), "memory.swap", "needs"),
        (lambda c: c["linux"]["resources"].update(cpu={"cpus": "0"}), "resources.cpu.cpus", "not supported"),
        (lambda c: c.update(ociVersion="2.0.0"), "ociVersion", "1.x"),
        (lambda c: c.update(hostname="h" * 65), "hostname", "64"),
    ],
)
def test_refusals_name_the_place(change: Any, where: str, what: str) -> None:
    """What is wrong or not supported is refused with the JSON path and the reason."""
    config = _config()
    change(config)
    with pytest.raises(InvalidConfig) as caught:
        _compile(config)
    assert where in caught.value.path
    assert what in str(caught.value)


@pytest.mark.parametrize("container_id", ["", ".", "../x", "a/b", "a b", "-a", "x" * 129])
def test_bad_ids(container_id: str) -> None:
    """An id that could not be a file name is refused."""
    with pytest.raises(InvalidConfig):
        _compile(_config(), container_id=container_id)


def test_bad_rootfs() -> None:
    """Layers that overlayfs could not be told of, and relative paths, are refused."""
    for rootfs in (
        OverlayRootfs((), "/u", "/w"),
        OverlayRootfs(("/a:b",), "/u", "/w"),
        OverlayRootfs(("/a",), "u", "/w"),
        BindRootfs("rel"),
    ):
        with pytest.raises(InvalidConfig):
            _compile(_config(), rootfs=rootfs)


def test_host_network_sysctl_is_refused() -> None:
    """A network sysctl for a container on the host's network would change the host, so it is an error."""
    config = default_config(args=["true"], host_network=True)
    assert _compile(config)["network"] == "host"
    config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    with pytest.raises(InvalidConfig):
        _compile(config)


def test_netns_path() -> None:
    """A network namespace given by path is joined, whatever the config's list says."""
    plan = _compile(_config(), netns_path="/run/netns/x")
    assert (plan["network"], plan["netns_path"]) == ("path", "/run/netns/x")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["process", "linux", "mounts", "root", "hostname", "annotations", "ociVersion", "x"]),
)
def test_any_json_compiles_or_is_refused(value: Any, key: str) -> None:
    """Whatever JSON stands under a key, the outcome is a plan or an InvalidConfig, never another exception."""
    config = _config()
    config[key] = value
    with contextlib.suppress(InvalidConfig):
        assert _compile(config)["id"] == "c"
