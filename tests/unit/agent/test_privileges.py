"""Privileges: what a container asks for, what a node's policy allows, and what they make of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from orch_agent.errors import TaskFailure
from orch_agent.images.model import ImageConfig
from orch_agent.task.container_config import container_config
from orch_agent.task.privileges import check_policy, open_up, own_capabilities
from orch_agent.task.templates import NodeFacts
from orch_proto import privileges
from orch_proto.objects_pb2 import Task
from orch_proto.specs_pb2 import ContainerSpec
from orch_proto.types_pb2 import MOUNT_TYPE_BIND, DeviceMapping, Mount
from orch_runtime.capabilities import NUMBERS

NODE = NodeFacts("n1", "one", "linux", "amd64")


def binding(source: str, *, read_only: bool = False) -> ContainerSpec:
    return ContainerSpec(mounts=[Mount(type=MOUNT_TYPE_BIND, source=source, target="/x", read_only=read_only)])


@pytest.mark.parametrize("source", ["/", "/etc", "/etc/passwd", "/var", "/var/run/docker.sock", "/srv/../proc"])
def test_sensitive_binds_are_asked_for(source: str) -> None:
    """Folders with the node's settings, programs and sockets, what is below them and above them, need a policy."""
    assert privileges.wanted(binding(source))[0].startswith("bind:")


def test_other_binds_need_no_policy() -> None:
    """Data folders, and the node's time zone for reading, are anybody's."""
    assert privileges.wanted(binding("/srv/data")) == ()
    assert privileges.wanted(binding("/etc/localtime", read_only=True)) == ()
    assert privileges.wanted(binding("/etc/localtime")) == ("bind:/etc/localtime",)


def test_what_a_policy_allows() -> None:
    """A policy allows its own word and what is below its path; privileged allows all; nothing is allowed by default."""
    asked = ("host-network", "device:/dev/snd/timer", "bind:/etc/ssl")
    assert privileges.first_refused(asked, ()) == "host-network"
    assert privileges.first_refused(asked, ("host-network", "device:/dev/snd", "bind:/etc")) == ""
    assert privileges.first_refused(("bind:/etcetera",), ("bind:/etc",)) == "bind:/etcetera"
    assert privileges.first_refused(("device:/dev/a",), ("bind:/",)) == "device:/dev/a"
    assert privileges.first_refused(asked, ("privileged",)) == ""


def test_policies_are_checked_as_they_are_written() -> None:
    """A word that is no policy is told with what may be written."""
    assert all(
        not privileges.check_policy(word) for word in ("privileged", "host-network", "device:/dev/fuse", "bind:/")
    )
    for word in ("all", "device:fuse", "bind", "bind:"):
        assert "write privileged" in privileges.check_policy(word)


def test_the_agent_follows_links(tmp_path: Path) -> None:
    """A link to a sensitive folder is as sensitive as the folder."""
    (tmp_path / "link").symlink_to("/etc")
    task = Task()
    task.spec.container.CopyFrom(binding(str(tmp_path / "link")))
    with pytest.raises(TaskFailure, match="bind:/etc"):
        check_policy(task, (), NODE)
    check_policy(task, ("bind:/etc",), NODE)


def config_of(task: Task) -> dict[str, object]:
    config = container_config(task, ImageConfig(), ["sh"], [], NODE)
    open_up(config, task)
    return config


def test_a_device_is_made_and_allowed() -> None:
    """A device has its node's numbers, the path asked for, and a rule with the permissions asked for."""
    task = Task()
    task.spec.container.devices.append(
        DeviceMapping(host_path="/dev/full", container_path="/dev/mine", permissions="r")
    )
    config = config_of(task)
    assert config["linux"]["devices"][0]["path"] == "/dev/mine"  # type: ignore[index]
    rule = config["linux"]["resources"]["devices"][-1]  # type: ignore[index]
    assert rule == {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "r"}
    task.spec.container.devices[0].host_path = "/etc/hosts"
    with pytest.raises(TaskFailure, match="no device"):
        config_of(task)


def test_privileged_is_everything_and_its_absence_nothing() -> None:
    """A privileged task has all capabilities that there are, nothing masked and all devices; another one none of it."""
    task = Task()
    plain = config_of(task)
    assert "devices" not in plain["linux"]  # type: ignore[operator]
    task.spec.container.privileges.privileged = True
    config = config_of(task)
    assert config["linux"]["maskedPaths"] == []  # type: ignore[index]
    assert config["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]  # type: ignore[index]
    process = config["process"]
    assert isinstance(process, dict)
    effective = set(process["capabilities"]["effective"])
    assert effective == set(NUMBERS) & own_capabilities(), "no more than the node has itself"
    assert process["noNewPrivileges"] is False


@pytest.mark.parametrize("asked", ["privileged", "seccomp"])
def test_no_filter_of_system_calls_where_none_is_asked_for(asked: str) -> None:
    """A privileged task, and one that asks for seccomp=unconfined, have no filter; another one has the default."""
    task = Task()
    config = container_config(task, ImageConfig(), ["sh"], [], NODE)
    open_up(config, task)
    assert config["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    if asked == "privileged":
        task.spec.container.privileges.privileged = True
    else:
        task.spec.container.privileges.seccomp = "unconfined"
    config = container_config(task, ImageConfig(), ["sh"], [], NODE)
    open_up(config, task)
    assert config["linux"].get("seccomp") is None


def test_a_profile_of_the_services_own() -> None:
    """It takes the default's place, also in a privileged container; one that cannot be read names the place."""
    task = Task()
    task.spec.container.privileges.seccomp = '{"defaultAction": "SCMP_ACT_ALLOW"}'
    task.spec.container.privileges.privileged = True
    config = container_config(task, ImageConfig(), ["sh"], [], NODE)
    open_up(config, task)
    assert config["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW"
    for text, where in (("[]", "seccomp: must be"), ("{", "JSON"), ('{"defaultAction": "a", "rules": [1]}', "rules")):
        task.spec.container.privileges.seccomp = text
        with pytest.raises(TaskFailure, match=where):
            container_config(task, ImageConfig(), ["sh"], [], NODE)


def test_leaving_the_default_filter_needs_the_nodes_policy() -> None:
    """The word is seccomp, for none and for one of the service's own; the default asks for nothing."""
    container = ContainerSpec()
    assert privileges.wanted(container) == ()
    container.privileges.seccomp = "unconfined"
    assert privileges.wanted(container) == ("seccomp",)
    assert privileges.first_refused(["seccomp"], ()) == "seccomp"
    assert privileges.first_refused(["seccomp"], ("seccomp",)) == ""
    assert privileges.check_policy("seccomp") == ""
