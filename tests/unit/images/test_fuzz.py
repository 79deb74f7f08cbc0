"""Archives and manifests made wrong at random: taken or refused, and nothing is touched outside of the folder."""

from __future__ import annotations

import io
import random
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orch_agent.images.errors import ImageError
from orch_agent.images.extract import Extractor
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.tarstream import TarStream

_LIMITS = UnpackLimits(entries=50, unpacked_bytes=100_000)
_NAMES = ["a", "b", "..", ".", "", "dir", "link", ".wh.a", ".wh..wh..opq", "etc", "secret", "a" * 120, "\u00e9"]
_PATH = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4).map("/".join)
_TARGETS = st.sampled_from(
    ["..", "../..", "../outside", "/", "/outside", "a", "dir", "link", "link/a", "../outside/secret", "", "."]
)
_KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"Z"]
)
_ENTRY = st.tuples(_PATH, _KINDS, _TARGETS, st.binary(max_size=40), st.integers(0, 0o7777))
_FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
_ARCHIVES = st.tuples(st.lists(_ENTRY, max_size=8), _FORMATS, st.integers(0, 1 << 32))
SECRET = b"what was there before"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder in memory, with something outside of where archives go."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="orch-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        outside = Path(folder) / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(SECRET)
        yield Path(folder)


def archive(entries: list[tuple[str, bytes, str, bytes, int]], form: int, seed: int) -> bytes:
    """A tar of these entries; one in two with some bytes flipped, cut off, or both."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, target, content, mode in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, target, mode
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            try:
                tar.addfile(info, io.BytesIO(content))
            except (ValueError, UnicodeError):
                continue  # a name that this format cannot hold
    raw = bytearray(buffer.getvalue())
    draw = random.Random(seed)
    if seed & 1:
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(min(len(raw), 4096))] = draw.randrange(256)
    if seed & 2:
        del raw[draw.randrange(len(raw)) :]
    return bytes(raw)


def extract(place: Path, raw: bytes) -> None:
    """Extract; what is outside of the folder is as it was, whatever became of the archive."""
    root = place / "root"
    root.mkdir()
    try:
        Extractor(str(root), _LIMITS, whiteouts=True).extract(TarStream(io.BytesIO(raw), _LIMITS))
    except ImageError:
        pass  # refused, in words
    finally:
        assert {path.name for path in place.iterdir()} == {"outside", "root"}
        assert [path.name for path in (place / "outside").iterdir()] == ["secret"]
        assert (place / "outside" / "secret").read_bytes() == SECRET
        assert (place / "outside" / "secret").stat().st_nlink == 1
        shutil.rmtree(root)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_ARCHIVES)
def test_archives_at_random(place: Path, found: tuple[list[tuple[str, bytes, str, bytes, int]], int, int]) -> None:
    """Names that climb, links that lead out, broken headers: nothing is written outside, nothing crashes."""
    extract(place, archive(*found))


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=100_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_ARCHIVES)
def test_a_hundred_thousand_archives(
    place: Path, found: tuple[list[tuple[str, bytes, str, bytes, int]], int, int]
) -> None:
    """The same, 100,000 times."""
    extract(place, archive(*found))
