"""Playgrounds for tests: each with a name and addresses of its own, removed afterwards without a trace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import leaks
from cluster.playground_driver import Playground, own_subnet


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root there is no playground: such tests are skipped, with the reason."""
    if os.geteuid() != 0:
        for item in items:
            if "cluster" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="a playground needs root"))


@pytest.fixture(scope="session", autouse=True)
def _namespace_folder() -> None:
    """`ip netns` mounts its folder at its first use, for ever; it shall not look like a leak of the first test."""
    if os.geteuid() == 0:
        subprocess.run(["ip", "netns", "add", "orch-first-use"], check=True)
        subprocess.run(["ip", "netns", "delete", "orch-first-use"], check=True)


@pytest.fixture(scope="session")
def playground(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> Iterator[Playground]:
    """A playground that the tests of a run share; each of them removes its stacks."""
    made = Playground(f"test-{os.getpid()}", own_subnet(0), tmp_path_factory.mktemp("stacks"))
    made.down()
    before = leaks.host(made.layout)
    made.up()
    try:
        build_test_image(made, Path(busybox))
        yield made
    finally:
        made.down()
    left = leaks.settled_difference(before, lambda: leaks.host(made.layout))
    assert not left, f"the playground left behind: {left}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> Iterator[Playground]:
    """Three managers and two workers that the tests of a module share; use `calm`, which sets them right afterwards."""
    made = Playground(
        f"cluster-{os.getpid()}", own_subnet(3), tmp_path_factory.mktemp("cluster"), managers=3, workers=2
    )
    made.down()
    before = leaks.host(made.layout)
    made.up()
    try:
        build_test_image(made, Path(busybox))
        yield made
    finally:
        made.down()
    left = leaks.settled_difference(before, lambda: leaks.host(made.layout))
    assert not left, f"the playground left behind: {left}"


@pytest.fixture
def calm(cluster: Playground) -> Iterator[Playground]:
    """The cluster of five, whole and idle; after the test its faults are ended, its nodes started, its stacks removed.

    A test that leaves something in a node's kernel fails.
    """
    before = {node: leaks.node(node) for node in cluster.nodes}
    yield cluster
    cluster.calm()
    manager = cluster.leader()
    for stack in cluster.orch("stack", "ls", "--format", "{{.Name}}", node=manager).stdout.split():
        cluster.orch("stack", "rm", stack, node=manager)
    for node, footprint in before.items():
        left = leaks.settled_difference(footprint, lambda node=node: leaks.node(node), only_new=True)  # type: ignore[misc]
        assert not left, f"the test left in {node.hostname}: {left}"


def build_test_image(playground: Playground, busybox: Path) -> None:
    """`test:1`, an image of nothing but busybox and its names."""
    context = playground.folder / "image"
    context.mkdir()
    (context / "busybox").write_bytes(busybox.read_bytes())
    (context / "busybox").chmod(0o755)
    (context / "Dockerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
        'ENV PATH=/bin\nCMD ["sleep", "infinity"]\n'
    )
    playground.orch("image", "build", "--tag", "test:1", str(context))


@pytest.fixture
def clean(playground: Playground) -> Iterator[Playground]:
    """The shared playground; when the test has removed its stacks, the node is as it was."""
    before = leaks.node(playground.node)
    yield playground
    for stack in playground.orch("stack", "ls", "--format", "{{.Name}}").stdout.split():
        playground.orch("stack", "rm", stack)
    left = leaks.settled_difference(before, lambda: leaks.node(playground.node), only_new=True)
    assert not left, f"the test left in the node: {left}"
