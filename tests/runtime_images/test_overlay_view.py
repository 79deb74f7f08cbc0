import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orch_agent.images.extract import Extractor
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.merged import Attributes, LayerWriter, MergedTree
from orch_agent.images.tarstream import TarStream
from orch_agent.images.tarwrite import write_layer

# Changes a mounted overlay at random and prints what it then shows; the mounts are gone with the namespace.
SCRIPT = r"""
set -e
mount -t overlay overlay -o "$1" "$2"
cd "$2"
$3
find . -mindepth 1 \( -type f -printf 'f %m %P ' -exec cat {} \; -printf '\n' \) \
    -o -type l -printf 'l %P %l\n' -o -printf '%y %m %P\n' | LC_ALL=C sort
"""
NAMES = ("a", "b", "c", "d")


def random_commands(chance: random.Random, count: int) -> str:
    """Shell commands that make, replace, delete and link files and folders; those that make no sense just fail."""

    def path() -> str:
        return "/".join(chance.choice(NAMES) for _ in range(chance.randint(1, 3)))

    choices: list[Callable[[], str]] = [
        lambda: f"mkdir -p {path()}",
        lambda: f"echo {chance.randint(0, 99)} > {path()}",
        lambda: f"rm -rf {path()}",
        lambda: f"rm -rf {(one := path())}; mkdir {one}",
        lambda: f"ln -s {path()} {path()}",
        lambda: f"chmod {chance.choice(['700', '711', '755'])} {path()}",
        lambda: f"mv {path()} {path()}",
    ]
    return "; ".join(f"({chance.choice(choices)()}) 2>/dev/null || true" for _ in range(count))


def in_overlay(lower: list[str], upper: str, work: str, target: str, commands: str) -> list[str]:
    options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work},redirect_dir=off,metacopy=off"
    script = SCRIPT.replace("$3", commands)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", options, target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def as_seen(tree: MergedTree) -> list[str]:
    lines = []
    for node in tree.walk(tree.root()):
        path, mode = node.path[1:], f"{node.status.st_mode & 0o7777:o}"
        if node.is_directory:
            lines.append(f"d {mode} {path}")
        elif node.is_symlink:
            lines.append(f"l {path} {Path(node.source).readlink()}")
        else:
            lines += f"f {mode} {path} {Path(node.source).read_text()}\n".splitlines()
    return sorted((line for line in lines if line), key=os.fsencode)


@pytest.mark.parametrize("seed", range(6))
def test_stacked_layers_look_as_the_kernel_shows_them(tmp_path: Path, seed: int) -> None:
    """After random changes in several layers, the view without mounts is what an overlay mount shows."""
    chance = random.Random(seed)
    lower = [str(tmp_path / "base")]
    (tmp_path / "base").mkdir()
    (tmp_path / "mnt").mkdir()
    for number in range(4):
        upper, work = tmp_path / f"upper{number}", tmp_path / f"work{number}"
        upper.mkdir()
        work.mkdir()
        shown = in_overlay(lower, str(upper), str(work), str(tmp_path / "mnt"), random_commands(chance, 40))
        lower.insert(0, str(upper))
        assert as_seen(MergedTree(lower)) == [line for line in shown if line], f"seed {seed}, layer {number}"


@pytest.mark.parametrize("seed", range(4))
def test_layers_that_we_adopt_are_unpacked_to_the_same_view(tmp_path: Path, seed: int) -> None:
    """A step's layer, packed as a tar and unpacked on another node, shows the same image."""
    chance = random.Random(100 + seed)
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "mnt").mkdir()
    here, there = [str(base)], [str(base)]
    for number in range(3):
        upper, work, other = (tmp_path / f"{name}{number}" for name in ("upper", "work", "other"))
        for folder in (upper, work, other):
            folder.mkdir()
        in_overlay(here, str(upper), str(work), str(tmp_path / "mnt"), random_commands(chance, 30))
        here.insert(0, str(upper))
        archive = tmp_path / f"layer{number}.tar"
        with archive.open("wb") as file:
            write_layer(str(upper), file.write)
        with archive.open("rb") as file:
            Extractor(str(other), UnpackLimits(), whiteouts=True).extract(TarStream(file, UnpackLimits()))
        there.insert(0, str(other))
        assert as_seen(MergedTree(there)) == as_seen(MergedTree(here)), f"seed {seed}, layer {number}"


def test_a_layer_written_without_a_mount_is_seen_by_the_kernel(tmp_path: Path) -> None:
    """What COPY writes is what a container then sees, also over deleted and linked folders."""
    (tmp_path / "base/usr/lib").mkdir(parents=True)
    (tmp_path / "base/lib").symlink_to("usr/lib")
    (tmp_path / "base/gone").mkdir()
    (tmp_path / "base/gone/old").write_text("old")
    (tmp_path / "mnt").mkdir()
    deleted, work = tmp_path / "deleted", tmp_path / "work"
    deleted.mkdir()
    work.mkdir()
    in_overlay([str(tmp_path / "base")], str(deleted), str(work), str(tmp_path / "mnt"), "rm -rf gone")
    writer = LayerWriter(str(deleted), [str(tmp_path / "base")])
    writer.write_file("/lib/new", b"new\n", Attributes())
    writer.write_file("/gone/again", b"again\n", Attributes())
    shown = in_overlay([str(tmp_path / "base")], str(deleted), str(work), str(tmp_path / "mnt"), "true")
    assert [line for line in shown if line] == [
        "d 755 gone",
        "d 755 usr",
        "d 755 usr/lib",
        "f 644 gone/again again",
        "f 644 usr/lib/new new",
        "l lib usr/lib",
    ]
