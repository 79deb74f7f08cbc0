"""Copies beneath a container's root: by docker's rules, and never outside of it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orch_agent.containers.copy_worker import CopyFailedError, base_name, copy_in, copy_out

WISH: dict[str, Any] = {"source_name": "", "contents_only": False, "source_is_directory": False, "keep_owners": True}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A root folder with a neighbour that must stay as it is, and its descriptor."""
    folder = tmp_path / "root"
    (folder / "data").mkdir(parents=True)
    (tmp_path / "neighbour").mkdir()
    descriptor = os.open(folder, os.O_PATH)
    yield folder, descriptor
    os.close(descriptor)
    assert list((tmp_path / "neighbour").iterdir()) == []


def tar_of(*entries: tuple[str, bytes | None]) -> io.BytesIO:
    """A tar of files, and of folders where there is no content."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.mode = os.getuid(), os.getgid(), 0o755 if content is None else 0o640
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    target.seek(0)
    return target


def file_in(descriptor: int, path: str, content: bytes = b"new") -> None:
    copy_in(descriptor, {**WISH, "path": path, "source_name": "f"}, tar_of(("f", content)))


def names_out(descriptor: int, path: str, *, follow_link: bool = False) -> dict[str, tarfile.TarInfo]:
    target = io.BytesIO()
    copy_out(descriptor, {"path": path, "follow_link": follow_link}, target)
    target.seek(0)
    with tarfile.open(fileobj=target) as tar:
        return {info.name: info for info in tar}


def test_where_a_file_goes(root: tuple[Path, int]) -> None:
    """Into a folder under its own name, to a new name, over a file; not where the folder is missing."""
    folder, descriptor = root
    file_in(descriptor, "/data")
    assert (folder / "data/f").read_bytes() == b"new"
    assert (folder / "data/f").stat().st_mode & 0o777 == 0o640
    file_in(descriptor, "/data/other")
    assert (folder / "data/other").read_bytes() == b"new"
    inode = (folder / "data/other").stat().st_ino
    file_in(descriptor, "/data/other", b"newer")
    assert (folder / "data/other").read_bytes() == b"newer"
    assert (folder / "data/other").stat().st_ino == inode, "a file that is there is written over, as mounts need it"
    for missing in ("/no/where", "/nowhere/"):
        with pytest.raises(CopyFailedError) as caught:
            file_in(descriptor, missing)
        assert caught.value.code == "NOT_FOUND"


def test_where_a_folder_goes(root: tuple[Path, int]) -> None:
    """Into a folder, to a new name, or its contents alone; never over a file."""
    folder, descriptor = root
    wish = {**WISH, "source_name": "t", "source_is_directory": True}
    entries = (("t", None), ("t/sub", None), ("t/sub/a", b"A"))
    copy_in(descriptor, {**wish, "path": "/data"}, tar_of(*entries))
    copy_in(descriptor, {**wish, "path": "/fresh"}, tar_of(*entries))
    copy_in(descriptor, {**wish, "path": "/data", "contents_only": True}, tar_of(*entries))
    for place in ("data/t/sub/a", "fresh/sub/a", "data/sub/a"):
        assert (folder / place).read_bytes() == b"A"
    with pytest.raises(CopyFailedError, match="over a file"):
        copy_in(descriptor, {**wish, "path": "/fresh/sub/a"}, tar_of(*entries))


@pytest.mark.parametrize("target", ["../../neighbour", "{outside}"])
def test_links_of_the_container_do_not_lead_out(root: tuple[Path, int], target: str) -> None:
    """A link that climbs, or an absolute one, is resolved within the root: nothing outside is written or read."""
    folder, descriptor = root
    (folder / "data/link").symlink_to(target.format(outside=folder.parent / "neighbour"))
    (folder.parent / "secret").write_text("secret")
    (folder / "data/peek").symlink_to(folder.parent / "secret")
    with pytest.raises(CopyFailedError):
        file_in(descriptor, "/data/link/f")
    with pytest.raises(CopyFailedError):
        names_out(descriptor, "/data/peek", follow_link=True)
    assert names_out(descriptor, "/data/peek")["peek"].issym()


def test_the_kernels_files_are_not_written(root: tuple[Path, int]) -> None:
    """Nothing is placed in procfs, whatever link leads there, and magic links are not followed."""
    descriptor = os.open("/", os.O_PATH)
    try:
        with pytest.raises(CopyFailedError) as caught:
            file_in(descriptor, "/proc/sys/x")
        assert caught.value.code == "PERMISSION_DENIED"
        with pytest.raises(CopyFailedError):
            names_out(descriptor, f"/proc/{os.getpid()}/cwd/", follow_link=True)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["t/../../evil", "other"])
def test_names_that_lead_elsewhere_are_refused(root: tuple[Path, int], name: str) -> None:
    """An entry that climbs or is not of the copied folder is refused."""
    _, descriptor = root
    with pytest.raises(CopyFailedError) as caught:
        copy_in(
            descriptor,
            {**WISH, "path": "/data", "source_name": "t", "source_is_directory": True},
            tar_of(("t", None), (name, b"x")),
        )
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_folder_comes_out_whole(root: tuple[Path, int]) -> None:
    """Files, links, hard links and pipes come out under the folder's name, without opening what could block."""
    folder, descriptor = root
    (folder / "data/a").write_text("A")
    (folder / "data/hard").hardlink_to(folder / "data/a")
    (folder / "data/link").symlink_to("a")
    os.mkfifo(folder / "data/pipe")
    found = names_out(descriptor, "/data")
    assert set(found) == {"data", "data/a", "data/hard", "data/link", "data/pipe"}
    assert found["data/a"].size == 1
    assert found["data/hard"].islnk()
    assert found["data/pipe"].isfifo()


def test_a_broken_tar_is_told(root: tuple[Path, int]) -> None:
    """What is no tar is refused with a sentence."""
    _, descriptor = root
    with pytest.raises(CopyFailedError, match="no tar"):
        copy_in(descriptor, {**WISH, "path": "/data"}, io.BytesIO(b"nonsense" * 200))


def test_names_of_copies() -> None:
    """A copy is called by the last part of its path."""
    assert [base_name(path) for path in ("/a/b", "/a/b/", "/a/b/.", "/", "a/..")] == ["b", "b", "b", ".", "."]
