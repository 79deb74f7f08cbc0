"""The guestbook of compose-examples: a web application and a Redis, its data in a volume."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from cluster.playground_driver import ORCH, Playground, task_processes, wait_for

EXAMPLE = Path(__file__).resolve().parents[2] / "compose-examples" / "guestbook"
#: Made by debootstrap in about a minute; kept outside the tree, so that a fresh clone need not make it again.
CACHE = Path("/var/cache/orch-tests/guestbook-debian-base.tar")
PORT = 8000


@pytest.fixture
def guestbook(clean: Playground) -> Playground:
    """A playground on which the guestbook is deployed."""
    root_file_system = EXAMPLE / "debian-base.rootfs.tar"
    if not root_file_system.exists() and CACHE.exists():
        shutil.copy(CACHE, root_file_system)
    environment = {**os.environ, "ORCH": str(ORCH), "ORCH_HOST": f"unix://{clean.node.manager_socket}"}
    result = subprocess.run(
        [EXAMPLE / "prepare.sh"], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    if not CACHE.exists():
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        aside = CACHE.with_suffix(f".{os.getpid()}")
        shutil.copy(root_file_system, aside)
        aside.rename(CACHE)
    clean.orch("deploy", str(EXAMPLE / "stack.yml"), limit_s=150)
    return clean


def sign(playground: Playground, entry: str) -> None:
    """Writes an entry through the page, as the form does."""
    data = urllib.parse.urlencode({"entry": entry}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post() -> bool:
        try:
            with opener.open(f"http://{playground.node.address}:{PORT}/", data=data, timeout=5) as answer:
                return bool(answer.status < 400)
        except OSError:
            return False

    wait_for(post, f"an answer to the entry {entry}")


def assert_shown(playground: Playground, *entries: str) -> None:
    """Every entry is on the page, whichever replica answers."""
    wait_for(lambda: all(entry in playground.get(PORT) for entry in entries), f"{entries} on the page", 30)


@pytest.mark.timeout(700)
def test_entries_survive_scaling_kills_and_deploys(guestbook: Playground) -> None:
    """What was written through the page is there after a scale, a kill of Redis, and a second deploy."""
    sign(guestbook, "before the scale")
    guestbook.orch("service", "scale", "guestbook_web=4")
    assert_shown(guestbook, "before the scale")

    sign(guestbook, "before the kill")
    (redis,) = guestbook.wait_running("guestbook_redis", 1)
    # Redis syncs its file every second: a kill may cost what it was told in the last one.
    wait_for(lambda: "before the kill" in append_only_files(guestbook), "the entry on the disk", 10)
    process = task_processes([redis])[redis.id]
    assert process is not None
    process.kill()
    (second,) = wait_for(
        lambda: [task for task in guestbook.running("guestbook_redis") if task.id != redis.id], "another Redis", 30
    )
    assert second.slot == redis.slot
    assert_shown(guestbook, "before the scale", "before the kill")

    guestbook.orch("deploy", str(EXAMPLE / "stack.yml"), limit_s=100)
    assert len(guestbook.wait_running("guestbook_web", 2)) == 2
    assert_shown(guestbook, "before the scale", "before the kill")


def append_only_files(playground: Playground) -> str:
    """All that Redis has written into its volume."""
    volume = playground.node.state_dir / "volumes"
    return "".join(path.read_text(errors="replace") for path in volume.rglob("*.aof"))
