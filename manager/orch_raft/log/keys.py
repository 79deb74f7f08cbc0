"""The data keys that encrypt the log and the snapshots at rest.

A key file is readable by its owner alone and holds one key a line: `<key id> <64 hex digits>`. The last
one encrypts; the others only decrypt what was written before a rotation. Each file that is encrypted has a
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
from orch_raft.log.files import Files

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


def create_key_file(files: Files, path: Path) -> Keyring:
    """Make a new data key and its file, synced.

    Raises:
        OSError: the disk refused.
    """
    keyring = Keyring.generate()
    aside = path.with_suffix(".tmp")
    if aside.name in files.list(path.parent):
        files.remove(aside)
    file = files.create(aside)
    try:
        file.write(0, keyring.format().encode())
        file.sync_data()
    finally:
        file.close()
    files.rename(aside, path)
    files.sync_folder(path.parent)
    return keyring


def read_key_file(files: Files, path: Path) -> Keyring:
    """Read the data keys.

    Raises:
        DataKeyError: the file is missing, unreadable, open to others, or not a key file.
    """
    try:
        text = files.read(path).decode()
        others_may_read = files.mode(path) & 0o077
    except FileNotFoundError as error:
        raise DataKeyError(
            f"cannot decrypt the state folder: the key file {path} is missing; put it back from a backup"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataKeyError(f"cannot read the key file {path}: {error}; check its owner and mode") from error
    if others_may_read:
        raise DataKeyError(
            f"will not use the key file {path}: others than its owner may read it; run `chmod 600 {path}`, "
            f"and rotate the key if they may have read it"
        )
    return Keyring.parse(text, path)


def new_salt() -> bytes:
    """A salt for a new file."""
    return os.urandom(SALT_BYTES)
