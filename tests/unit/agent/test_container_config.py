"""A task's specification as the runtime's configuration."""

from __future__ import annotations

import pytest

from orch_agent.errors import TaskFailure
from orch_agent.images.model import ImageConfig
from orch_agent.task import process
from orch_agent.task.container_config import capabilities, container_config, resources, rlimits
from orch_agent.task.templates import NodeFacts, expand
from orch_proto import objects_pb2 as objects
from orch_proto import specs_pb2 as specs
from orch_proto import types_pb2 as types
from orch_runtime.config import DEFAULT_CAPABILITIES, compile_config
from orch_runtime.plan import OverlayRootfs

NODE = NodeFacts("node-id", "alpha", "linux", "amd64")
IMAGE = ImageConfig(entrypoint=("/entry",), cmd=("serve", "-v"), env=("A=image", "B=image"), working_dir="/srv")


def task(**container: object) -> objects.Task:
    spec = specs.ContainerSpec(image="web:1", **container)  # type: ignore[arg-type]
    return objects.Task(id="t" * 25, slot=2, service_name="shop_web", spec=specs.TaskSpec(container=spec))


def test_arguments_follow_dockers_rules() -> None:
    """An entrypoint of the service drops the image's CMD; a command keeps the image's entrypoint; [] empties it."""
    assert process.arguments(specs.ContainerSpec(), IMAGE) == ("/entry", "serve", "-v")
    assert process.arguments(specs.ContainerSpec(args=["x"], args_set=True), IMAGE) == ("/entry", "x")
    assert process.arguments(specs.ContainerSpec(args_set=True), IMAGE) == ("/entry",)
    assert process.arguments(specs.ContainerSpec(entrypoint=["/own"], entrypoint_set=True), IMAGE) == ("/own",)
    both = specs.ContainerSpec(entrypoint=["/own"], entrypoint_set=True, args=["a"], args_set=True)
    assert process.arguments(both, IMAGE) == ("/own", "a")


def test_the_services_variables_win() -> None:
    """A service's variable replaces the image's, a bare name unsets it, templates are filled in."""
    environment = process.environment(task(env=["A=own", "B", "WHO={{.Task.Slot}}@{{.Node.Hostname}}"]), IMAGE, NODE)
    values = dict(entry.split("=", 1) for entry in environment)
    assert values["A"] == "own"
    assert "B" not in values
    assert values["WHO"] == "2@alpha"
    assert values["PATH"]
    assert values["HOSTNAME"] == "t" * 12


def test_unknown_placeholders_are_left_alone() -> None:
    """Braces that are not ours may be meant for the program."""
    assert expand("{{.Foo}} {{ .Service.Name }}", task(), NODE) == "{{.Foo}} shop_web"


def test_capabilities_are_added_and_dropped() -> None:
    """ALL and names with and without CAP_ work as in Docker; an unknown name is refused."""
    assert set(capabilities([], [])) == set(DEFAULT_CAPABILITIES)
    assert "CAP_NET_RAW" in capabilities(["net_raw"], [])
    assert capabilities(["CAP_CHOWN"], ["ALL"]) == ["CAP_CHOWN"]
    assert "CAP_KILL" not in capabilities(["ALL"], ["KILL"])
    with pytest.raises(TaskFailure, match="NET_SPELL"):
        capabilities(["NET_SPELL"], [])


def test_limits_become_quota_shares_and_memory() -> None:
    """Half a CPU is 50 ms of 100; a reservation of a CPU is 1024 shares; memory is passed as it is."""
    wanted = resources(
        types.Limits(nano_cpus=500_000_000, memory_bytes=64 << 20), types.Resources(nano_cpus=1_000_000_000)
    )
    assert wanted["cpu"] == {"quota": 50_000, "period": 100_000, "shares": 1024}
    assert wanted["memory"] == {"limit": 64 << 20}


def test_open_files_are_limited_by_default() -> None:
    """A task without ulimits has a soft limit of 1024 open files, and one it asks for replaces it."""
    assert [limit["soft"] for limit in rlimits([]) if limit["type"] == "RLIMIT_NOFILE"] == [1024]
    own = rlimits([types.Ulimit(name="nofile", soft=99, hard=-1)])
    assert own == [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": (1 << 64) - 1}]


def test_every_configuration_compiles() -> None:
    """What the agent writes, the runtime takes."""
    wish = task(
        cap_add=["NET_ADMIN"],
        sysctls={"net.core.somaxconn": "1024"},
        ulimits=[types.Ulimit(name="core", soft=0, hard=0)],
        read_only_root=True,
        hostname="web-{{.Task.Slot}}",
        shm_size_bytes=1 << 20,
        oom_score_adj=100,
    )
    config = container_config(wish, IMAGE, ("/entry",), (), NODE)
    rootfs = OverlayRootfs(lower=("/l",), upper="/u", work="/w")
    plan = compile_config(config, rootfs=rootfs, container_id=wish.id)
    assert plan["hostname"] == "web-2"
    assert plan["rootfs"]["readonly"] is True
    assert ["net/core/somaxconn", "1024"] in plan["sysctls"]
    assert plan["process"]["cwd"] == "/srv"
