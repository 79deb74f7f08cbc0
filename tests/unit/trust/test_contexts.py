"""The command line from another machine: contexts, tokens, certificates for people."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch_cli import connection
from orch_cli.contexts import Context, ContextStore
from orch_cli.errors import CliError, UsageError
from orch_rpc.certificates import CertificateRole
from orch_rpc.identity import Identity
from unit.cli.fake_control import orch
from unit.trust.real_manager import RealManager, with_manager
from unit.trust.servers import DAY_MS, TestCluster


@pytest.fixture(autouse=True)
def config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user who has no contexts yet."""
    monkeypatch.setenv("ORCH_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("ORCH_HOST", raising=False)
    monkeypatch.delenv("ORCH_CONTEXT", raising=False)
    return tmp_path / "config"


def context_of(name: str, identity: Identity, *endpoints: str) -> Context:
    parts = (identity.certificate_pem, identity.key_pem, identity.roots_pem)
    certificate, key, roots = (part.decode() for part in parts)
    return Context(name, endpoints or ("10.0.0.5:2377",), certificate, key, roots)


def test_an_admin_hands_out_a_certificate_that_works_elsewhere(tmp_path: Path) -> None:
    """`cluster user add` on the manager, `context import` and `use` elsewhere: reads work, writes need the role."""

    async def story(manager: RealManager) -> None:
        host = f"unix://{manager.socket}"
        file = tmp_path / "rita.orch-context"
        made = await orch("--host", host, "cluster", "user", "add", "rita", "--role", "read", "-o", str(file))
        assert made.status == 0, made.err
        assert file.stat().st_mode & 0o777 == 0o600
        assert "PRIVATE KEY" not in made.out + made.err
        imported = await orch("context", "import", "prod", str(file))
        assert (imported.status, imported.out) == (0, "prod\n"), imported.err
        assert (await orch("context", "use", "prod")).status == 0
        nodes = await orch("node", "ls", "-q")
        assert (nodes.status, nodes.out) == (0, "manager1\n"), nodes.err
        removed = await orch("stack", "rm", "shop")
        assert removed.status == 1
        assert "user rita (read) may not do this" in removed.err
        token = await orch("cluster", "token", "worker")
        assert "who may: users with the role admin, root on a manager's host" in token.err
        listed = await orch("context", "ls", "--format", "{{.Id}} {{.Endpoint}} {{.User}} {{.Error}}")
        assert f"prod {manager.address} rita (read)" in listed.out
        audited = manager.log.read_text()
        assert 'caller=local method=CA/IssueUserCertificate object="user rita" outcome=OK' in audited
        assert 'caller="user rita (read)" method=Control/RemoveStack object="stack shop"' in audited

    with_manager(tmp_path, story)


def test_a_host_may_be_an_address_or_the_name_of_a_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ORCH_HOST takes tcp://HOST:PORT, with the certificate of a context that fits, and a context's name."""

    async def story(manager: RealManager) -> None:
        admin = manager.cluster.user("anna", CertificateRole.USER_ADMIN)
        # The first manager of the context is gone: the next is tried.
        ContextStore().save(context_of("prod", admin, "127.0.0.1:1", str(manager.address)))
        for host in ("prod", f"tcp://{manager.address}"):
            monkeypatch.setenv("ORCH_HOST", host)
            assert (await orch("node", "ls", "-q")).out == "manager1\n"
        monkeypatch.delenv("ORCH_HOST")
        monkeypatch.setenv("ORCH_CONTEXT", "prod")
        shown = await orch("cluster", "token", "manager", "-q")
        assert shown.out == f"{manager.trust.manager_token}\n", shown.err
        rotated = await orch("cluster", "token", "manager", "--rotate", "-q")
        assert rotated.out not in ("", shown.out)
        assert (await orch("cluster", "ca")).out.encode() == manager.cluster.roots_pem
        assert "no rotation is under way" in (await orch("cluster", "ca", "--status")).out
        # What is about a node works on the node itself.
        local = await orch("node", "info")
        assert "this works on the node's own host only" in local.err

    with_manager(tmp_path, story)


def test_a_context_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    """Expired, of another cluster, or with managers that are gone: the message names it, with what to do."""

    async def story(manager: RealManager) -> None:
        store = ContextStore()
        expired = manager.cluster.user("old", CertificateRole.USER_ADMIN, lifetime_ms=DAY_MS, age_ms=2 * DAY_MS)
        store.save(context_of("expired", expired, str(manager.address)))
        foreign = TestCluster("cluster2").user("eve", CertificateRole.USER_ADMIN)
        store.save(context_of("foreign", foreign, str(manager.address)))
        store.save(context_of("gone", manager.cluster.user("anna", CertificateRole.USER_ADMIN), "127.0.0.1:1"))
        for name, why, todo in (
            ("expired", "the certificate expired on", "have an admin issue another: orch cluster user add"),
            ("foreign", "the manager's certificate is of another cluster", "check the address"),
            ("gone", "127.0.0.1:1: Connection refused", "orch context inspect shows the addresses"),
        ):
            ran = await orch("--host", name, "node", "ls")
            assert ran.status == 1
            assert why in ran.err
            assert todo in ran.err
        listed = await orch("context", "ls", "--format", "{{.Id}}: {{.Error}}")
        assert "expired: the certificate expired on" in listed.out
        no_such = await orch("--host", "nowhere", "node", "ls")
        assert "neither an address nor the name of a context" in no_such.err

    with_manager(tmp_path, story)


def test_a_context_goes_from_machine_to_machine(tmp_path: Path, config_folder: Path) -> None:
    """What is exported is imported under any name; keys are readable by their owner alone; nothing is overwritten."""

    async def story() -> None:
        identity = TestCluster().user("anna", CertificateRole.USER_DEPLOY, stack_prefix="shop-")
        for part, content in (
            ("cert", identity.certificate_pem),
            ("key", identity.key_pem),
            ("ca", identity.roots_pem),
        ):
            (tmp_path / part).write_bytes(content)
        files = [word for part in ("cert", "key", "ca") for word in (f"--{part}", str(tmp_path / part))]
        made = await orch("context", "create", "one", "--endpoint", "tcp://10.0.0.5", "--endpoint", "m2:9", *files)
        assert made.status == 0, made.err
        kept = config_folder / "contexts" / "one.json"
        assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        file = tmp_path / "out"
        assert (await orch("context", "export", "one", str(file))).status == 0
        assert file.stat().st_mode & 0o777 == 0o600
        assert "it exists" in (await orch("context", "export", "one", str(file))).err
        assert (await orch("context", "import", "two", str(file))).status == 0
        assert "already" in (await orch("context", "import", "two", str(file))).err
        (shown,) = json.loads((await orch("context", "inspect", "two")).out)
        assert shown["Endpoints"] == ["10.0.0.5:2377", "m2:9"]
        assert (shown["User"], shown["Role"], shown["StackPrefix"]) == ("anna", "deploy", "shop-")
        assert "PRIVATE" not in json.dumps(shown)
        await orch("context", "use", "two")
        assert "it is in use" in (await orch("context", "rm", "two")).err
        await orch("context", "use", "default")
        assert (await orch("context", "rm", "two", "one")).out == "two\none\n"

    asyncio.run(story())


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"orch_context": 2}', '{"orch_context": 1, "name": "x", "endpoints": []}', "\x00"]
)
def test_foreign_files_are_no_contexts(tmp_path: Path, text: str) -> None:
    """A file that is no exported context is refused, and nothing is kept of it."""
    (tmp_path / "file").write_text(text)

    async def story() -> None:
        ran = await orch("context", "import", "x", str(tmp_path / "file"))
        assert ran.status == 1
        assert "cannot read the context in" in ran.err
        assert ContextStore().names() == []

    asyncio.run(story())


def test_names_cannot_leave_the_folder(config_folder: Path) -> None:
    """A context's name is a name and no path."""
    for name in ("../x", "a/b", "", ".hidden", "default"):
        with pytest.raises(UsageError):
            ContextStore().load(name)
    config_folder.mkdir(exist_ok=True)
    (config_folder / "current").write_text("gone\n")
    with pytest.raises(CliError, match="there is no context 'gone'"):
        connection.find_target()
