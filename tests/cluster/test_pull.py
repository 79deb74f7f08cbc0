"""Images come from a registry when a stack is deployed: a real registry on a node's own loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.playground_driver import Playground, on_node
from unit.images.archives import config_of, entry, folder, symlink, tar
from unit.images.registries import DOCKER_REGISTRY, Content, RealRegistry, image

pytestmark = pytest.mark.skipif(DOCKER_REGISTRY is None, reason="needs docker-registry")


def busybox_image(busybox: str, note: str) -> Content:
    """An image that sleeps; `note` tells one from another."""
    layer = tar(
        folder("bin"),
        entry("bin/busybox", Path(busybox).read_bytes(), mode=0o755),
        symlink("bin/sleep", "busybox"),
        symlink("bin/cat", "busybox"),
        entry("note", note.encode()),
    )
    return image([layer], config=config_of([layer], Cmd=["/bin/sleep", "1000"]))


@pytest.fixture
def registry(clean: Playground) -> Iterator[RealRegistry]:
    """A registry in the node's network namespace: its own loopback is the only way to it."""
    place = clean.folder / f"registry-{os.urandom(4).hex()}"
    place.mkdir()
    made = on_node(clean.node, lambda: RealRegistry(place).__enter__())
    try:
        yield made
    finally:
        made.__exit__()


def test_a_deploy_pulls_what_no_node_has_and_pins_it(clean: Playground, registry: RealRegistry, busybox: str) -> None:
    """The tag is looked up once; three tasks share one pull; a tag that moves counts with pull_policy always alone."""
    push = lambda note: on_node(clean.node, lambda: registry.push("app", "1", busybox_image(busybox, note)))  # noqa: E731
    push("first")
    text = (
        f"services:\n  web:\n    image: {registry.host}/app:1\n    init: true\n"
        "    deploy: {replicas: 3, update_config: {parallelism: 0, monitor: 0s}}\n"
    )
    clean.deploy("pulls", text)
    says = ("exec", "pulls_web", "cat", "/note")
    assert clean.orch(*says).stdout == "first"
    clean.orch("image", "pull", f"{registry.host}/app:1")
    push("second")
    clean.deploy("pulls", text)
    assert clean.orch(*says).stdout == "first", "the node's image of that name is used"
    clean.deploy("pulls", text.replace("    deploy", "    pull_policy: always\n    deploy"))
    assert clean.orch(*says).stdout == "second"
    registry.stop()
    goes_on = clean.deploy(
        "pulls", text.replace("    deploy", "    pull_policy: always\n    hostname: new\n    deploy")
    )
    assert "goes on with what the stack runs" in goes_on.stderr, goes_on
    assert clean.orch(*says).stdout == "second"
    on_node(clean.node, registry.start)
    never = clean.deploy("never", f"services:\n  a: {{image: {registry.host}/no:1, pull_policy: never}}\n", ok=False)
    assert "pull_policy is never" in never.stderr
    unknown = clean.deploy("unknown", f"services:\n  a: {{image: {registry.host}/no:1}}\n", ok=False)
    assert "no such image" in unknown.stderr
    clean.orch("stack", "rm", "pulls")
    clean.orch("image", "rm", "--force", f"{registry.host}/app:1")
