import io
import os
import random
import stat
import tarfile
from pathlib import Path

import pytest

from orch_agent.images.beneath import OPAQUE_XATTR
from orch_agent.images.errors import StoreCorrupt
from orch_agent.images.extract import Extractor
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.merged import Attributes, LayerWriter, MergedTree, PathProblem
from orch_agent.images.tarstream import TarStream
from orch_agent.images.tarwrite import write_layer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers hold owners and whiteouts: needs root")
LIMITS = UnpackLimits()


def written(root: Path) -> bytes:
    parts: list[bytes] = []
    write_layer(str(root), parts.append)
    return b"".join(parts)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def make_tree(root: Path, seed: int) -> None:
    """A tree with everything that a layer can hold, the same for the same seed, made in another order each time."""
    chance = random.Random(seed)
    names = [f"{chance.choice('abcdé')}{n}" for n in range(12)]
    (root / "d" / ("n" * 150)).mkdir(parents=True)
    random.shuffle(names)
    for name in names:
        (root / "d" / name).write_bytes(name.encode() * 300)
        os.utime(root / "d" / name, (7, 7))
    os.link(root / "d" / min(names), root / "zlink")
    (root / "sym").symlink_to("/" + "t" * 200)
    os.utime(root / "sym", (7, 7), follow_symlinks=False)
    os.mkfifo(root / "pipe", 0o600)
    whiteout(root / "gone")
    os.setxattr(root / "d", OPAQUE_XATTR, b"y")
    os.setxattr(root / "d", "trusted.overlay.impure", b"y")
    os.setxattr(root / "zlink", "user.a", b"\xff\x00b")
    os.chown(root / "zlink", 70000, 3)
    (root / "zlink").chmod(0o4755)
    for path in (root / "pipe", root / "d" / ("n" * 150), root / "d"):
        os.utime(path, (7, 7))


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kept = [name for name in os.listxattr(path, follow_symlinks=False) if name != "trusted.overlay.impure"]
        found[str(path.relative_to(root))] = (
            status.st_mode,
            (status.st_uid, status.st_gid),
            status.st_rdev,
            int(status.st_mtime) if not stat.S_ISCHR(status.st_mode) else 0,
            path.read_bytes() if path.is_file() and not path.is_symlink() else None,
            str(path.readlink()) if path.is_symlink() else None,
            status.st_nlink if stat.S_ISREG(status.st_mode) else 0,
            {name: os.getxattr(path, name, follow_symlinks=False) for name in kept},
        )
    return found


def test_equal_trees_give_equal_tars(tmp_path: Path) -> None:
    """The tar of a layer depends on the tree alone, not on the order in which it was made."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_tree(tmp_path / name, seed=3)
    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_a_layer_survives_being_packed_and_unpacked(tmp_path: Path) -> None:
    """Owners, modes, times, links, attributes, whiteouts and opaque folders come back from a layer's tar."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    make_tree(source, seed=1)
    stream = TarStream(io.BytesIO(written(source)), LIMITS, require_end=True)
    Extractor(str(target), LIMITS, whiteouts=True).extract(stream)
    assert describe(target) == describe(source)


def test_another_reader_understands_the_tar(tmp_path: Path) -> None:
    """The tar is one for other programs, with whiteouts in their OCI form."""
    make_tree(tmp_path, seed=2)
    with tarfile.open(fileobj=io.BytesIO(written(tmp_path))) as archive:
        members = {member.name: member for member in archive}
    assert ".wh.gone" in members
    assert "d/.wh..wh..opq" in members
    assert members["zlink"].islnk()
    assert members["d/" + "n" * 150].isdir()
    assert not any(key.startswith("SCHILY.xattr.trusted") for member in members.values() for key in member.pax_headers)


def test_features_that_a_tar_cannot_hold_are_refused(tmp_path: Path) -> None:
    """A layer written with overlayfs's redirects is refused, as its tar would be another tree."""
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "d", "trusted.overlay.redirect", b"/x")
    with pytest.raises(StoreCorrupt, match="redirect_dir=off"):
        written(tmp_path)


# ---- the merged view -------------------------------------------------------------------------------


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    """Two layers, topmost first, with links that would lead out of them on the host."""
    top, low = tmp_path / "top", tmp_path / "low"
    for layer in (top, low):
        (layer / "etc").mkdir(parents=True)
    (low / "etc/passwd").write_text("low")
    (low / "etc/gone").write_text("low")
    (low / "lib").symlink_to("usr/lib")
    (low / "usr/lib").mkdir(parents=True)
    (low / "usr/lib/x").write_text("x")
    (low / "abs").symlink_to("/etc")
    (low / "up").symlink_to("../../../../etc/passwd")
    (low / "loop").symlink_to("loop")
    whiteout(top / "etc/gone")
    (top / "etc/new").write_text("top")
    (low / "hidden").mkdir()
    (low / "hidden/below").write_text("low")
    (top / "hidden").mkdir()
    os.setxattr(top / "hidden", OPAQUE_XATTR, b"y")
    (low / "was").mkdir()
    (low / "was/inner").write_text("low")
    (top / "was").write_text("now a file")
    return top, low


def content(tree: MergedTree, path: str) -> str | None:
    node = tree.lookup(path)
    return Path(node.source).read_text() if node else None


def test_layers_are_seen_from_above_and_links_stay_within(layers: tuple[Path, Path]) -> None:
    """The merged view hides what was deleted, and links lead from the stack's root, never to the host's."""
    tree = MergedTree([str(layer) for layer in layers])
    assert content(tree, "/etc/passwd") == "low"
    assert content(tree, "/etc/gone") is None
    assert content(tree, "/lib/x") == "x"
    assert content(tree, "/abs/passwd") == "low"
    assert content(tree, "/up") == "low"
    assert content(tree, "/lib/../../../etc/new") == "top"
    assert content(tree, "/hidden/below") is None
    assert content(tree, "/was") == "now a file"
    assert tree.resolve("/lib/none/../other") == "/usr/lib/other"
    with pytest.raises(PathProblem, match="too many links"):
        tree.lookup("/loop")
    with pytest.raises(PathProblem, match="which is a file"):
        tree.lookup("/was/inner")


def test_writing_follows_links_of_the_stack_and_copies_folders_up(layers: tuple[Path, Path], tmp_path: Path) -> None:
    """A file written through a linked folder lands where the link points, in folders like the ones below."""
    low = layers[1]
    (low / "usr/lib").chmod(0o711)
    os.chown(low / "usr", 5, 6)
    upper = tmp_path / "upper"
    upper.mkdir()
    writer = LayerWriter(str(upper), [str(layer) for layer in layers])
    writer.write_file("/lib/deep/new", b"content", Attributes(uid=9, gid=9))
    writer.write_file("/abs/passwd", b"changed", Attributes(mode=0o600))
    assert (upper / "usr/lib/deep/new").read_bytes() == b"content"
    assert not (upper / "lib").exists()
    assert stat.S_IMODE((upper / "usr/lib").stat().st_mode) == 0o711
    assert ((upper / "usr").stat().st_uid, (upper / "usr").stat().st_gid) == (5, 6)
    assert (upper / "usr/lib/deep").stat().st_uid == 9
    assert content(writer.tree, "/etc/passwd") == "changed"
    assert content(MergedTree([str(layer) for layer in layers]), "/etc/passwd") == "low"
    with pytest.raises(PathProblem, match="is a folder"):
        writer.write_file("/usr", b"", Attributes())
    with pytest.raises(PathProblem, match="is a file"):
        writer.make_directory("/etc/passwd", Attributes())
