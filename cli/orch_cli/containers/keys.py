"""The keys that end a session without ending what runs in it. Pure."""

from __future__ import annotations

from typing import Final

from orch_cli.errors import UsageError

DEFAULT_DETACH_KEYS: Final = "ctrl-p,ctrl-q"


def parse_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` or ``a,ctrl-@`` as the bytes that a terminal sends; docker's form.

    Raises:
        UsageError: a key is unknown.
    """
    keys = bytearray()
    for word in text.split(",") if text else []:
        name = word.strip()
        letter = name.removeprefix("ctrl-").upper()
        if len(name) == 1 and name.isascii():
            keys += name.encode()
        elif name.startswith("ctrl-") and len(letter) == 1 and "@" <= letter <= "_":
            keys.append(ord(letter) - 64)
        else:
            raise UsageError(
                f"cannot read the detach keys {text!r}",
                f"{name!r} is no key",
                "write letters and ctrl-a to ctrl-z, ctrl-@, ctrl-[, ctrl-], ctrl-^, ctrl-_, with commas between",
            )
    return bytes(keys)


class DetachKeys:
    """Looks for a row of keys in what is typed, over any number of reads.

    Args:
        keys: the row; empty: none.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What to send of what was typed, and whether the row was typed; a beginning of it is held back."""
        if not self._keys:
            return typed, False
        data = self._held + typed
        place = data.find(self._keys)
        if place >= 0:
            self._held = b""
            return data[:place], True
        held = next((length for length in range(len(self._keys) - 1, 0, -1) if data.endswith(self._keys[:length])), 0)
        self._held = data[len(data) - held :]
        return data[: len(data) - held], False
