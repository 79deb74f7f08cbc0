import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from orch_agent.images.beneath import OPAQUE_XATTR
from orch_agent.images.errors import ArchiveRefused
from orch_agent.images.extract import Extractor
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.tarstream import TarStream
from unit.images.archives import entry, folder, hardlink, symlink, tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking sets owners and makes whiteouts: needs root")
LIMITS = UnpackLimits()


def unpack(target: Path, *entries: tuple[tarfile.TarInfo, bytes], whiteouts: bool = True) -> Path:
    target.mkdir(exist_ok=True)
    stream = TarStream(io.BytesIO(tar(*entries)), LIMITS)
    Extractor(str(target), LIMITS, whiteouts=whiteouts).extract(stream)
    return target


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def test_owners_modes_times_and_attributes_arrive(tmp_path: Path) -> None:
    """A file has the owner, the mode with setuid, the time and the attributes of its entry, whatever the umask."""
    old = os.umask(0o077)
    try:
        root = unpack(
            tmp_path / "root",
            folder("d", mode=0o1777, mtime=5),
            entry("d/f", b"hello", mode=0o6755, uid=12, gid=34, mtime=99, pax_headers={"SCHILY.xattr.user.a": "b"}),
            entry("deep/er/g", b""),
            symlink("l", "/etc/passwd"),
            entry("pipe", type=tarfile.FIFOTYPE, mode=0o620),
        )
    finally:
        os.umask(old)
    status = (root / "d/f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o6755, 12, 34)
    assert status.st_mtime_ns == 99 * 10**9
    assert os.getxattr(root / "d/f", "user.a") == b"b"
    assert (root / "d/f").read_bytes() == b"hello"
    assert (stat.S_IMODE((root / "d").stat().st_mode), (root / "d").stat().st_mtime) == (0o1777, 5)
    assert stat.S_IMODE((root / "deep/er").stat().st_mode) == 0o755
    assert str((root / "l").readlink()) == "/etc/passwd"
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)


HOSTILE = {
    "parent": [entry("../evil", b"x")],
    "parent inside": [entry("a/../../evil", b"x")],
    "through an absolute link": [symlink("a", "OUTSIDE"), entry("a/evil", b"x")],
    "through a relative link": [symlink("a", "../outside"), entry("a/evil", b"x")],
    "through a link to a link": [symlink("b", "../outside"), symlink("a", "b"), entry("a/evil", b"x")],
    "folder over a link": [symlink("a", "../outside"), folder("a/evil")],
    "hard link out": [hardlink("a", "../outside/secret")],
    "hard link through a link": [symlink("s", "../outside"), hardlink("a", "s/secret")],
    "hard link to nothing": [hardlink("a", "none")],
    "hard link to a folder": [folder("d"), hardlink("a", "d")],
    "hard link to the root": [hardlink("a", ".")],
    "device": [entry("sda", type=tarfile.BLKTYPE, devmajor=8)],
    "character device": [entry("mem", type=tarfile.CHRTYPE, devmajor=1, devminor=1)],
    "overlay attribute": [folder("d", pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})],
    "user overlay attribute": [entry("d", pax_headers={"SCHILY.xattr.user.overlay.opaque": "y"})],
    "whiteout of the parent": [folder("d"), entry("d/.wh...", b"")],
    "whiteout of nothing": [entry(".wh.", b"")],
    "file as root": [entry("./", b"", type=tarfile.SYMTYPE, linkname="../outside")],
    "file as a folder": [entry("f", b"x"), entry("f/g", b"x")],
    "full folder replaced by a file": [entry("d/f", b"x"), entry("d", b"x")],
    "deep": [entry("a/" * 300 + "f", b"x")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_leaves_the_root(tmp_path: Path, name: str) -> None:
    """Whatever an archive says, nothing outside of its folder is written, linked or read, and it is refused."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    entries = HOSTILE[name]
    for info, _ in entries:
        info.linkname = info.linkname.replace("OUTSIDE", str(outside))
    with pytest.raises(ArchiveRefused):
        unpack(tmp_path / "root", *entries)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root"]
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").stat().st_nlink == 1


def test_absolute_names_are_taken_from_the_root_of_the_archive(tmp_path: Path) -> None:
    """A leading slash means the archive's own root."""
    assert (unpack(tmp_path / "root", entry("/etc/x", b"y")) / "etc/x").read_bytes() == b"y"


def test_the_last_of_duplicates_counts(tmp_path: Path) -> None:
    """A later entry of the same name replaces the earlier one; a link is replaced, not written through."""
    outside = tmp_path / "victim"
    outside.write_text("untouched")
    root = unpack(
        tmp_path / "root", entry("a", b"1"), entry("a", b"2"), symlink("b", str(outside)), entry("b", b"3"), folder("a")
    )
    assert (root / "a").is_dir()
    assert (root / "b").read_bytes() == b"3"
    assert outside.read_text() == "untouched"


def test_hard_links_are_one_file(tmp_path: Path) -> None:
    """A hard link within the archive is one, also across folders."""
    root = unpack(tmp_path / "root", entry("a/b/f", b"x"), hardlink("c/g", "a/b/f"))
    assert (root / "a/b/f").stat().st_ino == (root / "c/g").stat().st_ino


def test_whiteouts_become_overlayfs_marks(tmp_path: Path) -> None:
    """`.wh.x` becomes a device 0:0, `.wh..wh..opq` the opaque attribute; what the layer itself brings stays."""
    root = unpack(
        tmp_path / "root",
        entry("d/.wh.gone"),
        entry("e/.wh..wh..opq"),
        entry("kept", b"new"),
        entry(".wh.kept"),
        entry(".wh.dir"),
        folder("dir"),
        entry("both/f"),
        entry(".wh.both"),
        entry(".wh.above"),
        entry("above/f"),
        entry("dev", type=tarfile.CHRTYPE),
    )
    assert is_whiteout(root / "d/gone")
    assert os.getxattr(root / "e", OPAQUE_XATTR) == b"y"
    assert (root / "kept").read_bytes() == b"new"
    assert os.getxattr(root / "dir", OPAQUE_XATTR) == b"y"
    assert os.getxattr(root / "both", OPAQUE_XATTR) == b"y"
    assert (root / "above/f").exists()
    assert os.getxattr(root / "above", OPAQUE_XATTR) == b"y"
    assert is_whiteout(root / "dev")


def test_in_a_root_file_system_whiteout_names_are_ordinary(tmp_path: Path) -> None:
    """What is not a layer has no whiteouts: the names are kept as they are."""
    root = unpack(tmp_path / "root", entry(".wh.x", b"y"), whiteouts=False)
    assert (root / ".wh.x").read_bytes() == b"y"


def test_labels_of_other_hosts_are_dropped(tmp_path: Path) -> None:
    """Security labels other than capabilities mean nothing here and are left out."""
    headers = {"SCHILY.xattr.security.selinux": "system_u", "SCHILY.xattr.security.ima": "x"}
    root = unpack(tmp_path / "root", entry("f", b"", pax_headers=headers))
    assert os.listxattr(root / "f") == []


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    """Unpacking many folders, or failing, leaves no descriptor behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    unpack(tmp_path / "a", *(entry(f"d{n}/e/f", b"") for n in range(100)))
    with pytest.raises(ArchiveRefused):
        unpack(tmp_path / "b", *(entry(f"d{n}/e/f", b"") for n in range(50)), entry("../x"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    """symlink(2) would fail on it; found by fuzzing."""
    with pytest.raises(ArchiveRefused, match="the archive's link 'a' leads nowhere"):
        unpack(tmp_path, symlink("a", ""))
