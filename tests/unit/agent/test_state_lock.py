"""One orchd to a state folder, also while the one before it is still dying."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from orch_agent import orchd


def test_the_lock_of_a_process_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    """A process that was killed keeps its lock until the kernel lets it go: the next one waits for that."""
    path = tmp_path / "lock"
    held = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    ending = threading.Timer(0.1, os.close, (held,))
    ending.start()
    assert orchd._locked(path)
    ending.join()


def test_a_lock_that_another_process_keeps_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second orchd on the same folder gives up."""
    monkeypatch.setattr(orchd, "LOCK_WAIT_S", 0.05)
    path = tmp_path / "lock"
    held = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert not orchd._locked(path)
    os.close(held)
