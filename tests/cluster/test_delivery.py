"""Images without a registry: nodes with image stores of their own, as hosts have, get them from each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import leaks
from cluster.conftest import build_test_image
from cluster.playground_driver import Playground, own_subnet

EVERYWHERE = """
services:
  web:
    image: IMAGE
    command: [sleep, "1000000"]
    stop_signal: KILL
    deploy: {replicas: 3, placement: {max_replicas_per_node: 1}}
"""


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> Iterator[Playground]:
    """A manager and two workers, whose image stores are not shared; `test:1` is on the manager's node alone."""
    made = Playground(f"delivery-{os.getpid()}", own_subnet(4), tmp_path_factory.mktemp("delivery"), workers=2)
    made.down()
    before = leaks.host(made.layout)
    made.up("--own-images")
    try:
        build_test_image(made, Path(busybox))
        yield made
    finally:
        made.down()
    left = leaks.settled_difference(before, lambda: leaks.host(made.layout))
    assert not left, f"the playground left behind: {left}"


def holders(apart: Playground, name: str) -> dict[str, str]:
    """The id of an image on each node that has it."""
    listed = apart.orch("image", "ls", name, "--no-trunc", "--format", "{{.Node}} {{.ID}}").stdout
    return dict(line.split() for line in listed.splitlines())


def test_a_task_brings_its_image_from_a_node_that_has_it(apart: Playground) -> None:
    """Tasks on three nodes start from an image that was built on one; it is the same one, and nothing is left over."""
    assert len(holders(apart, "test:1")) == 1
    apart.deploy("everywhere", EVERYWHERE.replace("IMAGE", "test:1"))
    found = holders(apart, "test:1")
    assert len(found) == 3
    assert len(set(found.values())) == 1
    for place in apart.nodes:
        uploads = place.state_dir / "uploads"
        assert not uploads.exists() or not list(uploads.iterdir())
    apart.orch("stack", "rm", "everywhere")


def test_an_image_is_delivered_to_all_nodes(apart: Playground, tmp_path: Path) -> None:
    """By hand, then there is nothing to do; and saved in one place, loaded in another, it is still the same."""
    apart.orch("image", "tag", "test:1", "mine:1", "--node", apart.nodes[0].hostname)
    delivered = apart.orch("image", "push", "--to-cluster", "mine:1")
    assert delivered.stderr.count("mine:1 delivered to ") == 2
    again = apart.orch("image", "push", "--to-cluster", "mine:1")
    assert "all 3 ready nodes have it already" in again.stderr
    archive = tmp_path / "mine.tar"
    apart.orch("image", "save", "mine:1", "-o", str(archive))
    apart.orch("image", "rm", "--force", "mine:1", "test:1")
    assert holders(apart, "mine:1") == {}
    assert "mine:1" in apart.orch("image", "load", str(archive), "--node", apart.nodes[2].hostname).stdout
    assert list(holders(apart, "mine:1")) == [apart.nodes[2].hostname]
    lost = apart.orch("image", "push", "--to-cluster", "test:1", ok=False)
    assert "no ready node has it" in lost.stderr


def test_what_a_stack_builds_is_delivered(apart: Playground, busybox: str) -> None:
    """`deploy --build` gives the image to each node before the stack is applied; a second version takes its place."""
    context = apart.folder / "built"
    context.mkdir()
    (context / "busybox").write_bytes(Path(busybox).read_bytes())
    text = EVERYWHERE.replace("image: IMAGE", f"image: built:1\n    build: {context}")
    ids = []
    for note in ("one", "two"):
        (context / "Dockerfile").write_text(
            f'FROM scratch\nCOPY --chmod=755 busybox /bin/sleep\nLABEL note={note}\nENTRYPOINT ["/bin/sleep"]\n'
        )
        text = text.replace("command: [sleep, ", "command: [")
        said = apart.deploy("built", text, "--build")
        assert said.stderr.count("built:1 delivered to ") == 2, said.stderr
        found = holders(apart, "built:1")
        assert len(found) == 3
        assert len(set(found.values())) == 1
        ids.append(next(iter(found.values())))
    assert ids[0] != ids[1]
    assert len(apart.running("built_web")) == 3
    # The first one has lost its name, but is what a rollback would go back to.
    assert "Freed: 0B" in apart.orch("image", "prune").stdout
    assert "Freed: 0B" in apart.orch("image", "prune", "--all", "--node", apart.nodes[1].hostname).stdout
    apart.orch("stack", "rm", "built")
    gone = apart.orch("image", "prune", "--all").stdout
    assert gone.count(f"Deleted: {ids[0]} ") == gone.count(f"Deleted: {ids[1]} ") == 3
    assert apart.orch("image", "ls", "-q").stdout == ""
