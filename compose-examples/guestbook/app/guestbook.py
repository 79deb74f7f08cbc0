# ruff: noqa: INP001 - a program of one file
"""A guestbook: a page with a form, entries kept in Redis. Standard library only.

Redis is found by its service's name; a new connection is made for each request, so that a Redis that was replaced is
found again at once.
"""

import html
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs

REDIS_HOST = os.environ.get("REDIS_HOST", "redis")
REDIS_PORT = int(os.environ.get("REDIS_PORT", "6379"))
PORT = int(os.environ.get("PORT", "8000"))
TIMEOUT_S = 3.0
ENTRIES_KEY = "guestbook:entries"
ENTRIES_KEPT = 1000
ENTRIES_SHOWN = 50
ENTRY_CHARACTERS_MAX = 500
FORM_BYTES_MAX = 8192

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Guestbook</title></head>
<body>
<h1>Guestbook</h1>
<form method="post" action="/"><input name="entry" maxlength="500" required autofocus> <button>Sign</button></form>
<p>{count} entries, the latest first. Answered by {host}.</p>
<ol>
{entries}
</ol>
</body></html>
"""


class RedisError(Exception):
    """Redis answered with an error, or not at all."""


class Redis:
    """One connection speaking RESP, Redis's protocol."""

    def __enter__(self) -> Self:
        try:
            self._socket = socket.create_connection((REDIS_HOST, REDIS_PORT), timeout=TIMEOUT_S)
        except OSError as error:
            raise RedisError(f"cannot reach Redis at {REDIS_HOST}:{REDIS_PORT}: {error}") from error
        self._file = self._socket.makefile("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def command(self, *words: object) -> Any:
        """Send one command and return its answer: str, int, list or None."""
        encoded = [str(word).encode() for word in words]
        request = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        try:
            self._socket.sendall(request)
            return self._answer()
        except OSError as error:
            raise RedisError(f"lost Redis at {REDIS_HOST}:{REDIS_PORT}: {error}") from error

    def _answer(self) -> Any:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise RedisError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == "-1" else self._bulk(int(rest))
        if kind == b"*":
            return None if rest == "-1" else [self._answer() for _ in range(int(rest))]
        raise RedisError(f"Redis answered in an unknown way: {line[:40]!r}")

    def _bulk(self, size: int) -> str:
        data = self._file.read(size + 2)
        if len(data) < size + 2:
            raise RedisError("Redis closed the connection")
        return data[:-2].decode(errors="replace")


class Handler(BaseHTTPRequestHandler):
    """`/` shows and takes entries; `/health` says whether Redis answers."""

    timeout = 10
    server_version = "guestbook"

    def do_GET(self) -> None:
        """Show the page, or the state of health."""
        if self.path == "/health":
            self._guarded(self._health)
        elif self.path == "/":
            self._guarded(self._page)
        else:
            self._send(404, "text/plain", "not found\n")

    def do_POST(self) -> None:
        """Take an entry."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/" or not length.isdigit() or int(length) > FORM_BYTES_MAX:
            self._send(400, "text/plain", "send a form with the field entry to /\n")
            return
        form = parse_qs(self.rfile.read(int(length)).decode(errors="replace"))
        entry = form.get("entry", [""])[0].strip()[:ENTRY_CHARACTERS_MAX]
        if not entry:
            self._send(400, "text/plain", "the entry is empty\n")
            return
        self._guarded(lambda: self._sign(entry))

    def _health(self) -> None:
        with Redis() as redis:
            self._send(200, "text/plain", f"{redis.command('PING')}\n")

    def _page(self) -> None:
        with Redis() as redis:
            count = redis.command("LLEN", ENTRIES_KEY)
            entries = redis.command("LRANGE", ENTRIES_KEY, 0, ENTRIES_SHOWN - 1)
        items = "\n".join(f"<li>{html.escape(entry)}</li>" for entry in entries)
        self._send(200, "text/html", PAGE.format(count=count, host=html.escape(socket.gethostname()), entries=items))

    def _sign(self, entry: str) -> None:
        with Redis() as redis:
            redis.command("LPUSH", ENTRIES_KEY, entry)
            redis.command("LTRIM", ENTRIES_KEY, 0, ENTRIES_KEPT - 1)
        self.send_response(303)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except RedisError as error:
            self._send(503, "text/plain", f"{error}\n")

    def _send(self, code: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> int:
    """Serve until told to stop."""
    server = ThreadingHTTPServer(("", PORT), Handler)
    server.daemon_threads = True
    # shutdown() waits for the loop to end, so it cannot be called from a handler that interrupts this loop.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"guestbook on port {PORT}, entries in {REDIS_HOST}:{REDIS_PORT}", flush=True)  # noqa: T201 - its log
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
