"""Whether this process is root of the host, or only inside a user namespace."""

from __future__ import annotations

import functools

# user_namespaces(7): the map of the first namespace, in which every id stands for itself.
_WHOLE_RANGE = ["0", "0", "4294967295"]
_HIGHEST_GROUP = (1 << 31) - 1


@functools.cache
def in_user_namespace() -> bool:
    """Tell whether this process is in a user namespace other than the host's own.

    There devices cannot be made, and overlayfs keeps its marks in attributes of the user's (`userxattr`).
    """
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() != _WHOLE_RANGE
    except FileNotFoundError:
        return False  # a kernel without user namespaces


def highest_group() -> int:
    """Return the highest group id that has a meaning here: the kernel takes no other in a setting."""
    try:
        with open("/proc/self/gid_map", encoding="ascii") as file:
            ranges = [[int(number) for number in line.split()] for line in file]
    except FileNotFoundError:
        return _HIGHEST_GROUP
    return min(max((first + count - 1 for first, _, count in ranges), default=0), _HIGHEST_GROUP)
