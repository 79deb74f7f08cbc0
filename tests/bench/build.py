"""A build cold, warm and with one changed file: orch against docker build, legacy and BuildKit, in the same run.

    python tests/bench/build.py [ROUNDS]

Both are asked by their command lines, on a daemon that is up already, for the same folder: an application like the
guestbook's on a base image of busybox, with a RUN before and after the COPY that changes. Nothing is fetched. Rounds
take turns, so that what else the machine does meets all alike. Needs root, busybox-static and Debian's docker.io.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dockerd
from playground_setup import bench_playground, summary

DOCKERFILE = """\
FROM {base}
RUN echo app:x:100:100::/app:/bin/sh >> /etc-passwd
WORKDIR /app
COPY library /app/library
COPY guestbook.py .
RUN echo built > stamp
USER 100
EXPOSE 8000
ENV PYTHONUNBUFFERED=1
CMD ["sh", "guestbook.py"]
"""
FILES = 200
FILE_BYTES = 10_000


def make_context(folder: Path, base: str) -> None:
    (folder / "library").mkdir(parents=True)
    for number in range(FILES):
        (folder / "library" / f"{number}.py").write_bytes(os.urandom(FILE_BYTES))
    (folder / "guestbook.py").write_text("print('0')\n")
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base=base))


def timed(build: Callable[[bool], object], *, no_cache: bool) -> float:
    began = time.perf_counter()
    build(no_cache)
    return time.perf_counter() - began


def docker_build(peer: dockerd.Docker, context: Path, buildkit: str) -> Callable[[bool], object]:
    def build(no_cache: bool) -> object:  # noqa: FBT001 - the one option
        words = ["build", "-q", "-t", "app:1", *(["--no-cache"] if no_cache else []), str(context)]
        return subprocess.run(
            [dockerd.docker_client(), "--host", f"unix://{peer.socket}", *words],
            env={**os.environ, "DOCKER_BUILDKIT": buildkit},
            capture_output=True,
            check=True,
        )

    return build


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    if why := dockerd.missing():
        sys.exit(f"no peer: {why}")
    folder = Path(tempfile.mkdtemp(prefix="orch-bench-build-", dir="/var/tmp"))
    try:
        for name, base in (("orch", "test:1"), ("docker", "bench:1")):
            make_context(folder / name, base)
        with bench_playground() as playground, dockerd.swarm() as peer:
            context = str(folder / "orch")

            def orch(no_cache: bool) -> object:  # noqa: FBT001 - the one option
                return playground.orch("build", "-q", "-t", "app:1", *(["--no-cache"] if no_cache else []), context)

            builders: dict[str, Callable[[bool], object]] = {
                "orch": orch,
                "docker build, legacy": docker_build(peer, folder / "docker", "0"),
                "docker build, BuildKit": docker_build(peer, folder / "docker", "1"),
            }
            run(builders, folder, rounds)
    finally:
        shutil.rmtree(folder)


def run(builders: dict[str, Callable[[bool], object]], folder: Path, rounds: int) -> None:
    taken: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for name, build in builders.items():
            taken.setdefault(("cold", name), []).append(timed(build, no_cache=True))
            # What was built without the cache is not what legacy docker finds there; one build makes it warm.
            timed(build, no_cache=False)
            taken.setdefault(("warm", name), []).append(timed(build, no_cache=False))
            for side in ("orch", "docker"):
                (folder / side / "guestbook.py").write_text(f"print('{name} {number}')\n")
            taken.setdefault(("one changed file", name), []).append(timed(build, no_cache=False))
    for (what, name), values in sorted(taken.items()):
        print(f"{what:18} {name:24} {summary(values)}")


if __name__ == "__main__":
    main()
