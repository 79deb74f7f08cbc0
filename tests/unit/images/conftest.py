from pathlib import Path

import pytest

from orch_agent.images.store import ImageStore


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store that does not wait for the disk."""
    return ImageStore(tmp_path / "images", durable=False)
