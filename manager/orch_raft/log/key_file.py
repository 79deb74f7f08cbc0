"""The file with the data keys: in clear, or sealed with a key of the cluster that no manager keeps (autolock).

It is readable by its owner alone, written aside, synced and renamed. In clear it is a keyring's text. Sealed it is one
line, `sealed-1 <salt> <ciphertext and tag>` in hex: that text under AES-256-GCM with a key derived (HKDF, RFC 5869)
from the unlock key and the salt. Every writing takes a new salt, so no key is used twice and the nonce may be constant.
"""

from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orch_raft.errors import DataKeyError, StateLocked
from orch_raft.log.files import Files
from orch_raft.log.keys import KEY_BYTES, Keyring, new_salt

_SEALED = "sealed-1"
_PURPOSE = b"orch raft data keys"
_NONCE = bytes(12)
#: Shorter unlock keys could be guessed.
MIN_UNLOCK_KEY_BYTES = 16


def create_key_file(files: Files, path: Path, unlock_key: bytes | None = None) -> Keyring:
    """Make a new data key and its file, synced.

    Raises:
        OSError: the disk refused.
    """
    keyring = Keyring.generate()
    write_key_file(files, path, keyring, unlock_key)
    return keyring


def write_key_file(files: Files, path: Path, keyring: Keyring, unlock_key: bytes | None = None) -> None:
    """Put a keyring in the place of the one in the file, at once, and sync it; sealed when there is an unlock key.

    Raises:
        OSError: the disk refused; the old file or the new one is there.
    """
    text = keyring.format() if unlock_key is None else _seal(keyring, unlock_key)
    aside = path.with_suffix(".tmp")
    if aside.name in files.list(path.parent):
        files.remove(aside)
    file = files.create(aside)
    try:
        file.write(0, text.encode())
        file.sync_data()
    finally:
        file.close()
    files.rename(aside, path)
    files.sync_folder(path.parent)


def is_sealed(files: Files, path: Path) -> bool:
    """Whether the file needs an unlock key. False when it cannot be read."""
    try:
        return files.read(path).startswith(_SEALED.encode())
    except OSError:
        return False


def read_key_file(files: Files, path: Path, unlock_key: bytes | None = None) -> Keyring:
    """Read the data keys.

    An unlock key for a file in clear is ignored: a manager that was unlocked keeps its command line.

    Raises:
        DataKeyError: the file is missing, unreadable, open to others, or not a key file.
        StateLocked: it is sealed, and there is no unlock key or another one.
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
    if text.startswith(_SEALED):
        text = _unseal(text, path, unlock_key)
    return Keyring.parse(text, path)


def _cipher(unlock_key: bytes, salt: bytes) -> AESGCM:
    if len(unlock_key) < MIN_UNLOCK_KEY_BYTES:
        raise ValueError(f"an unlock key has at least {MIN_UNLOCK_KEY_BYTES} bytes, not {len(unlock_key)}")
    return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=_PURPOSE).derive(unlock_key))


def _seal(keyring: Keyring, unlock_key: bytes) -> str:
    salt = new_salt()
    sealed = _cipher(unlock_key, salt).encrypt(_NONCE, keyring.format().encode(), _SEALED.encode())
    return f"{_SEALED} {salt.hex()} {sealed.hex()}\n"


def _unseal(text: str, path: Path, unlock_key: bytes | None) -> str:
    if unlock_key is None:
        raise StateLocked(path, "it needs the unlock key")
    try:
        _, salt, sealed = text.split()
        return (
            _cipher(unlock_key, bytes.fromhex(salt)).decrypt(_NONCE, bytes.fromhex(sealed), _SEALED.encode()).decode()
        )
    except (ValueError, InvalidTag):
        raise StateLocked(path, "the unlock key given does not open it") from None
