"""Contexts: clusters that this user may use from here, each with its addresses and a certificate.

    $ORCH_CONFIG, else ~/.config/orch
        current                  the name of the context in use
        contexts/NAME.json       one file a context, 0600: the private key is in it

A context's file is also what is exported and imported: it is all that another machine needs.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orch_cli.errors import CliError, UsageError

CONFIG_VARIABLE: Final = "ORCH_CONFIG"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_FORMAT: Final = 1
_MAX_FILE_BYTES: Final = 256 * 1024
_MAX_ENDPOINTS: Final = 64
#: Means the unix socket of this host; no file.
DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True)
class Context:
    """A cluster and who we are there.

    Attributes:
        name: of the context.
        endpoints: ``host:port`` of managers, tried in order.
        certificate: of the user, PEM.
        key: its private key, PEM.
        roots: the roots to trust, PEM.
        description: for people.
    """

    name: str
    endpoints: tuple[str, ...]
    certificate: str
    key: str = field(repr=False)
    roots: str
    description: str = ""

    def to_json(self) -> str:
        """The file's text; the private key is in it."""
        values = {
            "orch_context": _FORMAT,
            "name": self.name,
            "description": self.description,
            "endpoints": list(self.endpoints),
            "certificate": self.certificate,
            "key": self.key,
            "roots": self.roots,
        }
        return json.dumps(values, indent=2) + "\n"


def check_name(name: str) -> str:
    """The name, when it can be one.

    Raises:
        UsageError: it cannot.
    """
    if name == DEFAULT:
        raise UsageError(f"the context {DEFAULT!r} is this host's own manager", "", "choose another name")
    if not _NAME.fullmatch(name):
        raise UsageError(f"cannot name a context {name!r}", "it has other characters", "use letters, digits, _ . and -")
    return name


def from_json(text: str, source: str, name: str = "") -> Context:
    """The context in a file's text.

    Args:
        text: the text.
        source: where it is from, for messages.
        name: the name to give it; empty: its own.

    Raises:
        CliError: it is none.
    """
    what = f"cannot read the context in {source}"
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CliError(what, f"it is no JSON ({error})", "export it again: orch context export") from error
    if not isinstance(values, Mapping) or values.get("orch_context") != _FORMAT:
        raise CliError(what, "it is no exported context of this version", "export it again: orch context export")
    endpoints = values.get("endpoints")
    texts = {key: values.get(key, "") for key in ("name", "description", "certificate", "key", "roots")}
    if not all(isinstance(each, str) for each in texts.values()) or not isinstance(endpoints, list):
        raise CliError(what, "something is missing in it", "export it again: orch context export")
    if not 0 < len(endpoints) <= _MAX_ENDPOINTS or not all(isinstance(each, str) for each in endpoints):
        raise CliError(what, f"it has none, or more than {_MAX_ENDPOINTS} addresses", "export it again")
    texts["name"] = check_name(name or texts["name"])
    return Context(endpoints=tuple(endpoints), **texts)


def config_folder() -> Path:
    """Where contexts are kept."""
    chosen = os.environ.get(CONFIG_VARIABLE, "")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base else Path.home() / ".config") / "orch"


class ContextStore:
    """The contexts of this user."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or config_folder()

    def _path(self, name: str) -> Path:
        return self._folder / "contexts" / f"{check_name(name)}.json"

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(path.stem for path in (self._folder / "contexts").glob("*.json"))

    def load(self, name: str) -> Context:
        """One context.

        Raises:
            CliError: there is none of this name, or its file cannot be read.
        """
        path = self._path(name)
        try:
            with path.open(encoding="utf-8") as stream:
                text = stream.read(_MAX_FILE_BYTES)
        except FileNotFoundError as error:
            raise CliError(f"there is no context {name!r}", "", "see them with: orch context ls") from error
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"cannot read the context {name!r}", str(error), f"check {path}") from error
        return from_json(text, str(path), name)

    def save(self, context: Context, *, replace: bool = False) -> None:
        """Keeps a context.

        Raises:
            CliError: there is one of this name, unless it is to be replaced.
        """
        path = self._path(context.name)
        if path.exists() and not replace:
            raise CliError(f"there is a context {context.name!r} already", "", "remove it first: orch context rm")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, context.to_json())

    def remove(self, name: str) -> None:
        """Forgets a context; its key is gone.

        Raises:
            CliError: there is none, or it is in use.
        """
        if self.current() == name:
            raise CliError(f"cannot remove the context {name!r}", "it is in use", f"first: orch context use {DEFAULT}")
        try:
            self._path(name).unlink()
        except FileNotFoundError as error:
            raise CliError(f"there is no context {name!r}", "", "see them with: orch context ls") from error

    def current(self) -> str:
        """The name of the context in use."""
        try:
            return (self._folder / "current").read_text(encoding="utf-8").strip() or DEFAULT
        except FileNotFoundError:
            return DEFAULT

    def use(self, name: str) -> None:
        """Makes a context the one in use; DEFAULT: none.

        Raises:
            CliError: there is none of this name.
        """
        if name != DEFAULT:
            self.load(name)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._folder / "current", f"{name}\n")


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, as a whole or not at all."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
