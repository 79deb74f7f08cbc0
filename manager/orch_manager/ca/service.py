"""The gRPC side of the authority; see ca.proto. The leader signs; other managers forward."""
# ruff: noqa: N802 - methods bear the names of the contract

from __future__ import annotations

import re
from typing import Any, Final

from orch_manager.ca import roots
from orch_manager.clock import Clock, IdSource
from orch_manager.faults import told_as
from orch_manager.store.store import Store
from orch_manager.store.tables import Reader
from orch_manager.store.transaction import Transaction
from orch_proto import ca_pb2 as ca
from orch_proto import defaults
from orch_proto.ca_pb2_grpc import CAServicer
from orch_proto.objects_pb2 import Cluster, Node, NodeState
from orch_proto.specs_pb2 import NodeAvailability, NodeRole
from orch_rpc import logs
from orch_rpc.authorization import current_call
from orch_rpc.callers import Caller, CallerKind
from orch_rpc.certificates import (
    CertificateRole,
    Subject,
    digest,
    facts,
    first,
    is_issued_by,
    parse_all,
    request_is_by_holder_of,
)
from orch_rpc.errors import FailedPrecondition, InvalidArgument, NotFound, OrchError, Unauthenticated
from orch_rpc.tokens import parse_token, secrets_match

_log = logs.get("ca")
_Context = Any
_USER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}", re.ASCII)
_STACK_PREFIX: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})", re.ASCII)
_PEM_END: Final = b"-----END CERTIFICATE-----"
_TOKEN_TODO: Final = "print the present one on a manager: orch cluster token worker, or orch cluster token manager"  # noqa: S105 -- a sentence
_USER_ROLES: Final = {
    ca.USER_ROLE_READ: CertificateRole.USER_READ,
    ca.USER_ROLE_DEPLOY: CertificateRole.USER_DEPLOY,
    ca.USER_ROLE_ADMIN: CertificateRole.USER_ADMIN,
}


class CAService(CAServicer):
    """Issues certificates. Who may ask is decided before (`orch_rpc.access`); the caller is read from `current_call()`.

    Args:
        store: the Cluster and the Nodes.
        clock: what time it is.
        ids: for new nodes.
    """

    def __init__(self, store: Store, *, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids

    # ---- roots -----------------------------------------------------------------------------------------

    async def GetRootCertificate(
        self, request: ca.GetRootCertificateRequest, context: _Context
    ) -> ca.GetRootCertificateResponse:
        """The root with a digest, or the one that tokens name."""
        del context
        bundle = roots.trusted_roots(self._cluster(self._store).root_ca)
        each = [first(text + _PEM_END) for text in bundle.split(_PEM_END) if text.strip()]
        for certificate in each:
            if not request.digest or digest(certificate) == request.digest:
                return ca.GetRootCertificateResponse(certificate_pem=certificate)
        raise NotFound(
            "cannot show the root certificate",
            "the cluster has none with this digest: the token is of another cluster, or older than the present root",
            _TOKEN_TODO,
        )

    async def RotateRoot(self, request: ca.RotateRootRequest, context: _Context) -> ca.RootStatusResponse:
        """Begins a change of the root."""
        del request, context

        def write(transaction: Transaction) -> None:
            cluster = transaction.edit(Cluster, self._cluster(transaction).id)
            rotation = roots.begin_rotation(cluster.root_ca, cluster.id, self._clock.unix_ms())
            cluster.root_ca.rotation.CopyFrom(rotation)
            transaction.update(cluster)

        with told_as("cannot rotate the root certificate"):
            await self._store.update(write, reason="rotate the root certificate")
        _log.info("root rotation begins")
        return self._root_status()

    async def RootStatus(self, request: ca.RootStatusRequest, context: _Context) -> ca.RootStatusResponse:
        """How far a change of the root is."""
        del request, context
        return self._root_status()

    def _root_status(self) -> ca.RootStatusResponse:
        root_ca = self._cluster(self._store).root_ca
        wanted = roots.wanted(root_ca)
        nodes = self._store.all(Node)
        waiting = sorted(node.id for node in nodes if not wanted.is_met_by(node))
        authority = roots.signing_authority(root_ca)
        ends = min(each.not_valid_after_utc for each in parse_all(authority.certificate_pem))
        return ca.RootStatusResponse(
            phase=roots.phase_of(root_ca),
            roots_pem=roots.trusted_roots(root_ca),
            digest=digest(root_ca.certificate_pem),
            nodes=len(nodes),
            nodes_done=len(nodes) - len(waiting),
            nodes_waiting=waiting,
            started_at_unix_ms=root_ca.rotation.started_at_unix_ms,
            not_after_unix_ms=int(ends.timestamp()) * 1000,
        )

    @staticmethod
    def _cluster(reader: Reader) -> Cluster:
        for cluster in reader.all(Cluster):
            return cluster
        raise FailedPrecondition("cannot answer", "there is no cluster yet", "try again in a moment")

    # ---- tokens ----------------------------------------------------------------------------------------

    async def JoinTokens(self, request: ca.JoinTokensRequest, context: _Context) -> ca.JoinTokensResponse:
        """Shows the tokens, after making new ones where that is asked for."""
        del context

        def write(transaction: Transaction) -> None:
            cluster = transaction.edit(Cluster, self._cluster(transaction).id)
            roots.rotate_tokens(cluster.root_ca, worker=request.rotate_worker, manager=request.rotate_manager)
            transaction.update(cluster)

        if request.rotate_worker or request.rotate_manager:
            with told_as("cannot rotate the join token"):
                await self._store.update(write, reason="rotate join tokens")
        root_ca = self._cluster(self._store).root_ca
        roots.signing_authority(root_ca)  # says so when there is none
        return ca.JoinTokensResponse(
            worker=roots.token_text(root_ca, root_ca.join_tokens.worker),
            manager=roots.token_text(root_ca, root_ca.join_tokens.manager),
            manager_addresses=roots.manager_addresses(self._store.all(Node)),
        )

    def _role_of_token(self, cluster: Cluster, text: str) -> NodeRole.ValueType:
        """The role that a token gives.

        Raises:
            Unauthenticated: none.
        """
        what = "cannot let the node join"
        try:
            token = parse_token(text)
        except InvalidArgument as error:
            raise Unauthenticated(what, error.why, error.todo) from error
        kept = cluster.root_ca.join_tokens
        # Both are compared, whatever the first comparison says.
        matches = secrets_match(token.secret, kept.worker), secrets_match(token.secret, kept.manager)
        if not any(matches):
            why = "its token is not valid: it was rotated since it was printed, or is of another cluster"
            raise Unauthenticated(what, why, _TOKEN_TODO)
        return NodeRole.NODE_ROLE_MANAGER if matches[1] else NodeRole.NODE_ROLE_WORKER

    # ---- nodes -----------------------------------------------------------------------------------------

    async def IssueNodeCertificate(
        self, request: ca.IssueNodeCertificateRequest, context: _Context
    ) -> ca.IssueNodeCertificateResponse:
        """With a token: admits a node, or takes one back. Without: renews the caller's certificate."""
        del context
        call = current_call()

        def write(transaction: Transaction) -> Node:
            cluster = self._cluster(transaction)
            if request.token:
                node = self._joining_node(transaction, cluster, request)
            else:
                node = self._renewing_node(transaction, call.caller)
            node.certificate.CopyFrom(roots.issue_to_node(cluster, node, request.csr_pem, self._clock.unix_ms()))
            if transaction.get(Node, node.id) is None:
                transaction.create(node)
            else:
                transaction.update(node)
            return node

        with told_as("cannot issue a certificate"):
            node = await self._store.update(write, reason="issue a node's certificate")
        cluster = self._cluster(self._store)
        call.about(f"node {node.id}, {'with a token' if request.token else 'a renewal'}")
        return ca.IssueNodeCertificateResponse(
            node_id=node.id,
            role=node.certificate.role,
            certificate_pem=node.certificate.certificate_pem,
            roots_pem=roots.trusted_roots(cluster.root_ca),
            cluster_id=cluster.id,
            not_after_unix_ms=node.certificate.not_after_unix_ms,
            manager_addresses=roots.manager_addresses(self._store.all(Node)),
        )

    def _joining_node(
        self, transaction: Transaction, cluster: Cluster, request: ca.IssueNodeCertificateRequest
    ) -> Node:
        """The node that a token admits: a new one, or the one that asked before, or was here before."""
        role = self._role_of_token(cluster, request.token)
        known = self._known_node(transaction, cluster, request)
        if known is not None:
            return transaction.edit(Node, known.id)
        if request.hostname and not _HOST_NAME.fullmatch(request.hostname):
            raise InvalidArgument("cannot let the node join", "its host name is none", "give orchd a --hostname")
        node = Node(id=self._ids.new(), role=role)
        node.spec.desired_role = role
        node.spec.annotations.name = request.hostname
        node.spec.availability = request.availability or NodeAvailability.NODE_AVAILABILITY_ACTIVE
        node.description.hostname = request.hostname
        node.status.state = NodeState.NODE_STATE_UNKNOWN
        node.status.message = "has not been heard of yet"
        return node

    @staticmethod
    def _known_node(transaction: Transaction, cluster: Cluster, request: ca.IssueNodeCertificateRequest) -> Node | None:
        """A node that asks again: its first answer was lost (same request), or its certificate expired."""
        for node in transaction.all(Node):
            if node.certificate.csr_pem == request.csr_pem:
                return node
        if not request.previous_certificate_pem:
            return None
        try:
            subject = facts(request.previous_certificate_pem).subject
            ours = is_issued_by(request.previous_certificate_pem, [roots.trusted_roots(cluster.root_ca)])
            proven = request_is_by_holder_of(request.csr_pem, request.previous_certificate_pem)
        except OrchError:
            return None
        if not proven or not subject.role.is_node or subject.cluster_id != cluster.id:
            return None
        node_before = transaction.get(Node, subject.name)
        # The root may have been rotated while the node was away: then its object tells which certificate was its own.
        if node_before is None or not (ours or _same(node_before, request.previous_certificate_pem)):
            return None
        return node_before

    @staticmethod
    def _renewing_node(transaction: Transaction, caller: Caller) -> Node:
        """The node whose certificate the caller showed."""
        what = "cannot renew a certificate"
        if not caller.is_node:
            raise Unauthenticated(what, f"{caller} shows no node's certificate, and no token", _TOKEN_TODO)
        if transaction.get(Node, caller.id) is None:
            raise Unauthenticated(what, f"node {caller.id} was removed from the cluster", "join it again with a token")
        return transaction.edit(Node, caller.id)

    async def NodeCertificateStatus(
        self, request: ca.NodeCertificateStatusRequest, context: _Context
    ) -> ca.NodeCertificateStatusResponse:
        """What certificate a node has; a worker is told its own."""
        del context
        call = current_call()
        if call.caller.kind is CallerKind.WORKER:
            call.require_node(request.node_id)
        node = self._store.get(Node, request.node_id)
        if node is None:
            raise NotFound("cannot show the certificate", f"there is no node {request.node_id}", "see orch node ls")
        answer = ca.NodeCertificateStatusResponse(
            certificate=node.certificate, root_pem=roots.trusted_roots(self._cluster(self._store).root_ca)
        )
        answer.certificate.ClearField("csr_pem")
        return answer

    # ---- people ----------------------------------------------------------------------------------------

    async def IssueUserCertificate(
        self, request: ca.IssueUserCertificateRequest, context: _Context
    ) -> ca.IssueUserCertificateResponse:
        """A certificate for a person."""
        del context
        what = f"cannot issue a certificate for user {request.user!r}"
        if not _USER_NAME.fullmatch(request.user):
            raise InvalidArgument(
                what, "the name has characters that do not go, or not 1 to 63", "use a-z, 0-9, _ . @ -"
            )
        role = _USER_ROLES.get(request.role)
        if role is None:
            raise InvalidArgument(what, "it needs a role", "give --role admin, deploy or read")
        if request.stack_prefix and role is not CertificateRole.USER_DEPLOY:
            raise InvalidArgument(what, "only the role deploy can be limited to stacks", "leave the prefix out")
        if request.stack_prefix and not _STACK_PREFIX.fullmatch(request.stack_prefix):
            raise InvalidArgument(what, "no stack's name begins so", "use a-z, 0-9, _ and -")
        lifetime_ms = request.lifetime_ms or defaults.USER_CERTIFICATE_LIFETIME_MS
        if not 0 < lifetime_ms <= defaults.USER_CERTIFICATE_MAX_LIFETIME_MS:
            days = defaults.USER_CERTIFICATE_MAX_LIFETIME_MS // 86_400_000
            raise InvalidArgument(
                what, f"a lifetime is more than 0 and at most {days} days", "it cannot be called back"
            )
        cluster = self._cluster(self._store)
        issued = roots.signing_authority(cluster.root_ca).issue(
            request.csr_pem,
            Subject(request.user, role, cluster.id, request.stack_prefix),
            lifetime_ms=lifetime_ms,
            now_unix_ms=self._clock.unix_ms(),
        )
        return ca.IssueUserCertificateResponse(
            certificate_pem=issued,
            root_pem=roots.trusted_roots(cluster.root_ca),
            not_after_unix_ms=facts(issued).not_after_unix_ms,
        )


def _same(node: Node, certificate_pem: bytes) -> bool:
    """Whether a certificate is the one that the node was given last."""
    return bool(node.certificate.certificate_pem) and digest(node.certificate.certificate_pem) == digest(
        certificate_pem
    )
