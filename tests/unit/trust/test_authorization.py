"""Who may call what, over real mutually authenticated connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orch_proto import ca_pb2 as ca
from orch_proto import control_pb2 as control
from orch_proto.node_pb2 import ImageRemoveCall, NodeCall, VolumeListCall
from orch_proto.types_pb2 import ObjectKind
from orch_rpc import access_page, servers
from orch_rpc.access import RULES, Callers
from orch_rpc.authorization import AuditEntry, Authorization, Policy
from orch_rpc.callers import FORWARDED_CALLER_KEY, LOCAL, Caller, CallerKind, UserRole
from orch_rpc.certificates import CertificateRole
from orch_rpc.channels import unix_channel
from orch_rpc.errors import OrchError, PermissionDenied, Unauthenticated, Unavailable, rpc_errors
from orch_rpc.identity import Identity, IdentitySource
from orch_rpc.tls import manager_channel
from unit.trust import contract
from unit.trust.servers import TestCluster, serving, store_with


class Bench:
    """A server of the whole contract, and callers of every kind."""

    def __init__(self, folder: Path) -> None:
        self.cluster = TestCluster()
        self.entries: list[AuditEntry] = []
        self.removed: set[str] = set()
        self.demoted: set[str] = set()
        self.scoped: list[tuple[str, str]] = []
        self.source = IdentitySource(store_with(folder / "state", self.cluster.manager("manager1")))
        self.socket = folder / "manager.sock"
        self.address = ""
        self.identities: dict[Callers, Identity] = {
            Callers.MANAGER: self.cluster.manager("manager2"),
            Callers.WORKER: self.cluster.worker("worker1"),
            Callers.READ: self.cluster.user("rita", CertificateRole.USER_READ),
            Callers.DEPLOY: self.cluster.user("dave", CertificateRole.USER_DEPLOY),
            Callers.ADMIN: self.cluster.user("anna", CertificateRole.USER_ADMIN),
        }

    def _scope(self, caller: Caller, method: str, request: Any) -> None:
        self.scoped.append((method, caller.stack_prefix))
        if method == "Control/RemoveStack" and not request.name.startswith(caller.stack_prefix):
            raise PermissionDenied("cannot remove it", "it is out of scope")

    def policy(self) -> Policy:
        return Policy(
            cluster_id="cluster1",
            is_removed=self.removed.__contains__,
            is_demoted=self.demoted.__contains__,
            check_scope=self._scope,
            audit=self.entries.append,
        )

    async def tried(self, who: Callers | Identity, path: str, request: Any = None, metadata: Any = ()) -> str:
        """How a call ends: OK, or the code of the refusal."""
        try:
            await self.call(who, path, request, metadata)
        except OrchError as error:
            return error.code.name
        return "OK"

    async def call(self, who: Callers | Identity, path: str, request: Any = None, metadata: Any = ()) -> None:
        if who is Callers.LOCAL:
            channel = unix_channel(self.socket)
        else:
            identity = who if isinstance(who, Identity) else self.identities[who]
            channel = manager_channel(self.address, identity)
        async with channel:
            with rpc_errors("call"):
                await contract.call(channel, path, request, metadata)


def with_bench(folder: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        bench = Bench(folder)
        authorization = [Authorization(bench.policy())]
        local = servers.new_server(interceptors=authorization)
        local.add_generic_rpc_handlers((contract.EmptyAnswers(),))
        await servers.start_on_unix_socket(local, bench.socket)
        async with serving(
            bench.source,
            lambda server: server.add_generic_rpc_handlers((contract.EmptyAnswers(),)),
            interceptors=authorization,
        ) as bench.address:
            try:
                await story(bench)
            finally:
                await servers.stop(local, grace_s=0)

    asyncio.run(run())


def test_every_method_of_the_contract_is_in_the_table() -> None:
    """No method is forgotten, and none stands in the table that does not exist."""
    ours = {path for path in RULES if path.startswith("/orch.v1.")}
    assert ours == set(contract.methods())


def test_each_kind_of_caller_may_call_exactly_what_the_table_says(tmp_path: Path) -> None:
    """Over TLS and the unix socket, every method answers those whom the table names, and refuses all others."""

    async def story(bench: Bench) -> None:
        for path in contract.methods():
            rule = RULES[path]
            for who in (*bench.identities, Callers.LOCAL):
                allowed = rule.callers
                if rule.narrow is not None:
                    empty = contract.message_factory.GetMessageClass(contract.methods()[path].input_type)()
                    allowed &= rule.narrow(empty)
                wanted = "OK" if who & allowed else "PERMISSION_DENIED"
                assert await bench.tried(who, path) == wanted, (path, who)

    with_bench(tmp_path, story)


@pytest.mark.parametrize(
    ("path", "who"),
    [
        ("/orch.v1.Control/List", Callers.WORKER),
        ("/orch.v1.Control/Get", Callers.WORKER),
        ("/orch.v1.Control/Watch", Callers.WORKER),
        ("/orch.v1.Raft/Stream", Callers.WORKER),
        ("/orch.v1.Raft/Snapshot", Callers.ADMIN),
        ("/orch.v1.Control/ApplyStack", Callers.READ),
        ("/orch.v1.Control/Exec", Callers.READ),
        ("/orch.v1.Control/Backup", Callers.DEPLOY),
        ("/orch.v1.CA/JoinTokens", Callers.DEPLOY),
        ("/orch.v1.CA/IssueUserCertificate", Callers.DEPLOY),
        ("/orch.v1.CA/RotateRoot", Callers.MANAGER),
        ("/orch.v1.Dispatcher/Attach", Callers.ADMIN),
        ("/orch.v1.Daemon/Shutdown", Callers.ADMIN),
    ],
)
def test_the_table_itself_gives_nobody_too_much(path: str, who: Callers) -> None:
    """A worker reads no object, a reader writes nothing, a deployer hands out no rights, only managers speak Raft."""
    assert not who & RULES[path].callers


def test_what_is_in_the_request_can_narrow_the_circle(tmp_path: Path) -> None:
    """A deployer may change services and secrets but no node and no cluster; a reader may ask nodes, change nothing."""

    async def story(bench: Bench) -> None:
        def update(kind: ObjectKind.ValueType) -> control.UpdateRequest:
            return control.UpdateRequest(kind=kind, id="x")

        path = "/orch.v1.Control/Update"
        assert await bench.tried(Callers.DEPLOY, path, update(ObjectKind.OBJECT_KIND_SERVICE)) == "OK"
        assert await bench.tried(Callers.DEPLOY, path, update(ObjectKind.OBJECT_KIND_NODE)) == "PERMISSION_DENIED"
        assert await bench.tried(Callers.ADMIN, path, update(ObjectKind.OBJECT_KIND_NODE)) == "OK"
        path = "/orch.v1.Control/CallNodes"
        asks = control.CallNodesRequest(call=NodeCall(volume_list=VolumeListCall()))
        removes = control.CallNodesRequest(call=NodeCall(image_remove=ImageRemoveCall()))
        assert await bench.tried(Callers.READ, path, asks) == "OK"
        assert await bench.tried(Callers.READ, path, removes) == "PERMISSION_DENIED"
        assert await bench.tried(Callers.DEPLOY, path, removes) == "OK"

    with_bench(tmp_path, story)


def test_a_refusal_says_who_asked_and_who_may(tmp_path: Path) -> None:
    """The message names the caller with its role, the method, and those who may."""

    async def story(bench: Bench) -> None:
        with pytest.raises(PermissionDenied) as caught:
            await bench.call(Callers.READ, "/orch.v1.Control/ApplyStack")
        assert str(caught.value) == (
            "cannot answer Control/ApplyStack: user rita (read) may not do this; "
            "who may: users with the role admin, users with the role deploy, root on a manager's host"
        )

    with_bench(tmp_path, story)


def test_a_removed_node_is_refused_whatever_it_asks(tmp_path: Path) -> None:
    """The certificate of a node that was removed opens nothing, though it has not expired."""

    async def story(bench: Bench) -> None:
        assert await bench.tried(Callers.WORKER, "/orch.v1.Dispatcher/Attach") == "OK"
        bench.removed.add("worker1")
        with pytest.raises(Unauthenticated, match="node worker1 was removed from the cluster"):
            await bench.call(Callers.WORKER, "/orch.v1.Dispatcher/Attach")

    with_bench(tmp_path, story)


def test_a_demoted_manager_speaks_for_nobody_any_more(tmp_path: Path) -> None:
    """The manager's certificate of a node that is a worker by now reads nothing and forwards nothing."""

    async def story(bench: Bench) -> None:
        bench.demoted.add("manager2")
        with pytest.raises(Unavailable, match="node manager2 is no manager any more; ask another manager"):
            await bench.call(Callers.MANAGER, "/orch.v1.Control/ApplyStack", metadata=LOCAL.to_metadata())
        assert await bench.tried(Callers.MANAGER, "/orch.v1.Control/List") == "UNAVAILABLE"
        assert await bench.tried(Callers.MANAGER, "/orch.v1.Raft/Stream") == "OK", "consensus knows its own members"

    with_bench(tmp_path, story)


def test_a_certificate_for_another_cluster_is_refused_even_of_the_same_root(tmp_path: Path) -> None:
    """The cluster that a certificate names counts, not only who signed it."""

    async def story(bench: Bench) -> None:
        twin = TestCluster("cluster2", bench.cluster.authority).worker()
        with pytest.raises(Unauthenticated, match="its certificate is of cluster cluster2, this is cluster cluster1"):
            await bench.call(twin, "/orch.v1.Dispatcher/Attach")

    with_bench(tmp_path, story)


# ---- forwarded calls -------------------------------------------------------------------------------


def named(**changes: Any) -> Any:
    """The metadata of a call that is forwarded for somebody."""
    ((_, value),) = Caller(CallerKind.USER, "rita", "cluster1", UserRole.READ).to_metadata()
    return ((FORWARDED_CALLER_KEY, json.dumps({**json.loads(value), **changes}).encode()),)


def test_a_forwarded_call_is_judged_by_its_original_caller(tmp_path: Path) -> None:
    """A reader's write stays refused when a manager passes it on; a local admin's is admitted, and both are audited."""

    async def story(bench: Bench) -> None:
        path = "/orch.v1.Control/ApplyStack"
        assert await bench.tried(Callers.MANAGER, path) == "PERMISSION_DENIED", "a manager deploys nothing by itself"
        assert await bench.tried(Callers.MANAGER, path, metadata=named()) == "PERMISSION_DENIED"
        assert await bench.tried(Callers.MANAGER, path, metadata=LOCAL.to_metadata()) == "OK"
        last = bench.entries[-1]
        assert (last.caller.kind, last.caller.forwarded_by) == (CallerKind.LOCAL, "manager2")
        assert str(bench.entries[-2].caller) == "user rita (read)"

    with_bench(tmp_path, story)


@pytest.mark.parametrize("who", [Callers.WORKER, Callers.ADMIN, Callers.LOCAL])
def test_nobody_but_a_manager_speaks_for_others(tmp_path: Path, who: Callers) -> None:
    """Whoever else names another caller is refused, an admin and the local socket as well."""

    async def story(bench: Bench) -> None:
        metadata = LOCAL.to_metadata()
        assert await bench.tried(who, "/orch.v1.Control/List", metadata=metadata) == "PERMISSION_DENIED"

    with_bench(tmp_path, story)


@pytest.mark.parametrize(
    "metadata",
    [
        named(kind="god"),
        named(role=""),
        named(role="owner"),
        named(kind="local"),
        ((FORWARDED_CALLER_KEY, b"{}"),),
        ((FORWARDED_CALLER_KEY, b"\xff"),),
        ((FORWARDED_CALLER_KEY, b"x" * 5000),),
        (*named(), *named()),
    ],
)
def test_a_caller_that_is_named_wrongly_is_nobody(tmp_path: Path, metadata: Any) -> None:
    """A forwarded call whose caller cannot be read is refused; it never falls back to the manager's own rights."""

    async def story(bench: Bench) -> None:
        assert await bench.tried(Callers.MANAGER, "/orch.v1.Control/List", metadata=metadata) == "PERMISSION_DENIED"

    with_bench(tmp_path, story)


# ---- limits and the audit log ----------------------------------------------------------------------


def test_a_limited_deployer_is_asked_about_for_every_write(tmp_path: Path) -> None:
    """Writes of a user with a stack prefix are checked against it, reads are not."""

    async def story(bench: Bench) -> None:
        limited = bench.cluster.user("lim", CertificateRole.USER_DEPLOY, stack_prefix="shop-")
        path = "/orch.v1.Control/RemoveStack"
        assert await bench.tried(limited, path, control.RemoveStackRequest(name="shop-web")) == "OK"
        assert await bench.tried(limited, path, control.RemoveStackRequest(name="blog")) == "PERMISSION_DENIED"
        assert await bench.tried(limited, "/orch.v1.Control/List") == "OK"
        assert bench.scoped == [("Control/RemoveStack", "shop-")] * 2

    with_bench(tmp_path, story)


def test_every_write_and_every_refusal_leaves_one_audit_line(tmp_path: Path) -> None:
    """Caller, method, object and outcome are told; reads leave nothing, and no secret or token is in any line."""

    async def story(bench: Bench) -> None:
        spec = control.Spec()
        spec.secret.annotations.name = "db_password"
        spec.secret.data = b"hunter2"
        await bench.call(Callers.DEPLOY, "/orch.v1.Control/Create", control.CreateRequest(spec=spec))
        await bench.call(Callers.READ, "/orch.v1.Control/List")
        await bench.tried(Callers.WORKER, "/orch.v1.Control/List")
        await bench.call(
            Callers.WORKER, "/orch.v1.CA/IssueNodeCertificate", ca.IssueNodeCertificateRequest(token="ORCHTKN-1-a-b")
        )
        told = [(str(entry.caller), entry.method, entry.subject, entry.outcome) for entry in bench.entries]
        assert told == [
            ("user dave (deploy)", "Control/Create", "secret db_password", "OK"),
            ("worker worker1", "Control/List", "", "PERMISSION_DENIED"),
            ("worker worker1", "CA/IssueNodeCertificate", "with a token", "OK"),
        ]
        assert "hunter2" not in str(bench.entries)
        assert "ORCHTKN" not in str(bench.entries)

    with_bench(tmp_path, story)


def test_the_page_of_the_table_is_fresh() -> None:
    """docs/access.md is what the table generates."""
    assert access_page.PAGE.read_text(encoding="utf-8") == access_page.page()
