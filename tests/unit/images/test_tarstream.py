import contextlib
import io
import stat
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_agent.images.errors import ArchiveRefused, LimitExceeded
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.tarstream import EntryKind, TarEntry, TarStream
from unit.images.archives import entry, folder, symlink, tar

LIMITS = UnpackLimits()


def read(raw: bytes, limits: UnpackLimits = LIMITS, *, require_end: bool = False) -> list[tuple[TarEntry, bytes]]:
    stream = TarStream(io.BytesIO(raw), limits, require_end=require_end)
    found = []
    for item in stream:
        content = b""
        while data := stream.read(1000):
            content += data
        found.append((item, content))
    return found


names = st.text(
    st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=120
).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            paths,
            st.binary(max_size=1500),
            st.integers(0, 0o7777),
            st.integers(0, 2**32 - 2),
            st.integers(0, 2**33),
            st.dictionaries(st.sampled_from(["user.a", "user.b"]), st.binary(max_size=40), max_size=2),
        ),
        max_size=5,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_it_reads_what_another_writer_wrote(
    files: list[tuple[str, bytes, int, int, int, dict[str, bytes]]], form: int
) -> None:
    """Names of any length and script, owners, modes, times, attributes and contents are read as they were written."""
    made = []
    for path, content, mode, uid, mtime, xattrs in files:
        headers = {f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in xattrs.items()}
        made.append(entry(path, content, mode=mode, uid=uid, gid=uid, mtime=mtime, pax_headers=headers))
    found = read(tar(*made, form=form), require_end=True)
    assert len(found) == len(files)
    for (item, content), (path, written, mode, uid, mtime, xattrs) in zip(found, files, strict=True):
        assert (item.name, content, item.kind) == (path, written, EntryKind.FILE)
        assert (item.mode, item.uid, item.gid, item.mtime_ns) == (mode, uid, uid, mtime * 10**9)
        assert item.xattrs == (xattrs if form == tarfile.PAX_FORMAT else {})


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=2000) | st.binary(max_size=1024).map(lambda noise: tar(entry("a", b"x" * 600))[:700] + noise))
def test_noise_is_refused_and_nothing_else(noise: bytes) -> None:
    """Whatever bytes come, reading ends with entries or with a refusal, never with another error."""
    with contextlib.suppress(ArchiveRefused):
        read(noise)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_byte_is_read_or_refused(data: st.DataObject) -> None:
    """A damaged archive is read differently or refused, never an error of another kind."""
    long = entry("d/" + "n" * 180, b"content", pax_headers={"mtime": "1.5", "SCHILY.xattr.user.a": "b"})
    raw = bytearray(tar(folder("d"), long, symlink("d/l", "t" * 150)))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ArchiveRefused):
        read(bytes(raw))


@pytest.mark.parametrize("cut", [1, 100, 511, 513, 600, 1100, 1536])
def test_a_truncated_archive_is_refused(cut: int) -> None:
    """An archive that was cut off anywhere is refused where no digest could tell."""
    raw = tar(entry("a", b"x" * 600), entry("b", b"y" * 10))
    with pytest.raises(ArchiveRefused):
        read(raw[:cut], require_end=True)


def test_a_pax_size_overrides_the_header() -> None:
    """A size given by an extended header counts, so that no content is taken for a header."""
    info, _ = entry("big", b"")
    raw = info.tobuf(tarfile.PAX_FORMAT)
    body = b"12 size=700\n"
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, len(body)
    stream = extended.tobuf(tarfile.USTAR_FORMAT) + body.ljust(512, b"\0") + raw + (b"z" * 700).ljust(1024, b"\0")
    found = read(stream + tar(entry("after")))
    assert [(item.name, item.size, content) for item, content in found] == [("big", 700, b"z" * 700), ("after", 0, b"")]


def test_fractions_of_seconds_and_years_before_1970_are_kept() -> None:
    """Times are read to the nanosecond, and before the epoch."""
    late = entry("late", pax_headers={"mtime": "1700000000.123456789"})
    early = entry("early", pax_headers={"mtime": "-5.5"})
    found = read(tar(late, early))
    assert [item.mtime_ns for item, _ in found] == [1_700_000_000_123_456_789, -5_500_000_000]


def test_old_directories_and_devices_are_recognised() -> None:
    """A file whose name ends with a slash is a folder, as before ustar; device numbers are read."""
    old = tarfile.TarInfo("old/")
    old.type = tarfile.AREGTYPE
    device = entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    found = [item for item, _ in read(tar((old, b""), device, form=tarfile.USTAR_FORMAT))]
    assert [item.kind for item in found] == [EntryKind.DIRECTORY, EntryKind.CHARACTER_DEVICE]
    assert found[1].device == (1, 3)
    assert stat.S_IMODE(found[1].mode) == found[1].mode


@pytest.mark.parametrize(
    ("raw", "limits"),
    [
        (tar(*(entry(str(n)) for n in range(11))), UnpackLimits(entries=10)),
        (tar(entry("a", bytes(5000))), UnpackLimits(unpacked_bytes=4000)),
        (tar(entry("n" * 3000)), UnpackLimits(extended_header_bytes=1000)),
    ],
)
def test_bounds_are_kept(raw: bytes, limits: UnpackLimits) -> None:
    """More entries, bytes or header than allowed are refused."""
    with pytest.raises(LimitExceeded):
        read(raw, limits)


@pytest.mark.parametrize(
    "headers",
    [
        {"size": "-1"},
        {"uid": "99999999999"},
        {"mtime": "soon"},
        {"mtime": "1e400"},
        {"GNU.sparse.major": "1"},
        {"path": "x\0y"},
        {"path": "p" * 5000},
    ],
)
def test_extended_headers_out_of_range_are_refused(headers: dict[str, str]) -> None:
    """Values that no file can have, and sparse files, are refused."""
    body = b""
    for key, value in headers.items():
        record = f" {key}={value}\n".encode()
        length = len(record) + 1
        while len(str(length)) + len(record) != length:
            length += 1
        body += str(length).encode() + record
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, len(body)
    raw = extended.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512) + tar(entry("a"))
    with pytest.raises(ArchiveRefused):
        read(raw)


def test_an_empty_archive_has_no_entries() -> None:
    """Two zero blocks are an archive without entries."""
    assert read(bytes(1024), require_end=True) == []
