"""The data keys that encrypt the log and the snapshots at rest.

In text there is one key a line: `<key id> <64 hex digits>`. The last one encrypts; the others only decrypt what
was written before a rotation. Each file that is encrypted has a
key of its own, derived (HKDF, RFC 5869) from the data key and a random salt in that file's header, so that
a counter can serve as the nonce and never repeats.
"""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orch_raft.errors import DataKeyError

KEY_BYTES = 32
KEY_ID_BYTES = 8
SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Keyring:
    """The data keys by id.

    Attributes:
        current_id: id of the key that encrypts.
    """

    current_id: bytes
    _keys: dict[bytes, bytes] = field(repr=False)

    @classmethod
    def generate(cls) -> "Keyring":
        """A keyring with one new random key."""
        key_id = secrets.token_bytes(KEY_ID_BYTES)
        return cls(key_id, {key_id: secrets.token_bytes(KEY_BYTES)})

    @property
    def key_ids(self) -> frozenset[bytes]:
        """The ids of all keys."""
        return frozenset(self._keys)

    def with_new_key(self) -> "Keyring":
        """The same keys and a new random one, which encrypts."""
        key_id = secrets.token_bytes(KEY_ID_BYTES)
        return Keyring(key_id, {**self._keys, key_id: secrets.token_bytes(KEY_BYTES)})

    def reduced_to(self, key_ids: frozenset[bytes]) -> "Keyring":
        """Without the keys that are neither among `key_ids` nor the current one."""
        kept = {key_id: key for key_id, key in self._keys.items() if key_id in key_ids or key_id == self.current_id}
        return Keyring(self.current_id, kept)

    @classmethod
    def parse(cls, text: str, source: Path) -> "Keyring":
        """Read the text of a key file.

        Raises:
            DataKeyError: it is not one.
        """
        keys: dict[bytes, bytes] = {}
        key_id = b""
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                id_text, key_text = line.split()
                key_id, key = bytes.fromhex(id_text), bytes.fromhex(key_text)
            except ValueError:
                key_id, key = b"", b""
            if len(key_id) != KEY_ID_BYTES or len(key) != KEY_BYTES:
                raise DataKeyError(
                    f"cannot read the data key: {source} line {number} is not a key id and a key in hex; "
                    f"put the file back from a backup"
                )
            keys[key_id] = key
        if not keys:
            raise DataKeyError(f"cannot read the data key: {source} is empty; put the file back from a backup")
        return cls(key_id, keys)

    def format(self) -> str:
        """The text of the key file, the current key last."""
        ordered = sorted(self._keys.items(), key=lambda pair: pair[0] == self.current_id)
        return "".join(f"{key_id.hex()} {key.hex()}\n" for key_id, key in ordered)

    def cipher(self, key_id: bytes, salt: bytes, purpose: bytes, file: Path) -> AESGCM:
        """The cipher of one file.

        Args:
            key_id: the data key named in the file's header.
            salt: the salt in the file's header.
            purpose: what kind of file it is; keeps the keys of different kinds apart.
            file: named in the error.

        Raises:
            DataKeyError: the key is not in the ring.
        """
        key = self._keys.get(key_id)
        if key is None:
            known = ", ".join(known_id.hex() for known_id in self._keys)
            raise DataKeyError(
                f"cannot decrypt {file}: it needs data key {key_id.hex()}, and the key file holds {known}; "
                f"put back the key file that belongs to this state folder"
            )
        return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=purpose).derive(key))


def new_salt() -> bytes:
    """A salt for a new file."""
    return os.urandom(SALT_BYTES)
