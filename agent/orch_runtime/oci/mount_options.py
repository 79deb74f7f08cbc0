"""`mounts` of config.json for the OCI command line: each option to what the kernel's mount interface takes."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from orch_runtime.config.reader import Reader

ATTRIBUTE_ATIME_MASK = 0x70
# Option to (mount attribute, set or clear); include/uapi/linux/mount.h.
_ATTRIBUTES: dict[str, tuple[int, bool]] = {
    "ro": (1, True),
    "rw": (1, False),
    "nosuid": (2, True),
    "suid": (2, False),
    "nodev": (4, True),
    "dev": (4, False),
    "noexec": (8, True),
    "exec": (8, False),
    "nodiratime": (0x80, True),
    "diratime": (0x80, False),
    "nosymfollow": (0x200000, True),
    "symfollow": (0x200000, False),
    "relatime": (0, True),
    "noatime": (0x10, True),
    "strictatime": (0x20, True),
    "atime": (0x10, False),
    "norelatime": (0, False),
    "nostrictatime": (0x20, False),
}
_ATIME_OPTIONS = {"relatime", "noatime", "strictatime"}
_PROPAGATION = {"shared": 1 << 20, "slave": 1 << 19, "private": 1 << 18, "unbindable": 1 << 17}
_NO_MEANING = {"defaults", "newinstance", "async", "silent", "loud", "nolazytime", "nomand", "noiversion", "user"}


@dataclass(frozen=True)
class OciMount:
    """One mount. `kind` "bind" has a source on the host; other kinds are file system types with their options.

    Attributes are set and cleared on the mount, `recursive_set` and `recursive_clear` on those below it too.
    """

    kind: str
    source: str
    target: str
    set_attributes: int
    clear_attributes: int
    recursive_set: int
    recursive_clear: int
    recursive_bind: bool
    propagation: int
    propagation_recursive: bool
    options: tuple[tuple[str, str], ...]
    copy_up: bool


def _merge(option: str, attributes: list[int]) -> None:
    bit, on = _ATTRIBUTES[option]
    if option in _ATIME_OPTIONS:
        attributes[0] &= ~ATTRIBUTE_ATIME_MASK
        attributes[1] |= ATTRIBUTE_ATIME_MASK
    if on:
        attributes[0] |= bit
        if not bit & ATTRIBUTE_ATIME_MASK:
            attributes[1] &= ~bit
    else:
        attributes[0] &= ~bit
        attributes[1] |= ATTRIBUTE_ATIME_MASK if bit & ATTRIBUTE_ATIME_MASK else bit


def read_mount(reader: Reader, bundle: str) -> OciMount:  # noqa: PLR0912 -- one branch for each kind of option
    """Read one entry of `mounts`; a relative bind source is relative to the bundle.

    Raises:
        InvalidConfig: naming the JSON path.
    """
    target = posixpath.normpath("/" + reader.text("destination"))
    target = "/" + target.lstrip("/")
    if target == "/":
        raise reader.fail("destination", "cannot be '/': the rootfs is mounted there")
    kind, source = reader.text("type", ""), reader.text("source", "")
    own, below = [0, 0], [0, 0]
    propagation, propagation_recursive, recursive, copy_up = 0, False, False, False
    bind = kind == "bind"
    options: list[tuple[str, str]] = []
    for option in reader.texts("options", 256):
        plain = option.removeprefix("r") if option.startswith("r") else option
        if option in ("bind", "rbind"):
            bind, recursive = True, option == "rbind"
        elif option in _ATTRIBUTES:
            _merge(option, own)
        elif option in _PROPAGATION:
            propagation, propagation_recursive = _PROPAGATION[option], False
        elif option != plain and plain in _PROPAGATION:
            propagation, propagation_recursive = _PROPAGATION[plain], True
        elif option != plain and plain in _ATTRIBUTES:
            _merge(plain, below)
        elif option == "tmpcopyup":
            copy_up = True
        elif option in ("idmap", "ridmap"):
            raise reader.fail("options", f"{option} is not supported by this runtime")
        elif option not in _NO_MEANING:
            key, _, value = option.partition("=")
            options.append((key, value.strip('"')))
    if reader.has("uidMappings") or reader.has("gidMappings"):
        raise reader.fail("uidMappings", "idmapped mounts are not supported by this runtime")
    reader.ignore("options")
    reader.finish()
    if bind:
        kind = "bind"
        if not source:
            raise reader.fail("source", "is required for a bind mount")
        source = posixpath.join(bundle, source)
        # Options of file systems mean nothing to a bind mount; runtimes have always let them pass.
        options = []
    elif not kind:
        raise reader.fail("type", "is required for what is not a bind mount")
    return OciMount(
        kind, source or kind, target, own[0], own[1], below[0], below[1], recursive, propagation,
        propagation_recursive, tuple(options), copy_up,
    )  # fmt: skip


def known_options() -> list[str]:
    """Return the options that mean something whatever the file system."""
    recursive = [f"r{name}" for name in (*_ATTRIBUTES, *_PROPAGATION)]
    return sorted({"bind", "rbind", "tmpcopyup", *_ATTRIBUTES, *_PROPAGATION, *recursive, *_NO_MEANING})
