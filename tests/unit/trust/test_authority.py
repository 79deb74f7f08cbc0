"""The cluster's authority in a real manager over real TLS: joining, renewing, refusing, and a change of the root."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import grpc
import grpc.aio
import pytest

from orch_agent import certificates as node_certificates
from orch_agent.certificates import CertificateKeeper, Joined
from orch_proto import ca_pb2 as ca
from orch_proto import control_pb2 as control
from orch_proto.control_pb2_grpc import ControlStub
from orch_proto.dispatcher_pb2 import AgentMessage, FetchImageRequest, ManagerMessage, RelayHello, RelayUp, SessionOpen
from orch_proto.dispatcher_pb2_grpc import DispatcherStub, RelayStub
from orch_proto.objects_pb2 import NodeState
from orch_proto.types_pb2 import ObjectKind
from orch_rpc import certificates, tls
from orch_rpc.certificates import CertificateRole
from orch_rpc.errors import (
    FailedPrecondition,
    Internal,
    NotFound,
    OrchError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    rpc_errors,
)
from orch_rpc.identity import Identity, IdentitySource, IdentityStore
from orch_rpc.tls import joining_channel, manager_channel
from orch_rpc.tokens import parse_token
from unit.trust.real_manager import FOUNDER, RealManager, with_manager
from unit.trust.servers import DAY_MS, TestCluster, serving, store_with


async def join(manager: RealManager, token: str, hostname: str = "two", previous: Identity | None = None) -> Joined:
    return await node_certificates.join(manager.address, token, hostname=hostname, previous=previous)


async def nodes(manager: RealManager) -> dict[str, control.Object]:
    async with manager.as_local() as (_, api):
        listed = await api.List(control.ListRequest(kind=ObjectKind.OBJECT_KIND_NODE))
        return {each.node.id: each.node for each in listed.objects}


async def attach(identity: Identity, manager: RealManager, node_id: str) -> ManagerMessage:
    """The first answer to an agent that says it is a node.

    Repeated like an agent's own: grpc says INTERNAL when a call was refused before its first message had left.
    """
    for _ in range(10):
        with contextlib.suppress(Internal):
            return await attach_once(identity, manager, node_id)
    raise AssertionError("the manager gave no reason in ten attempts")


async def attach_once(identity: Identity, manager: RealManager, node_id: str) -> ManagerMessage:
    async with manager_channel(manager.address, identity) as channel:
        stream = DispatcherStub(channel).Attach()
        with rpc_errors("attach"):
            await stream.write(AgentMessage(open=SessionOpen(node_id=node_id)))
            answer = await stream.read()
            assert isinstance(answer, ManagerMessage)
            return answer


# ---- joining ---------------------------------------------------------------------------------------


def test_a_token_admits_a_node_in_the_role_that_it_is_for(tmp_path: Path) -> None:
    """The worker's token makes a worker, the manager's a manager; the node's object is there, and no secret is told."""

    async def story(manager: RealManager) -> None:
        tokens = await manager.tokens()
        worker = await join(manager, tokens.worker)
        assert (worker.identity.role, worker.identity.cluster_id) == (CertificateRole.WORKER, "cluster1")
        assert worker.managers == (str(manager.address),)
        other = await join(manager, tokens.manager, "three")
        assert other.identity.role is CertificateRole.MANAGER
        known = await nodes(manager)
        assert known[worker.identity.name].description.hostname == "two"
        assert set(known) == {FOUNDER, worker.identity.name, other.identity.name}
        log = manager.log.read_text()
        for token in (tokens.worker, tokens.manager):
            assert parse_token(token).secret not in log
        assert f'caller=anonymous method=CA/IssueNodeCertificate object="node {worker.identity.name}' in log

    with_manager(tmp_path, story)


def test_a_call_to_join_that_is_repeated_makes_one_node(tmp_path: Path) -> None:
    """A joiner whose answer was lost asks again with the same request, and gets the same node."""

    async def story(manager: RealManager) -> None:
        token = (await manager.tokens()).worker
        request = ca.IssueNodeCertificateRequest(
            csr_pem=certificates.new_request(certificates.new_key()), token=token, hostname="two"
        )
        async with joining_channel(manager.address, manager.cluster.roots_pem) as channel:
            authority = node_certificates.CAStub(channel)
            first = await authority.IssueNodeCertificate(request)
            second = await authority.IssueNodeCertificate(request)
        assert first.node_id == second.node_id
        assert len(await nodes(manager)) == 2

    with_manager(tmp_path, story)


def test_a_rotated_token_admits_nobody(tmp_path: Path) -> None:
    """After a rotation the old token is refused in words, the new one admits, and the other role's token stays."""

    async def story(manager: RealManager) -> None:
        before = await manager.tokens()
        after = await manager.tokens(rotate_worker=True)
        assert after.manager == before.manager
        with pytest.raises(Unauthenticated) as caught:
            await join(manager, before.worker)
        assert caught.value.what == "cannot let the node join"
        assert "it was rotated since it was printed" in caught.value.why
        assert "orch cluster token worker" in caught.value.todo
        assert (await join(manager, after.worker)).identity.role is CertificateRole.WORKER

    with_manager(tmp_path, story)


def test_a_token_of_another_cluster_is_never_shown_to_this_one(tmp_path: Path) -> None:
    """The joiner compares the root with the token's digest before it says the secret, and names the cause."""

    async def story(manager: RealManager) -> None:
        foreign = RealManager(tmp_path / "foreign").trust.worker_token
        with pytest.raises((Unauthenticated, NotFound), match="another cluster"):
            await join(manager, foreign)
        assert "IssueNodeCertificate" not in manager.log.read_text()

    with_manager(tmp_path, story)


def test_the_port_for_joining_answers_nothing_else(tmp_path: Path) -> None:
    """Without a certificate nobody can ask for anything but the root and, with a token, a certificate."""

    async def story(manager: RealManager) -> None:
        async with joining_channel(manager.address, manager.cluster.roots_pem) as channel:
            with pytest.raises(OrchError, match="Method not found") as caught, rpc_errors("list"):
                await ControlStub(channel).List(control.ListRequest(kind=ObjectKind.OBJECT_KIND_NODE))
            assert caught.value.code.name == "UNIMPLEMENTED"
            authority = node_certificates.CAStub(channel)
            with pytest.raises(PermissionDenied, match="anonymous may not do this"), rpc_errors("ask"):
                await authority.JoinTokens(ca.JoinTokensRequest())
            csr = certificates.new_request(certificates.new_key())
            with pytest.raises(Unauthenticated, match="shows no node's certificate, and no token"), rpc_errors("ask"):
                await authority.IssueNodeCertificate(ca.IssueNodeCertificateRequest(csr_pem=csr))

    with_manager(tmp_path, story)


def test_nobody_joins_where_no_manager_listens() -> None:
    """A wrong address is told as one, with what to check."""
    manager = RealManager(Path("/nonexistent"))
    with pytest.raises(Unavailable, match=r"Connection refused; check the address and the firewall"):
        asyncio.run(join(manager, manager.trust.worker_token))


# ---- what is refused in the handshake --------------------------------------------------------------


def shown(manager: RealManager, *credentials: bytes | None) -> grpc.aio.Channel:
    """A channel of a client that does not look at its own certificate first."""
    return tls._channel(manager.address, grpc.ssl_channel_credentials(*credentials))


async def refused(channel: grpc.aio.Channel) -> Unavailable:
    """Why a client was not let in."""
    async with channel:
        with pytest.raises(Unavailable) as caught, rpc_errors("list the nodes"):
            await ControlStub(channel).List(control.ListRequest(kind=ObjectKind.OBJECT_KIND_NODE), timeout=5)
    assert caught.value.what == "cannot list the nodes"
    return caught.value


def test_certificates_that_do_not_count_are_refused_in_words(tmp_path: Path) -> None:
    """Without a certificate, with an expired one, or with another cluster's: refused, each with what to do."""

    async def story(manager: RealManager) -> None:
        closed = (
            "the manager closed the connection: it accepts no certificate that has expired or is of another cluster"
        )
        roots = manager.cluster.roots_pem
        assert (await refused(shown(manager, roots, None, None))).why == closed
        expired = manager.cluster.expired_worker("worker1")
        with pytest.raises(Unauthenticated, match=r"its certificate expired on .* join again with a token"):
            manager_channel(manager.address, expired)
        assert (await refused(shown(manager, roots, expired.key_pem, expired.certificate_pem))).why == closed
        stranger = TestCluster("cluster2").worker()
        told = await refused(shown(manager, roots, stranger.key_pem, stranger.certificate_pem))
        assert told.why == closed
        assert told.todo.endswith("join again, or have an admin issue another one")
        told = await refused(manager_channel(manager.address, stranger))
        assert told.why == "the manager's certificate is of another cluster, or of a root that was rotated away"

    with_manager(tmp_path, story)


def test_a_worker_cannot_pose_as_a_manager(tmp_path: Path) -> None:
    """A server that shows a worker's certificate is not spoken to, though the cluster's root signed it."""

    async def story() -> None:
        cluster = TestCluster()
        source = IdentitySource(store_with(tmp_path, cluster.worker()))
        async with serving(source) as address:
            told = await refused(manager_channel(address, cluster.worker("worker2")))
        assert told.why == "what answers there is no manager of an orch cluster"

    asyncio.run(story())


# ---- what a worker may not -------------------------------------------------------------------------


def test_a_worker_cannot_speak_for_another_node(tmp_path: Path) -> None:
    """It cannot attach, open a relay, fetch an image or renew as another, and reads no object and no secret."""

    async def story(manager: RealManager) -> None:
        tokens = await manager.tokens()
        mine = (await join(manager, tokens.worker, "two")).identity
        other = (await join(manager, tokens.worker, "three")).identity
        assert (await attach(mine, manager, mine.name)).WhichOneof("message") == "opened"
        with pytest.raises(PermissionDenied) as caught:
            await attach(mine, manager, other.name)
        assert caught.value.what == f"cannot answer for node {other.name}"
        assert f"the certificate is of worker {mine.name}" in caught.value.why
        async with manager_channel(manager.address, mine) as channel:
            relay = RelayStub(channel).Open()
            await relay.write(RelayUp(hello=RelayHello(relay_id="r", node_id=other.name)))
            with pytest.raises(PermissionDenied, match="speaks for itself only"), rpc_errors("relay"):
                await relay.read()
            image = FetchImageRequest(node_id=other.name, reference="web:1", image_id=f"sha256:{'0' * 64}")
            with pytest.raises(PermissionDenied, match="speaks for itself only"), rpc_errors("fetch"):
                await anext(aiter(RelayStub(channel).FetchImage(image)))
            image.node_id = mine.name
            with pytest.raises(PermissionDenied, match="runs it"), rpc_errors("fetch"):
                await anext(aiter(RelayStub(channel).FetchImage(image)))
        async with manager.as_identity(mine) as (authority, api):
            with pytest.raises(PermissionDenied, match=f"worker {mine.name} may not do this"), rpc_errors("list"):
                await api.List(control.ListRequest(kind=ObjectKind.OBJECT_KIND_SECRET))
            with pytest.raises(PermissionDenied), rpc_errors("get"):
                await api.Get(control.GetRequest(kind=ObjectKind.OBJECT_KIND_TASK, reference="x"))
            with pytest.raises(PermissionDenied, match="speaks for itself only"), rpc_errors("status"):
                await authority.NodeCertificateStatus(ca.NodeCertificateStatusRequest(node_id=other.name))
            own = await authority.NodeCertificateStatus(ca.NodeCertificateStatusRequest(node_id=mine.name))
            assert own.certificate.common_name == mine.name

    with_manager(tmp_path, story)


def test_no_answer_has_a_key_of_the_cluster(tmp_path: Path) -> None:
    """The root's key and the tokens' secrets are in no list, object, watch or information, not even an admin's."""

    async def story(manager: RealManager) -> None:
        async with manager.as_local() as (_, api):
            answers = [
                await api.List(control.ListRequest(kind=ObjectKind.OBJECT_KIND_CLUSTER)),
                await api.Get(control.GetRequest(kind=ObjectKind.OBJECT_KIND_CLUSTER)),
                await api.ClusterInfo(control.ClusterInfoRequest()),
            ]
            watch = api.Watch(control.WatchRequest(kinds=[ObjectKind.OBJECT_KIND_CLUSTER]))
            answers.append(await watch.read())
            watch.cancel()
        told = b"".join(answer.SerializeToString() for answer in answers)
        kept = manager.trust.root_ca
        assert kept.certificate_pem in told
        for secret in (kept.key_pem[60:120], kept.join_tokens.worker.encode(), kept.join_tokens.manager.encode()):
            assert secret not in told

    with_manager(tmp_path, story)


# ---- renewing --------------------------------------------------------------------------------------


def test_a_renewed_certificate_follows_the_node_s_role(tmp_path: Path) -> None:
    """A renewal has a fresh key and the same name; a worker cannot ask itself into another role."""

    async def story(manager: RealManager) -> None:
        before = (await join(manager, (await manager.tokens()).worker)).identity
        after = await node_certificates.renew(manager.address, before)
        assert (after.name, after.role) == (before.name, CertificateRole.WORKER)
        assert after.key_pem != before.key_pem

    with_manager(tmp_path, story)


def test_an_expired_node_joins_again_with_its_id(tmp_path: Path) -> None:
    """With a token and its old key an expired node gets its id back; with the certificate of another it does not."""

    async def story(manager: RealManager) -> None:
        token = (await manager.tokens()).worker
        first = (await join(manager, token)).identity
        expired = manager.cluster.worker(first.name, lifetime_ms=DAY_MS, age_ms=3 * DAY_MS)
        assert (await join(manager, token, previous=expired)).identity.name == first.name
        thief_key = certificates.new_key()
        request = ca.IssueNodeCertificateRequest(
            csr_pem=certificates.new_request(thief_key),
            token=token,
            previous_certificate_pem=first.certificate_pem,
            hostname="thief",
        )
        async with joining_channel(manager.address, manager.cluster.roots_pem) as channel:
            answer = await node_certificates.CAStub(channel).IssueNodeCertificate(request)
        assert answer.node_id != first.name

    with_manager(tmp_path, story)


def test_a_removed_node_cannot_come_back_with_its_certificate(tmp_path: Path) -> None:
    """Once removed, a node neither attaches nor renews, though its certificate is valid for weeks."""

    async def story(manager: RealManager) -> None:
        identity = (await join(manager, (await manager.tokens()).worker)).identity
        request = control.RemoveRequest(kind=ObjectKind.OBJECT_KIND_NODE, reference=identity.name, force=True)
        deadline = time.monotonic() + 35
        removed = False
        while not removed and time.monotonic() < deadline:
            try:
                async with manager.as_local() as (_, api):
                    await api.Remove(request)
                removed = True
            except FailedPrecondition:
                # It must be down first, which it is once it was not heard of for long enough.
                await asyncio.sleep(0.2)
        assert removed
        for work in (attach(identity, manager, identity.name), node_certificates.renew(manager.address, identity)):
            with pytest.raises(Unauthenticated, match=f"node {identity.name} was removed from the cluster"):
                await work

    with_manager(tmp_path, story)


# ---- a change of the root --------------------------------------------------------------------------


def test_the_root_changes_without_downtime(tmp_path: Path) -> None:
    """During a rotation everybody accepts everybody; in the end the old root is forgotten and tokens are new."""

    async def story(manager: RealManager) -> None:
        old_tokens = await manager.tokens()
        folder = tmp_path / "worker"
        folder.mkdir()
        store = IdentityStore(folder)
        store.save((await join(manager, old_tokens.worker)).identity)
        before = store.load()
        assert before is not None

        async def ignore(_identity: Identity) -> None:
            """The worker's role stays."""

        keepers = {
            name: CertificateKeeper(identities, lambda: (str(manager.address),))
            for name, identities in ((before.name, store), (FOUNDER, manager.identities))
        }
        running = [asyncio.create_task(keeper.run(ignore)) for keeper in keepers.values()]
        async with manager.as_local() as (authority, _):
            status = await authority.RotateRoot(ca.RotateRootRequest())
            assert (status.phase, status.nodes_done) == (ca.ROOT_PHASE_RENEWING, 0)
            with pytest.raises(OrchError, match="a rotation is under way"), rpc_errors("rotate"):
                await authority.RotateRoot(ca.RotateRootRequest())
        # The worker, which knows only the old root, speaks to a manager with a certificate of the new one, and back.
        keepers[FOUNDER].renew_now()
        deadline = time.monotonic() + 30
        while (status := await manager.root_status()).nodes_done < 1:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert (await attach(before, manager, before.name)).WhichOneof("message") == "opened"
        joined = await join(manager, old_tokens.worker, "late")
        assert (await attach(joined.identity, manager, joined.identity.name)).WhichOneof("message") == "opened"
        late_folder = tmp_path / "late"
        late_folder.mkdir()
        late = IdentityStore(late_folder)
        late.save(joined.identity)
        keepers["late"] = CertificateKeeper(late, lambda: (str(manager.address),))
        running.append(asyncio.create_task(keepers["late"].run(ignore)))
        while (status := await manager.root_status()).phase != ca.ROOT_PHASE_STEADY:
            assert time.monotonic() < deadline, status
            for keeper in keepers.values():
                keeper.renew_now()
            await asyncio.sleep(0.1)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        after = store.load()
        assert after is not None
        assert certificates.bundle_digest(after.roots_pem) == certificates.bundle_digest(status.roots_pem)
        assert after.facts.issuer_key_id != before.facts.issuer_key_id
        assert (await attach(after, manager, after.name)).WhichOneof("message") == "opened"
        with pytest.raises(OrchError, match="another cluster, or older than the present root"):
            await join(manager, old_tokens.worker)
        fresh = await manager.tokens()
        assert parse_token(fresh.worker).secret == parse_token(old_tokens.worker).secret
        assert (await join(manager, fresh.worker, "new")).identity.role is CertificateRole.WORKER
        told = await nodes(manager)
        assert told[after.name].status.state != NodeState.NODE_STATE_DOWN

    with_manager(tmp_path, story)


# ---- people ----------------------------------------------------------------------------------------


def test_people_get_certificates_with_a_role(tmp_path: Path) -> None:
    """A reader writes nothing; a limited deployer touches its own stacks; wishes that make no sense are refused."""

    async def story(manager: RealManager) -> None:
        async def user(name: str, **wishes: object) -> Identity:
            key = certificates.new_key()
            async with manager.as_local() as (authority, _):
                request = ca.IssueUserCertificateRequest(csr_pem=certificates.new_request(key), user=name, **wishes)  # type: ignore[arg-type]
                issued = await authority.IssueUserCertificate(request)
            return Identity(issued.certificate_pem, key, issued.root_pem)

        reader = await user("rita", role=ca.USER_ROLE_READ)
        async with manager.as_identity(reader) as (_, api):
            assert (await api.List(control.ListRequest(kind=ObjectKind.OBJECT_KIND_NODE))).objects
            with pytest.raises(PermissionDenied, match=r"user rita \(read\) may not do this"), rpc_errors("deploy"):
                await api.RemoveStack(control.RemoveStackRequest(name="shop"))
        deployer = await user("dave", role=ca.USER_ROLE_DEPLOY, stack_prefix="shop")
        async with manager.as_identity(deployer) as (_, api):
            request = control.CreateRequest()
            request.spec.secret.annotations.name = "shop_key"
            request.spec.secret.data = b"x"
            assert (await api.Create(request)).object.secret.id
            request.spec.secret.annotations.name = "blog_key"
            with pytest.raises(PermissionDenied, match="begin with 'shop' only"), rpc_errors("create"):
                await api.Create(request)
            with pytest.raises(PermissionDenied, match=r"user dave \(deploy, stacks shop\*\)"), rpc_errors("token"):
                async with manager.as_identity(deployer) as (authority, _):
                    await authority.JoinTokens(ca.JoinTokensRequest())
        for wishes, why in (
            ({"role": ca.USER_ROLE_UNSPECIFIED}, "it needs a role"),
            ({"role": ca.USER_ROLE_READ, "stack_prefix": "shop"}, "only the role deploy"),
            ({"role": ca.USER_ROLE_DEPLOY, "stack_prefix": "Shop!"}, "no stack's name begins so"),
            ({"role": ca.USER_ROLE_ADMIN, "lifetime_ms": 900 * DAY_MS}, "at most 366 days"),
        ):
            with pytest.raises(OrchError, match=why):
                await user("eve", **wishes)
        with pytest.raises(OrchError, match="has characters that do not go"):
            await user("a/../b", role=ca.USER_ROLE_READ)

    with_manager(tmp_path, story)
