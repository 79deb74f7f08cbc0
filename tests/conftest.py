"""What all tests share."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import settings

# Tests call tools for people; the shells of ordinary users lack the folders where these stand.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

# The same examples in every run, so that a run can be repeated; the long tests draw new ones each time.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def busybox() -> str:
    """A statically linked busybox: all that a container needs."""
    path = shutil.which("busybox")
    if path is None:
        pytest.skip("busybox is missing (Debian: busybox-static)")
    return path
