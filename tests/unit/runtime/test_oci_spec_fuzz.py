"""Configs made wrong at random: the reader either takes them or names the place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orch_runtime.config import default_config
from orch_runtime.config.reader import Reader
from orch_runtime.config.resources import read_limits
from orch_runtime.errors import InvalidConfig
from orch_runtime.oci.cgroup import read_extra_writes
from orch_runtime.oci.spec import read_spec

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["/", "..", "/proc", "rbind", "a:b", "\0", "RLIMIT_CORE", "CAP_KILL", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _whole_config() -> dict[str, Any]:
    """Return a config that has every part the reader knows."""
    config = default_config(args=["sh"], env=["A=b"], hostname="h")
    config["process"].update(
        rlimits=[{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}], oomScoreAdj=5, apparmorProfile="p", selinuxLabel="l",
        consoleSize={"height": 1, "width": 2}, ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 3},
    )  # fmt: skip
    config["process"]["user"]["additionalGids"] = [1, 2]
    config["hooks"] = {"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 3}]}
    config["annotations"] = {"a": "b"}
    config["linux"]["namespaces"] += [{"type": "user"}, {"type": "time"}]
    config["linux"].update(
        uidMappings=[{"containerID": 0, "hostID": 1, "size": 2}],
        gidMappings=[{"containerID": 0, "hostID": 1, "size": 2}],
        devices=[{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 1, "gid": 2}],
        rootfsPropagation="rslave", cgroupsPath="/a/b", personality={"domain": "LINUX"},
        timeOffsets={"monotonic": {"secs": 1, "nanosecs": 2}}, mountLabel="l",
    )  # fmt: skip
    config["linux"]["resources"].update(
        memory={"limit": 1 << 26, "swap": 1 << 27, "swappiness": 3, "disableOOMKiller": True},
        cpu={"shares": 5, "quota": 5000, "period": 5000, "cpus": "0", "mems": "0", "burst": 1},
        blockIO={"weight": 10, "throttleReadBpsDevice": [{"major": 1, "minor": 2, "rate": 3}]},
        hugepageLimits=[{"pageSize": "2MB", "limit": 5}],
        network={"classID": 1, "priorities": [{"name": "lo", "priority": 1}]},
    )
    return config


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            found += _places(value[key], (*path, key))
    elif isinstance(value, list):
        for position, entry in enumerate(value[:4]):
            found += _places(entry, (*path, position))
    return found


_CONFIG = _whole_config()
_PLACES = st.sampled_from(_places(_CONFIG))


def _read(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    config = copy.deepcopy(_CONFIG)
    for path, value in changes:
        where: Any = config
        try:
            for key in path[:-1]:
                where = where[key]
            where[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    try:
        resources = read_spec(config, "/bundle").resources
        read_limits(Reader(resources, "linux.resources", []))
        for version in (1, 2):
            read_extra_writes(resources, version)
    except InvalidConfig:
        return


_CHANGES = st.lists(st.tuples(_PLACES, _VALUES), min_size=1, max_size=3)


def test_the_whole_config_is_taken() -> None:
    """A config with every part that the reader knows is read without an error, and no key of it is unknown."""
    assert read_spec(_CONFIG, "/bundle").unknown_keys == ()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_CHANGES)
def test_a_wrong_config_is_an_error_with_its_place(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Whatever stands in a config, reading it ends with values or with InvalidConfig, and with nothing else."""
    _read(changes)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=100_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_CHANGES)
def test_a_hundred_thousand_wrong_configs(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Of 100,000 wrong configs none crashes the reader."""
    _read(changes)
