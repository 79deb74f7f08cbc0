"""The options of `RUN --mount`, checked.

Source: docker's Dockerfile reference, RUN --mount.
"""

import csv
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from orch_agent.build.errors import DockerfileError
from orch_agent.build.parser import Instruction

_ALIASES = {"dst": "target", "destination": "target", "src": "source", "readonly": "ro", "readwrite": "rw"}
_KEYS = {
    "bind": frozenset({"type", "target", "source", "from", "ro", "rw"}),
    "cache": frozenset({"type", "target", "source", "from", "ro", "rw", "id", "sharing", "mode", "uid", "gid"}),
    "tmpfs": frozenset({"type", "target", "size"}),
    "secret": frozenset({"type", "target", "source", "id", "required", "mode", "uid", "gid", "env"}),
    "ssh": frozenset({"type", "target", "id", "required", "mode", "uid", "gid"}),
}
_SHARING = ("shared", "private", "locked")
_SIZES = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MOUNTS_MAX = 50

Fail = Callable[[str], DockerfileError]


@dataclass(frozen=True, slots=True)
class MountSpec:
    """One `--mount` with its defaults filled in."""

    kind: str
    target: str
    """Absolute; empty for a secret that is only an environment variable."""
    source: str = "/"
    origin: str = ""
    """A stage or image; empty for the build's folder."""
    id: str = ""
    sharing: str = "shared"
    read_only: bool = False
    required: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size_bytes: int | None = None
    env: str = ""


def origins(instruction: Instruction) -> tuple[str, ...]:
    """What the mounts of a RUN name by `from=`, before anything else is known: the stages it depends on."""
    found = []
    for text in instruction.repeated.get("mount", ()):
        for field in _fields(text):
            key, _, value = field.partition("=")
            if key.strip().lower() == "from":
                found.append(value)
    return tuple(found)


def read(
    instruction: Instruction, working_dir: str, expanded: Callable[[str], str], fail: Fail
) -> tuple[MountSpec, ...]:
    """All mounts of a RUN; `expanded` replaces variables, `fail` makes an error at the instruction's line.

    Raises:
        DockerfileError: an option is unknown or wrong.
    """
    texts = instruction.repeated.get("mount", ())
    if len(texts) > MOUNTS_MAX:
        raise fail(f"RUN has {len(texts)} mounts; {MOUNTS_MAX} are the most")
    return tuple(_read_one(expanded(text), working_dir, fail) for text in texts)


def _read_one(text: str, working_dir: str, fail: Fail) -> MountSpec:
    options = _options(text, fail)
    kind = options.get("type", "bind")
    if kind not in _KEYS:
        raise fail(f"--mount=type={kind} is not a kind of mount; known are {', '.join(sorted(_KEYS))}")
    unknown = sorted(options.keys() - _KEYS[kind])
    if unknown:
        raise fail(f"--mount=type={kind} has no option {unknown[0]}; it takes {', '.join(sorted(_KEYS[kind]))}")
    target = options.get("target", "")
    identity = options.get("id") or options.get("source", "") if kind == "secret" else options.get("id", "")
    env = options.get("env", "")
    if kind in ("secret", "ssh"):
        identity = identity or posixpath.basename(target) or ("default" if kind == "ssh" else "")
        if not identity:
            raise fail("--mount=type=secret needs id= or target=")
        target = target or ("" if env or kind == "ssh" else f"/run/secrets/{identity}")
    elif not target:
        raise fail(f"--mount=type={kind} needs target=")
    if target:
        target = posixpath.normpath(posixpath.join("/", working_dir, target)).replace("//", "/")
        if target == "/":
            raise fail("--mount target=/ would hide the whole image; mount into a folder")
    return MountSpec(
        kind=kind,
        target=target,
        source=options.get("source", "/") or "/",
        origin=options.get("from", ""),
        id=identity or target,
        sharing=_one_of(options.get("sharing", "shared"), "sharing", fail),
        read_only=_read_only(kind, options, fail),
        required=_truth(options.get("required", "false"), "required", fail),
        mode=_octal(options["mode"], fail) if "mode" in options else None,
        uid=_number(options.get("uid", "0"), "uid", fail),
        gid=_number(options.get("gid", "0"), "gid", fail),
        size_bytes=_size(options["size"], fail) if "size" in options else None,
        env=env,
    )


def _options(text: str, fail: Fail) -> dict[str, str]:
    options: dict[str, str] = {}
    for field in _fields(text):
        key, equals, value = field.partition("=")
        name = _ALIASES.get(key.strip().lower(), key.strip().lower())
        if not equals:
            if name not in ("ro", "rw", "required"):
                raise fail(f"--mount: {field!r} is not key=value")
            value = "true"
        if name in options:
            raise fail(f"--mount: {name} is given twice; keep one")
        options[name] = value
    return options


def _fields(text: str) -> list[str]:
    try:
        return next(iter(csv.reader([text])), [])
    except csv.Error:
        return text.split(",")


def _read_only(kind: str, options: dict[str, str], fail: Fail) -> bool:
    if "ro" in options:
        return _truth(options["ro"], "ro", fail)
    if "rw" in options:
        return not _truth(options["rw"], "rw", fail)
    return kind == "bind"


def _truth(text: str, name: str, fail: Fail) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise fail(f"--mount: {name}={text} is neither true nor false")


def _octal(text: str, fail: Fail) -> int:
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o7777:
        raise fail(f"--mount: mode={text} is not an octal mode such as 0400")
    return value


def _number(text: str, name: str, fail: Fail) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 10 or int(text) >= 1 << 32:
        raise fail(f"--mount: {name}={text} is not a number below 2^32")
    return int(text)


def _size(text: str, fail: Fail) -> int:
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "b")
    if not number.isdecimal() or not number.isascii() or len(number) > 15 or unit not in _SIZES:
        raise fail(f"--mount: size={text} is not a size such as 64m")
    return int(number) * _SIZES[unit]


def _one_of(text: str, name: str, fail: Fail) -> str:
    if text not in _SHARING:
        raise fail(f"--mount: {name}={text} is unknown; choose one of {', '.join(_SHARING)}")
    return text
