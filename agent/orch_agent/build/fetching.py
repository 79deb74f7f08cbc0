"""ADD of a URL: fetched to a file, bounded, checked against --checksum.

Source: docker's Dockerfile reference, ADD: a file of mode 0600, dated as the server says; named by the URL's path where
the destination is a folder.
"""

import email.utils
import hashlib
import http.client
import os
import posixpath
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from orch_agent.build.errors import BuildError

FETCH_BYTES_MAX = 4 * 1024**3
FETCH_TIMEOUT_S = 60.0
"""The longest a server may stay silent."""
_CHUNK_BYTES = 1024 * 1024
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}\Z")
_GIT = re.compile(r"(?:git@|ssh://|git://)|https?://[^?]*\.git(?:#.*)?\Z")


# No handlers for files and ftp: a redirect leads to the web or nowhere.
_HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
)


def is_remote(word: str) -> bool:
    """Whether a source of ADD is fetched: a web address or a git repository."""
    return word.lower().startswith(("http://", "https://")) or bool(_GIT.match(word))


def is_git(word: str) -> bool:
    """Whether a source of ADD is a git repository."""
    return bool(_GIT.match(word))


def is_checksum(text: str) -> bool:
    """Whether a value of --checksum can be checked."""
    return bool(_CHECKSUM.match(text))


def file_name(url: str) -> str:
    """The name a fetched file has in a folder; empty if the URL has none."""
    name = urllib.parse.unquote(posixpath.basename(urllib.parse.urlsplit(url).path))
    return "" if name in (".", "..") or "/" in name or "\0" in name else name


def fetch(url: str, folder: Path, *, checksum: str) -> tuple[Path, str]:
    """Fetch `url` into a new file in `folder`; returns it with its digest.

    Raises:
        BuildError: it cannot be fetched, is too large, or has another digest than `checksum` (if that is not empty).
    """
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "orch"})  # noqa: S310 - the caller lets http(s) only pass
    target = folder / secrets.token_hex(8)
    total = hashlib.sha256()
    try:
        with opener.open(request, timeout=FETCH_TIMEOUT_S) as answer, target.open("xb") as file:
            received = 0
            while data := answer.read(_CHUNK_BYTES):
                received += len(data)
                if received > FETCH_BYTES_MAX:
                    raise BuildError(f"ADD {url}: it is larger than {FETCH_BYTES_MAX >> 30} GiB; fetch it in a RUN")
                total.update(data)
                file.write(data)
            expected = answer.headers.get("Content-Length", "")
            modified = answer.headers.get("Last-Modified", "")
    except (OSError, ValueError, http.client.HTTPException) as error:
        target.unlink(missing_ok=True)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise BuildError(f"ADD {url}: it cannot be fetched: {error}; check the address and the network") from error
    if expected.isdecimal() and int(expected) != received:
        raise BuildError(f"ADD {url}: {received} of {expected} bytes arrived; build again")
    digest = f"sha256:{total.hexdigest()}"
    if checksum and digest != checksum:
        raise BuildError(f"ADD {url}: its digest is {digest}, not {checksum}; correct --checksum if the file is right")
    target.chmod(0o600)
    dated_s = _seconds(modified)
    os.utime(target, (dated_s, dated_s))
    return target, digest


def _seconds(modified: str) -> int:
    try:
        return max(0, int(email.utils.parsedate_to_datetime(modified).timestamp()))
    except (TypeError, ValueError, OverflowError):
        return 0
