"""A playground for benchmarks, with the image that they run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from cluster.conftest import build_test_image
from cluster.playground_driver import Playground, own_subnet

#: A process that waits for ever and ends at once when told to: what is measured is orch, not a grace period.
SLEEPER = """\
services:
  sleeper:
    image: test:1
    command: ["sh", "-c", 'trap "exit 0" TERM; sleep infinity & wait']
    deploy:
      replicas: {replicas}
      restart_policy: {{delay: {delay}}}
"""


@contextmanager
def bench_playground() -> Iterator[Playground]:
    """A playground of one node that is removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        made = Playground(f"bench-{os.getpid()}", own_subnet(2), Path(folder))
        made.up()
        try:
            busybox = shutil.which("busybox")
            assert busybox is not None, "install busybox-static"
            build_test_image(made, Path(busybox))
            yield made
        finally:
            made.down()


def summary(values_s: list[float]) -> str:
    """Median, least and most of some durations."""
    ordered = sorted(values_s)
    return f"p50 {median(ordered):.3f} s  (min {ordered[0]:.3f}, max {ordered[-1]:.3f}, n={len(ordered)})"
