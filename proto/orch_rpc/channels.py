"""Client channels to unix sockets, where the socket's mode decides who may connect; `tls.py` has those to managers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import grpc.aio

from orch_proto import defaults

#: Options that both ends share. Keepalive notices a peer that froze; a unix socket notices one that died by itself.
COMMON_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", defaults.MESSAGE_BYTES),
    ("grpc.max_send_message_length", defaults.MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", defaults.RPC_TIMEOUT_MS),
    ("grpc.keepalive_timeout_ms", defaults.NODE_CALL_TIMEOUT_MS),
)
#: Options of every client.
CLIENT_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    *COMMON_OPTIONS,
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", defaults.AGENT_BACKOFF_FIRST_MS),
    ("grpc.min_reconnect_backoff_ms", defaults.AGENT_BACKOFF_FIRST_MS),
    ("grpc.max_reconnect_backoff_ms", defaults.AGENT_BACKOFF_LAST_MS),
    ("grpc.enable_http_proxy", 0),
    ("grpc.default_authority", "orch"),
)


def unix_channel(path: Path | str) -> grpc.aio.Channel:
    """A channel to the server at a unix socket. Connects on first use; close it when done."""
    return grpc.aio.insecure_channel(f"unix:{Path(path).absolute()}", options=list(CLIENT_OPTIONS))
