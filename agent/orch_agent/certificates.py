"""The node's certificate: how it gets the first one, and how it gets the next in time.

A certificate is renewed at a random point between half and four fifths of its life, over a connection that shows the
present one, and at once when the manager asks for it: the node's role changed, or the cluster's root. Every
certificate has a key of its own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from orch_proto import ca_pb2 as ca
from orch_proto import defaults
from orch_proto.ca_pb2_grpc import CAStub
from orch_proto.specs_pb2 import NodeAvailability
from orch_rpc import certificates, logs
from orch_rpc.addresses import Address
from orch_rpc.errors import Internal, OrchError, Unauthenticated, Unavailable, rpc_errors
from orch_rpc.identity import Identity, IdentitySource, IdentityStore
from orch_rpc.tls import fetch_root, joining_channel, manager_channel
from orch_rpc.tokens import parse_token

log = logs.get("certificates")
_CALL_TIMEOUT_S: Final = defaults.RPC_TIMEOUT_MS / 1000
_JOIN_ATTEMPTS: Final = 3
_RETRY_FIRST_S: Final = 1.0
_RETRY_LAST_S: Final = 300.0
#: Longest sleep: a clock that jumped, or a host that slept, is noticed by then.
_LONGEST_WAIT_S: Final = 600.0


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Joined:
    """What a node knows after it was let in.

    Attributes:
        identity: who it is; to be saved.
        managers: `host:port` of the managers that can be reached; the one that let it in comes first.
    """

    identity: Identity
    managers: tuple[str, ...]


async def join(
    manager: Address,
    token_text: str,
    *,
    hostname: str,
    availability: NodeAvailability.ValueType = NodeAvailability.NODE_AVAILABILITY_UNSPECIFIED,
    previous: Identity | None = None,
) -> Joined:
    """Joins a cluster: checks the manager by the token's digest, then shows the token's secret and gets a certificate.

    Args:
        manager: any manager of the cluster; the port for joining stands above its own.
        token_text: the join token; it decides the role.
        hostname: the node's name.
        availability: whether the node takes tasks.
        previous: the identity that the node had, expired or not: of the same cluster, it keeps its id.

    Raises:
        InvalidArgument: the token is none.
        Unauthenticated: the manager is of another cluster, or does not accept the token.
        OrchError: the manager cannot be reached, or refuses.
    """
    token = parse_token(token_text)
    root = await fetch_root(manager, token.root_digest)
    key = previous.key_pem if previous is not None else certificates.new_key()
    request = ca.IssueNodeCertificateRequest(
        # Asked with one request however often: a repeated call finds the node that the first one made.
        csr_pem=certificates.new_request(key, hostname[:64]),
        token=token_text.strip(),
        availability=availability,
        previous_certificate_pem=previous.certificate_pem if previous is not None else b"",
        hostname=hostname,
    )
    for attempt in range(1, _JOIN_ATTEMPTS + 1):
        try:
            async with joining_channel(manager, root) as channel:
                with rpc_errors(f"join through {manager}"):
                    answer = await CAStub(channel).IssueNodeCertificate(request, timeout=_CALL_TIMEOUT_S)
        except Unavailable as error:
            if attempt == _JOIN_ATTEMPTS:
                raise
            log.warning("join.again", manager=manager, why=error)
            await asyncio.sleep(_RETRY_FIRST_S)
            continue
        identity = _identity_of(answer, key)
        return Joined(identity, tuple(dict.fromkeys((str(manager), *answer.manager_addresses))))
    raise AssertionError("the last attempt returns or raises")


def _identity_of(answer: ca.IssueNodeCertificateResponse, key: bytes) -> Identity:
    """The identity in a manager's answer.

    Raises:
        Internal: its parts do not belong together.
    """
    try:
        identity = Identity(answer.certificate_pem, key, answer.roots_pem)
    except OrchError as error:
        raise Internal("cannot use the certificate that the manager issued", error.why) from error
    if not certificates.is_issued_by(identity.certificate_pem, [identity.roots_pem]):
        raise Internal(
            "cannot use the certificate that the manager issued", "none of the roots that came along signed it"
        )
    if identity.name != answer.node_id or not identity.role.is_node:
        raise Internal("cannot use the certificate that the manager issued", "it is not this node's")
    return identity


async def renew(manager: Address | str, identity: Identity) -> Identity:
    """Asks a manager for the next certificate, with a fresh key.

    Raises:
        Unauthenticated: the present one has expired, or the node was removed.
        OrchError: the manager cannot be reached, or refuses.
    """
    key = certificates.new_key()
    async with manager_channel(manager, identity) as channel:
        with rpc_errors(f"renew the certificate at {manager}"):
            answer = await CAStub(channel).IssueNodeCertificate(
                ca.IssueNodeCertificateRequest(csr_pem=certificates.new_request(key, identity.name)),
                timeout=_CALL_TIMEOUT_S,
            )
    renewed = _identity_of(answer, key)
    if (renewed.name, renewed.cluster_id) != (identity.name, identity.cluster_id):
        raise Internal("cannot use the certificate that the manager issued", "it is of another node or cluster")
    return renewed


def renewal_time_unix_ms(identity: Identity, point: float) -> int:
    """When to renew.

    Args:
        identity: with the certificate.
        point: from 0, the earliest time, to 1, the latest.
    """
    facts = identity.facts
    begins = facts.not_before_unix_ms + defaults.CERTIFICATE_BACKDATE_MS
    part = defaults.RENEWAL_EARLIEST + (defaults.RENEWAL_LATEST - defaults.RENEWAL_EARLIEST) * point
    return begins + int((facts.not_after_unix_ms - begins) * part)


class CertificateKeeper:
    """Keeps the node's certificate fresh.

    Args:
        store: where the identity stands; there must be one.
        managers: `host:port` of the managers known now.
        clock_unix_ms: the time.
        chance: spreads renewals.
    """

    def __init__(
        self,
        store: IdentityStore,
        managers: Callable[[], Iterable[str]],
        *,
        clock_unix_ms: Callable[[], int] = _now_unix_ms,
        chance: random.Random | None = None,
    ) -> None:
        self._store = store
        self._managers = managers
        self._clock_unix_ms = clock_unix_ms
        self._chance = chance or random.Random()  # noqa: S311 -- jitter, no secret
        self._asked = asyncio.Event()
        #: The identity in force; servers and channels read it from here.
        self.source = IdentitySource(store, lambda error: log.error("identity.unreadable", why=error))
        #: Why the certificate could not be renewed; empty when it could, or need not be yet. For people.
        self.problem = ""
        self.renewals = 0

    def renew_now(self) -> None:
        """Renews as soon as possible: the manager asks for it."""
        self._asked.set()

    async def run(self, on_renewed: Callable[[Identity], Awaitable[None]]) -> None:
        """Renews in time until cancelled.

        Args:
            on_renewed: told of each new identity after it was saved; its role may be another.
        """
        while True:
            await self._until_due()
            self._asked.clear()
            renewed = await self._renew_until_done()
            await on_renewed(renewed)

    async def _until_due(self) -> None:
        due_unix_ms = renewal_time_unix_ms(self.source.current(), self._chance.random())
        while not self._asked.is_set() and (left_ms := due_unix_ms - self._clock_unix_ms()) > 0:
            await self._wait(min(left_ms / 1000, _LONGEST_WAIT_S))

    async def _wait(self, longest_s: float) -> None:
        try:
            async with asyncio.timeout(longest_s):
                await self._asked.wait()
        except TimeoutError:
            return

    async def _renew_until_done(self) -> Identity:
        """Tries manager after manager, with a growing pause after each round."""
        delay_s = _RETRY_FIRST_S
        while True:
            identity = self.source.current()
            renewed = await self._renew_once(identity)
            if renewed is not None:
                await asyncio.to_thread(self._store.save, renewed)
                self.problem = ""
                self.renewals += 1
                log.info(
                    "certificate.renewed",
                    node=renewed.name,
                    role=renewed.role,
                    not_after_unix_ms=renewed.facts.not_after_unix_ms,
                )
                return self.source.current()
            self._asked.clear()
            await self._wait(delay_s * self._chance.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, _RETRY_LAST_S)

    async def _renew_once(self, identity: Identity) -> Identity | None:
        for address in dict.fromkeys(self._managers()):
            try:
                identity.check_valid(self._clock_unix_ms())
                return await renew(address, identity)
            except Unauthenticated as error:
                # No other manager will say otherwise: it expired, or the node was removed.
                self._trouble(error)
                return None
            except OrchError as error:
                self._trouble(error)
        return None

    def _trouble(self, error: OrchError) -> None:
        """Told once for each new reason, as it may go on for days."""
        if str(error) != self.problem:
            log.error("certificate.not_renewed", why=error)
        self.problem = str(error)
