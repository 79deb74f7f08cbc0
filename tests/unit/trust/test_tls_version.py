"""TLS 1.3 and nothing older, whichever program of orch speaks or listens."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from orch_rpc.addresses import parse_address
from unit.trust.real_manager import RealManager, with_manager
from unit.trust.servers import TestCluster, store_with

#: Imports the program's entry point as its script would, and then calls a server.
_CLIENT = """
import sys
import {module}
import asyncio
from pathlib import Path
from orch_rpc.identity import IdentityStore
from orch_rpc.tls import manager_channel

async def main():
    async with manager_channel(sys.argv[1], IdentityStore(Path(sys.argv[2])).load()) as channel:
        await channel.unary_unary("/a/b")(b"", timeout=3)

try:
    asyncio.run(main())
except Exception as error:
    print(error)
"""


def version_spoken(port: int, newest: ssl.TLSVersion, certificate: Path) -> str:
    """What a client that can do no newer version agrees on with a server; empty when it is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(certificate)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
            context.wrap_socket(connection) as encrypted,
        ):
            return encrypted.version() or ""
    except OSError:
        return ""


def test_a_manager_speaks_tls_1_3_only(tmp_path: Path) -> None:
    """On both of its ports a client that can do no more than TLS 1.2 gets no connection."""

    async def story(manager: RealManager) -> None:
        identity = manager.cluster.worker()
        certificate = tmp_path / "client.pem"
        certificate.write_bytes(identity.certificate_pem + identity.key_pem)
        for port in (manager.address.port, manager.address.port + 1):
            assert await asyncio.to_thread(version_spoken, port, ssl.TLSVersion.TLSv1_3, certificate) == "TLSv1.3"
            assert await asyncio.to_thread(version_spoken, port, ssl.TLSVersion.TLSv1_2, certificate) == ""

    with_manager(tmp_path, story)


@pytest.mark.parametrize("module", ["orch_agent.orchd", "orch_cli.connection", "orch_manager.__main__"])
def test_no_program_calls_a_server_that_is_older(tmp_path: Path, module: str) -> None:
    """A server with a valid certificate that can do no more than TLS 1.2 is not spoken to."""
    cluster = TestCluster()
    store_with(tmp_path / "client", cluster.worker())
    manager = cluster.manager()
    (tmp_path / "server.pem").write_bytes(manager.certificate_pem + manager.key_pem)
    script = _CLIENT.format(module=module)

    async def told(newest: ssl.TLSVersion) -> list[str]:
        versions: list[str] = []

        async def met(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            versions.append(writer.get_extra_info("ssl_object").version())
            writer.close()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        context.maximum_version = newest
        context.set_alpn_protocols(["h2"])
        server = await asyncio.start_server(met, "127.0.0.1", 0, ssl=context)
        async with server:
            address = parse_address(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
            command = [sys.executable, "-c", script, str(address), str(tmp_path / "client")]
            await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=40)
        return versions

    assert "TLSv1.3" in asyncio.run(told(ssl.TLSVersion.TLSv1_3))
    assert asyncio.run(told(ssl.TLSVersion.TLSv1_2)) == []
