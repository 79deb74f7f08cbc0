"""Runs a command as an ordinary user of a host made for it: ``python ordinary_user.py FOLDER COMMAND...``, as root.

The user, and the ids that the administrator gave them, stand in files that are seen in a mount namespace of the
command's own; nothing of the machine changes.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from orch_runtime.kernel import mounts, process

UID = 64242
NAME = "orch-ordinary"
SUBORDINATE_FIRST = 500_000
_SUBORDINATE = f"{NAME}:{SUBORDINATE_FIRST}:65536\n"


def make_folder(folder: Path) -> None:
    """Fill an empty folder with the user's home, runtime folder and account files."""
    folder.chmod(0o755)
    for name in ("home", "run"):
        (folder / name).mkdir(mode=0o700)
        os.chown(folder / name, UID, UID)
    passwd = f"{NAME}:x:{UID}:{UID}::{folder}/home:/bin/sh\n"
    (folder / "passwd").write_text(Path("/etc/passwd").read_text() + passwd)
    (folder / "group").write_text(Path("/etc/group").read_text() + f"{NAME}:x:{UID}:\n")
    for name in ("subuid", "subgid"):
        (folder / name).write_text(_SUBORDINATE)
    os.mknod(folder / "tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))
    (folder / "tun").chmod(0o666)


def _enter_host(folder: Path) -> None:
    process.unshare(process.CLONE_NEWNS)
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
    for name in ("passwd", "group", "subuid", "subgid"):
        target = Path("/etc") / name
        if target.exists():
            mounts.mount(str(folder / name), str(target), "", mounts.MS_BIND)
    mounts.mount(str(folder / "tun"), "/dev/net/tun", "", mounts.MS_BIND)
    for place in {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), Path(__file__).resolve().parents[2]}:
        _open_way(place)


def _open_way(place: Path) -> None:
    """Let everybody reach a folder that stands below a closed one, such as root's home, and nothing else there."""
    closed = next((folder for folder in reversed(place.parents) if not folder.stat().st_mode & stat.S_IXOTH), None)
    if closed is None:
        return
    tree = mounts.open_tree(mounts.AT_FDCWD, str(place), mounts.OPEN_TREE_CLONE | mounts.AT_RECURSIVE)
    mounts.mount("tmpfs", str(closed), "tmpfs", 0, "mode=755")
    place.mkdir(parents=True, exist_ok=True)
    target = os.open(place, os.O_PATH)
    mounts.move_mount_fd(tree, target, str(place))
    os.close(target)
    os.close(tree)


def main() -> None:
    """Become the user and execute the command."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    _enter_host(folder)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    os.chdir(folder / "home")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(folder / "home"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
    }
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    main()
