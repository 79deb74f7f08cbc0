"""Sizes of sockets' buffers: a packet, and a batch of netlink messages, must fit the sender's."""

from __future__ import annotations

import socket

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33


def enlarge_buffers(sock: socket.socket, size_bytes: int) -> None:
    """Set both buffers; beyond the host's net.core.wmem_max only with CAP_NET_ADMIN over the host, else up to it."""
    for forced, plain in ((SO_SNDBUFFORCE, socket.SO_SNDBUF), (SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, size_bytes)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, size_bytes)
