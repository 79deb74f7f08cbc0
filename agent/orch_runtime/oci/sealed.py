"""Our own program, out of a container's reach.

A process on its way into a container shows there as /proc/PID/exe, and a container's program may be a link to
/proc/self/exe: whoever can open that for writing has the host's interpreter (CVE-2019-5736). So what enters containers
runs from a read-only mount of the interpreter that exists nowhere else.
"""

from __future__ import annotations

import os
import sys

from orch_runtime.kernel import mounts

_OWN = "/proc/self/exe"
_BEGIN_AGAIN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from orch_runtime.command import main; sys.exit(main())"
)


def run_from_readonly_mount(arguments: list[str]) -> None:
    """Execute `orch-runtime ARGUMENTS` again from a detached read-only mount, unless it runs from one already.

    Raises:
        KernelError: the mount cannot be made.
    """
    if os.geteuid() != 0 or os.statvfs(_OWN).f_flag & os.ST_RDONLY:
        return
    tree = mounts.open_tree(mounts.AT_FDCWD, _OWN, mounts.OPEN_TREE_CLONE)
    mounts.set_mount_attributes(tree, mounts.MOUNT_ATTR_RDONLY, name=_OWN)
    package_folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # Isolated and without site: this package needs the standard library only, and searching for more takes time.
    words = [sys.executable, "-I", "-S", "-c", _BEGIN_AGAIN, package_folder, *arguments]
    os.execve(f"/proc/self/fd/{tree}", words, os.environ)
