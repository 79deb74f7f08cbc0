"""Serves /metrics over HTTP, on the event loop: a scrape reads the store, which belongs to the loop."""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from orch_rpc import logs

_log = logs.get("metrics")
_REQUEST_TIMEOUT_S: Final = 10.0
_MAX_HEADERS: Final = 100


class MetricsServer:
    """A small HTTP server with one page.

    Args:
        registry: what is told.
        address: "127.0.0.1:9324"; empty: none.
    """

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        self._registry = registry
        self._address = address
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens. A port that is taken costs the metrics, not the manager: it is logged."""
        if not self._address:
            return
        host, _, port = self._address.rpartition(":")
        try:
            self._server = await asyncio.start_server(self._serve, host.strip("[]"), int(port), limit=16 * 1024)
        except (OSError, ValueError) as error:
            _log.error("metrics are not served", address=self._address, reason=error)

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                request = (await reader.readline()).decode("latin-1").split(" ")
                headers: dict[str, str] = {}
                for _ in range(_MAX_HEADERS):
                    name, colon, value = (await reader.readline()).decode("latin-1").partition(":")
                    if not colon:
                        break
                    headers[name.strip().lower()] = value.strip()
                writer.write(self._answer(request, headers))
                await writer.drain()
        except (TimeoutError, OSError, ValueError, asyncio.LimitOverrunError) as error:
            _log.debug("scrape broke off", reason=error)
        finally:
            writer.close()

    def _answer(self, request: list[str], headers: dict[str, str]) -> bytes:
        if len(request) < 2 or request[0] not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"only GET is possible\n")
        if request[1].partition("?")[0] != "/metrics":
            return _response("404 Not Found", "text/plain", b"the page is /metrics\n")
        encode, content_type = choose_encoder(headers.get("accept", ""))
        body = encode(self._registry)
        return _response("200 OK", content_type, body if request[0] == "GET" else b"")


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
