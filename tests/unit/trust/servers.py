"""Real TLS servers on loopback, with a cluster's certificates, for the tests of trust."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from orch_rpc import servers, tls
from orch_rpc.certificates import Authority, CertificateRole, Subject, new_authority, new_key, new_request
from orch_rpc.identity import Identity, IdentitySource, IdentityStore

DAY_MS = 86_400_000


def now_unix_ms() -> int:
    return time.time_ns() // 1_000_000


class TestCluster:
    """A root, and identities that it issued."""

    __test__ = False

    def __init__(self, cluster_id: str = "cluster1", authority: Authority | None = None) -> None:
        self.cluster_id = cluster_id
        self.authority = authority or new_authority(cluster_id, now_unix_ms=now_unix_ms())

    @property
    def roots_pem(self) -> bytes:
        return self.authority.certificate_pem

    def identity(
        self,
        name: str,
        role: CertificateRole,
        *,
        lifetime_ms: int = 90 * DAY_MS,
        stack_prefix: str = "",
        roots_pem: bytes = b"",
        age_ms: int = 0,
    ) -> Identity:
        key = new_key()
        subject = Subject(name, role, self.cluster_id, stack_prefix)
        certificate = self.authority.issue(
            new_request(key), subject, lifetime_ms=lifetime_ms, now_unix_ms=now_unix_ms() - age_ms
        )
        return Identity(certificate, key, roots_pem or self.roots_pem)

    def manager(self, name: str = "manager1", **options: Any) -> Identity:
        return self.identity(name, CertificateRole.MANAGER, **options)

    def worker(self, name: str = "worker1", **options: Any) -> Identity:
        return self.identity(name, CertificateRole.WORKER, **options)

    def user(self, name: str, role: CertificateRole, **options: Any) -> Identity:
        return self.identity(name, role, **options)

    def expired_worker(self, name: str = "worker1") -> Identity:
        return self.worker(name, lifetime_ms=DAY_MS, age_ms=3 * DAY_MS)


def store_with(folder: Path, identity: Identity) -> IdentityStore:
    folder.mkdir(parents=True, exist_ok=True)
    store = IdentityStore(folder)
    store.save(identity)
    return store


@asynccontextmanager
async def serving(
    source: IdentitySource, *handlers: Any, joining: bool = False, interceptors: Any = ()
) -> AsyncIterator[str]:
    """A server with some servicers (functions that add them); its address."""
    server = servers.new_server(interceptors=interceptors)
    for add in handlers:
        add(server)
    make = tls.joining_server_credentials if joining else tls.mutual_server_credentials
    port = server.add_secure_port("127.0.0.1:0", make(source))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await servers.stop(server, grace_s=0)


async def closing(channel: grpc.aio.Channel) -> None:
    await channel.close(None)
