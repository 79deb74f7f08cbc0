"""``orch cluster join|unlock|recover|backup|restore``: what is done on the very node that it is about."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orch_cli.errors import EXIT_OK, CliError, UsageError
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_proto.daemon_pb2 import RestoreClusterRequest

_PIECE_BYTES: Final = 1024 * 1024
_LONG_CALL_S: Final = 180.0
_UNLOCK_VARIABLE: Final = "ORCH_UNLOCK_KEY"


def _add_addresses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--advertise-addr", default="", metavar="HOST[:PORT]", help="the address that other nodes reach this one at"
    )
    parser.add_argument(
        "--listen-addr", default="", metavar="HOST[:PORT]", help="where this node listens when it is a manager"
    )
    parser.add_argument("--data-path-addr", default="", metavar="HOST", help="the address for traffic between tasks")


# ---- join ----------------------------------------------------------------------------------------


def _configure_join(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manager", metavar="HOST[:PORT]", help="any manager of the cluster")
    parser.add_argument("--token", required=True, help="the join token, which decides the role; - reads it from stdin")
    parser.add_argument(
        "--availability", choices=("active", "pause", "drain"), default="active", help="whether the node takes tasks"
    )
    _add_addresses(parser)


async def _run_join(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import calling, daemon
    from orch_proto.daemon_pb2 import JoinClusterRequest
    from orch_proto.specs_pb2 import NODE_ROLE_MANAGER, NodeAvailability

    token = sys.stdin.readline().strip() if arguments.token == "-" else arguments.token  # noqa: S105 -- a dash
    request = JoinClusterRequest(
        remote_address=arguments.manager,
        token=token,
        advertise_address=arguments.advertise_addr,
        listen_address=arguments.listen_addr,
        data_path_address=arguments.data_path_addr,
        availability=NodeAvailability.Value(f"NODE_AVAILABILITY_{arguments.availability.upper()}"),
    )
    async with daemon(arguments.host) as stub:
        with calling("join the cluster"):
            answer = await stub.JoinCluster(request, timeout=_LONG_CALL_S)
    role = "manager" if answer.role == NODE_ROLE_MANAGER else "worker"
    print(f"This node ({answer.node_id}) joined the cluster as a {role}.")
    return EXIT_OK


# ---- unlock and recover ----------------------------------------------------------------------------


def _configure_unlock(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"The key is read from {_UNLOCK_VARIABLE}, or asked for; as an argument others would see it."


async def _run_unlock(arguments: argparse.Namespace) -> int:
    import getpass

    from orch_cli.connection import calling, daemon
    from orch_proto.daemon_pb2 import UnlockClusterRequest

    key = os.environ.get(_UNLOCK_VARIABLE, "")
    if not key:
        key = getpass.getpass("Unlock key: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not key.strip():
        raise UsageError("cannot unlock", "no key was given", f"set {_UNLOCK_VARIABLE}, or type it when asked")
    async with daemon(arguments.host) as stub:
        with calling("unlock the cluster"):
            await stub.UnlockCluster(UnlockClusterRequest(unlock_key=key.strip()), timeout=_LONG_CALL_S)
    print("The manager of this node is unlocked.")
    return EXIT_OK


def _configure_recover(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="needed: managers that come back later are left out")


async def _run_recover(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import calling, daemon
    from orch_proto.daemon_pb2 import RecoverClusterRequest

    if not arguments.force:
        raise UsageError(
            "cannot recover the cluster without --force",
            "this manager goes on alone with what it has; if the others still run and can reach each other, "
            "there would be two clusters, and what only they have is lost",
            "be sure that most managers are lost for good, then: orch cluster recover --force",
        )
    async with daemon(arguments.host) as stub:
        with calling("recover the cluster"):
            answer = await stub.RecoverCluster(RecoverClusterRequest(), timeout=_LONG_CALL_S)
    print(f"Cluster {answer.cluster_id} goes on with this node ({answer.node_id}) as its only manager.")
    print("Lost managers that come back are managers no more: orch node demote NODE, then orch node promote NODE.")
    return EXIT_OK


# ---- backup and restore ----------------------------------------------------------------------------


def _configure_backup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="is written anew; only its owner may read it")


async def _run_backup(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import calling, control
    from orch_proto.control_pb2 import BackupRequest
    from orch_rpc.backups import write_part

    path: Path = arguments.file
    aside = path.with_name(f".{path.name}.part")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as stream:
            async with control(arguments.host) as stub:
                with calling("make a backup"):
                    last = ""
                    async for part in stub.Backup(BackupRequest(), timeout=_LONG_CALL_S):
                        last = part.WhichOneof("part") or ""
                        write_part(stream, part)
            if last != "trailer":
                raise CliError("cannot make a backup", "the manager ended before the backup did", "repeat it")
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        aside.rename(path)
    except OSError as error:
        raise CliError("cannot write the backup", f"{path}: {error.strerror or error}", "name another file") from error
    finally:
        aside.unlink(missing_ok=True)
    print(f"The state of the cluster is in {path} ({size} bytes).")
    print("It holds every secret and the cluster's keys in the clear: keep it where only you can read it.")
    return EXIT_OK


def _configure_restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a backup")
    _add_addresses(parser)


async def _run_restore(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import calling, daemon

    async def pieces() -> AsyncIterator[RestoreClusterRequest]:
        from orch_proto.daemon_pb2 import RestoreClusterRequest

        with arguments.file.open("rb") as stream:
            yield RestoreClusterRequest(
                advertise_address=arguments.advertise_addr,
                listen_address=arguments.listen_addr,
                data_path_address=arguments.data_path_addr,
            )
            while data := stream.read(_PIECE_BYTES):
                yield RestoreClusterRequest(data=data)

    if not os.access(arguments.file, os.R_OK):
        raise CliError(
            "cannot restore", f"{arguments.file} cannot be read", "name a file that orch cluster backup made"
        )
    async with daemon(arguments.host) as stub:
        with calling("restore the cluster"):
            answer = await stub.RestoreCluster(pieces(), timeout=_LONG_CALL_S)
    print(f"Cluster {answer.cluster_id} is restored; this node ({answer.node_id}) is its only manager.")
    print(
        "Nodes that know its address come back by themselves; the other managers are workers until they are promoted."
    )
    return EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {
    "join": Verb(_configure_join, _run_join),
    "unlock": Verb(_configure_unlock, _run_unlock),
    "recover": Verb(_configure_recover, _run_recover),
    "backup": Verb(_configure_backup, _run_backup),
    "restore": Verb(_configure_restore, _run_restore),
}
