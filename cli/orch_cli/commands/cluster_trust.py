"""``orch cluster token|ca|user``: who may join, the cluster's root certificate, and certificates for people."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orch_cli.errors import EXIT_OK, CliError, UsageError
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_proto.ca_pb2 import RootStatusResponse
    from orch_proto.ca_pb2_grpc import CAAsyncStub

_POLL_S: Final = 0.5

# ---- token ---------------------------------------------------------------------------------------


def _configure_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", choices=("worker", "manager"), metavar="worker|manager")
    parser.add_argument("--rotate", action="store_true", help="make a new one: the old one admits nobody any more")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the token alone")


async def _run_token(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S
    from orch_cli.connection import authority, calling
    from orch_proto.ca_pb2 import JoinTokensRequest

    worker = arguments.role == "worker"
    request = JoinTokensRequest(
        rotate_worker=arguments.rotate and worker, rotate_manager=arguments.rotate and not worker
    )
    async with authority(arguments.host) as stub:
        with calling(f"{'rotate' if arguments.rotate else 'show'} the join token"):
            answer = await stub.JoinTokens(request, timeout=CALL_TIMEOUT_S)
    token = answer.worker if worker else answer.manager
    if arguments.quiet:
        print(token)
        return EXIT_OK
    if arguments.rotate:
        print(f"The old token for {arguments.role}s admits nobody any more; nodes that joined with it stay.\n")
    address = answer.manager_addresses[0] if answer.manager_addresses else "HOST:2377"
    print(f"To add a {arguments.role}, run there:\n\n    orch cluster join --token {token} {address}\n")
    return EXIT_OK


# ---- ca ------------------------------------------------------------------------------------------


def _configure_ca(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rotate", action="store_true", help="change to a fresh root, without downtime")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait until every node has changed")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("--status", action="store_true", help="how far a rotation is, instead of the certificate")


async def _run_ca(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S
    from orch_cli.connection import authority, calling
    from orch_proto.ca_pb2 import RootStatusRequest, RotateRootRequest

    async with authority(arguments.host) as stub:
        if arguments.rotate:
            with calling("rotate the root certificate"):
                status = await stub.RotateRoot(RotateRootRequest(), timeout=CALL_TIMEOUT_S)
            if not arguments.detach:
                status = await _wait_for_rotation(stub, status, quiet=arguments.quiet)
        else:
            with calling("show the root certificate"):
                status = await stub.RootStatus(RootStatusRequest(), timeout=CALL_TIMEOUT_S)
    if arguments.status or arguments.detach:
        print("\n".join(_describe(status)))
    else:
        sys.stdout.write(status.roots_pem.decode())
    return EXIT_OK


async def _wait_for_rotation(stub: CAAsyncStub, status: RootStatusResponse, *, quiet: bool) -> RootStatusResponse:
    """Tells each step until the rotation has ended. A node that is down holds it up; that is told as well."""
    from orch_cli.commands.common import CALL_TIMEOUT_S, note
    from orch_cli.connection import calling
    from orch_proto.ca_pb2 import ROOT_PHASE_STEADY, RootStatusRequest

    told = ""
    while status.phase != ROOT_PHASE_STEADY:
        line = "; ".join(_describe(status)[-2:])
        if line != told and not quiet:
            note(line)
        told = line
        await asyncio.sleep(_POLL_S)
        with calling("follow the rotation, which goes on by itself (orch cluster ca --status)"):
            status = await stub.RootStatus(RootStatusRequest(), timeout=CALL_TIMEOUT_S)
    if not quiet:
        note("the root was changed; users need new certificates (orch cluster user add), and tokens are new")
    return status


def _describe(status: RootStatusResponse) -> list[str]:
    from orch_cli.output.units import format_time
    from orch_proto.ca_pb2 import ROOT_PHASE_DROPPING, ROOT_PHASE_RENEWING

    done = f"{status.nodes_done} of {status.nodes} nodes"
    phases = {
        ROOT_PHASE_RENEWING: f"rotation 1/2: {done} have a certificate of the new root",
        ROOT_PHASE_DROPPING: f"rotation 2/2: {done} have forgotten the old root",
    }
    lines = [f"root: {status.digest}, until {format_time(status.not_after_unix_ms)}"]
    lines.append(phases.get(status.phase, "no rotation is under way"))
    if status.phase in phases and status.nodes_waiting:
        waiting = ", ".join(status.nodes_waiting[:5]) + (" ..." if len(status.nodes_waiting) > 5 else "")
        lines.append(f"waits for {waiting} (a node that never comes back: orch node rm)")
    return lines


# ---- user ----------------------------------------------------------------------------------------


def _configure_user(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("add",), metavar="add", help="make a certificate")
    parser.add_argument("name", metavar="NAME", help="of the user; stands in the audit log")
    parser.add_argument("--role", choices=("admin", "deploy", "read"), required=True, help="what the user may do")
    parser.add_argument("--stack-prefix", default="", metavar="PREFIX", help="deploy only: stacks that begin so")
    parser.add_argument(
        "--lifetime", default="30d", metavar="DURATION", help="30d by default; it cannot be called back"
    )
    parser.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="where managers are reached; repeat for more",
    )
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="by default NAME.orch-context; - is stdout")


async def _run_user(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S, note
    from orch_cli.commands.context import write_context
    from orch_cli.compose.units import parse_duration_ms
    from orch_cli.connection import authority, calling
    from orch_cli.contexts import Context, check_name
    from orch_cli.output.units import format_time
    from orch_proto import ca_pb2 as ca
    from orch_rpc.addresses import parse_address
    from orch_rpc.certificates import new_key, new_request

    try:
        lifetime_ms = parse_duration_ms(arguments.lifetime)
    except ValueError as error:
        raise UsageError(f"cannot read the lifetime {arguments.lifetime!r}", str(error), "write 30d or 12h") from error
    key = new_key()
    request = ca.IssueUserCertificateRequest(
        csr_pem=new_request(key),
        user=arguments.name,
        role=ca.UserRole.Value(f"USER_ROLE_{arguments.role.upper()}"),
        stack_prefix=arguments.stack_prefix,
        lifetime_ms=lifetime_ms,
    )
    async with authority(arguments.host) as stub:
        with calling(f"make a certificate for {arguments.name}"):
            issued = await stub.IssueUserCertificate(request, timeout=CALL_TIMEOUT_S)
            named = arguments.endpoint or (await stub.JoinTokens(ca.JoinTokensRequest())).manager_addresses
    if not named:
        raise CliError(
            "cannot make the context", "no manager has said where it is reached", "name one: --endpoint HOST"
        )
    name = check_name("".join(each if each.isalnum() or each in "_.-" else "-" for each in arguments.name))
    context = Context(
        name=name,
        endpoints=tuple(str(parse_address(each)) for each in named),
        certificate=issued.certificate_pem.decode(),
        key=key.decode(),
        roots=issued.root_pem.decode(),
        description=f"{arguments.name} ({arguments.role})",
    )
    path = arguments.output or f"{name}.orch-context"
    write_context(context, path)
    note(f"valid until {format_time(issued.not_after_unix_ms)}; there: orch context import NAME {path}")
    return EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {
    "token": Verb(_configure_token, _run_token),
    "ca": Verb(_configure_ca, _run_ca),
    "user": Verb(_configure_user, _run_user),
}
