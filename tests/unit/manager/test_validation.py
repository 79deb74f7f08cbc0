"""What makes no sense is refused before anything changes, with every problem named."""

from __future__ import annotations

from typing import Any

import pytest

from orch_manager.control import validation
from orch_proto.specs_pb2 import StackSpec


def stack() -> StackSpec:
    spec = StackSpec(name="shop")
    web = spec.services.add()
    web.annotations.name = "shop_web"
    web.task.container.image = "web:1"
    return spec


def test_a_sound_stack_has_no_problems() -> None:
    """The smallest stack is valid."""
    assert list(validation.stack(stack())) == []


def _port(web: Any, **fields: Any) -> None:
    web.endpoint.ports.add(target_port=80, **fields)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda web: web.task.container.ClearField("image"), "an image is missing"),
        (lambda web: setattr(web.annotations, "name", "-x"), "is no name for a service"),
        (lambda web: setattr(web.mode.replicated, "replicas", 10_001), "at most 10000"),
        (lambda web: web.mode.global_job.SetInParent(), "mode global-job is not supported yet"),
        (lambda web: web.task.placement.constraints.append("zone == a"), "there is no key 'zone'"),
        (lambda web: web.task.placement.preferences.add(spread_descriptor="zone"), "is no preference"),
        (lambda web: setattr(web.update, "max_failure_ratio", 1.5), "0 to 1 are possible"),
        (lambda web: web.task.container.mounts.add(type=1, source="x", target="data"), "must be absolute"),
        (lambda web: [web.task.container.mounts.add(type=3, target=t) for t in ("/d", "/d/")], "have the target /d"),
        (lambda web: setattr(web.task.resources.reservations, "memory_bytes", 1), "at least 4 MiB"),
        (lambda web: [_port(web, published_port=80) for _ in range(2)], "port 80 is published twice"),
        (lambda web: setattr(web.endpoint, "mode", 2) or _port(web, published_port=80), "dnsrr cannot publish"),
        (lambda web: web.task.container.healthcheck.test.append("curl"), "healthcheck test begins with 'curl'"),
        (lambda web: web.task.networks.add(target="a") and web.task.networks.add(target="a"), "attached twice"),
        (lambda web: web.depends_on.add(service="shop_db"), "which is not in the stack"),
        (lambda web: web.depends_on.add(service="shop_web"), "in a circle: shop_web -> shop_web"),
    ],
)
def test_each_mistake_is_named(change: Any, problem: str) -> None:
    """The problem's sentence says what is wrong."""
    spec = stack()
    change(spec.services[0])
    assert any(problem in each for each in validation.stack(spec)), list(validation.stack(spec))


def test_all_problems_are_told_at_once() -> None:
    """A file with three mistakes is corrected in one go."""
    spec = stack()
    spec.name = "Shop!"
    spec.services[0].task.container.ClearField("image")
    spec.secrets.add().annotations.name = "shop_key"
    assert len(list(validation.stack(spec))) == 3
