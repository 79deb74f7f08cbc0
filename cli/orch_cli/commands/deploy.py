"""``orch deploy`` and ``orch plan``."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from orch_cli.commands.stack_files import add_file_options, read_files
from orch_cli.compose.loader import LoadedStack, load_stack
from orch_cli.compose.units import parse_duration_ms
from orch_cli.errors import (
    EXIT_NOT_IN_TIME,
    EXIT_OK,
    EXIT_PLAN_ERROR,
    EXIT_ROLLED_BACK,
    EXIT_UNPLACEABLE,
    CliError,
    UsageError,
    format_error,
)
from orch_proto import defaults

if TYPE_CHECKING:
    from orch_cli.deploy.wait import Outcome
    from orch_proto.control_pb2 import ApplyStackRequest, ApplyStackResponse, ObjectChange
    from orch_proto.control_pb2_grpc import ControlAsyncStub

SOURCE_BYTES: Final = 256 * 1024  # of the stack's own transaction, which has 1.5 MiB for all
APPLY_TIMEOUT_S: Final = 30.0  # the manager asks the nodes for images, then writes
LOG_LINES: Final = 10


def configure_deploy(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``deploy``."""
    add_file_options(parser)
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait")
    parser.add_argument(
        "--timeout",
        default="",
        metavar="DURATION",
        help=f"how long to wait, default {defaults.DEPLOY_TIMEOUT_MS // 60_000}m",
    )
    parser.add_argument("--prune", action="store_true", help="remove services, secrets and configs that the file lacks")
    parser.add_argument("--build", action="store_true", help="build images even when they are there")
    parser.add_argument(
        "--progress", choices=("auto", "tty", "plain", "json", "quiet"), default="auto", help="how progress is shown"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="same as --progress quiet")
    parser.add_argument(
        "--resolve-image", choices=("always", "changed", "never"), default="always", help="when a tag is looked up anew"
    )


def configure_plan(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``plan``."""
    add_file_options(parser)
    parser.add_argument("--prune", action="store_true", help="as if deployed with --prune")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text or json")


def _load(arguments: argparse.Namespace) -> LoadedStack:
    files, options = read_files(arguments)
    stack = load_stack(files, options)
    for warning in stack.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return stack


def parse_timeout_s(text: str) -> float:
    """``--timeout`` in seconds; empty: the default of a deploy.

    Raises:
        UsageError: for what is no duration.
    """
    if not text:
        return defaults.DEPLOY_TIMEOUT_MS / 1000
    try:
        return parse_duration_ms(text) / 1000
    except ValueError as error:
        raise UsageError(f"cannot read --timeout {text!r}", str(error), "write --timeout 2m") from error


# ---- deploy ------------------------------------------------------------------------------------------


async def run_deploy(arguments: argparse.Namespace) -> int:
    """Builds, applies, waits."""
    started = time.monotonic()
    timeout_s = parse_timeout_s(arguments.timeout)
    stack = _load(arguments)
    from orch_cli.connection import control

    async with control(arguments.host) as stub:
        if stack.builds:
            from orch_cli.deploy.build import build_images

            await build_images(stub, stack.builds, always=arguments.build, quiet=arguments.quiet)
        answer = await _apply(stub, _request(stack, arguments), started + timeout_s)
        _print_changes(stack.spec.name, answer)
        if arguments.detach:
            return EXIT_OK
        return await _wait(stub, stack, answer, arguments, timeout_s=timeout_s, started=started)


def _request(stack: LoadedStack, arguments: argparse.Namespace) -> ApplyStackRequest:
    from orch_proto.control_pb2 import ApplyStackRequest

    source = stack.source if len(stack.source.encode()) <= SOURCE_BYTES else "# too large to be kept"
    return ApplyStackRequest(
        spec=stack.spec,
        source=source,
        author=_author(),
        prune=arguments.prune,
        resolve_image=getattr(arguments, "resolve_image", "always"),
    )


def _author() -> str:
    """Who deploys: the user behind sudo where there is one."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())


async def _apply(stub: ControlAsyncStub, request: ApplyStackRequest, deadline: float) -> ApplyStackResponse:
    """Applies the stack; repeats while no manager answers, or the answer was lost with the leader.

    That is safe: the same stack again changes nothing.
    """
    import asyncio

    from orch_cli.connection import calling
    from orch_rpc.errors import OutcomeUnknown, Unavailable

    pause_s = 0.05
    give_up = min(deadline, time.monotonic() + APPLY_TIMEOUT_S)
    while True:
        try:
            with calling(f"deploy the stack {request.spec.name}"):
                return await stub.ApplyStack(request, timeout=APPLY_TIMEOUT_S, wait_for_ready=False)
        except (OutcomeUnknown, Unavailable):
            if time.monotonic() + pause_s >= give_up:
                raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 1.0)


def _print_changes(name: str, answer: ApplyStackResponse) -> None:
    from orch_proto.control_pb2 import (
        CHANGE_KIND_CREATE,
        CHANGE_KIND_REMOVE,
        CHANGE_KIND_REPLACE,
        CHANGE_KIND_UPDATE,
    )

    for warning in answer.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    words = {
        CHANGE_KIND_CREATE: "Creating",
        CHANGE_KIND_UPDATE: "Updating",
        CHANGE_KIND_REPLACE: "Updating",
        CHANGE_KIND_REMOVE: "Removing",
    }
    told = False
    for change in sorted(answer.changes, key=_order):
        if change.change in words:
            told = True
            note = " (its tasks are replaced)" if change.change == CHANGE_KIND_REPLACE else ""
            if any(field.path == "update" for field in change.fields):
                note = " (its paused update goes on)"
            print(f"{words[change.change]} {_kind(change)} {change.name}{note}")
    if not told:
        print(f"Nothing to change in stack {name}")
    sys.stdout.flush()


def _order(change: ObjectChange) -> tuple[int, str]:
    """Networks, secrets, configs, then services: the order in which docker tells it."""
    order = ("stack", "network", "volume", "secret", "config", "service")
    kind = _kind(change)
    return order.index(kind) if kind in order else len(order), change.name


def _kind(change: ObjectChange) -> str:
    from orch_proto.types_pb2 import ObjectKind

    return ObjectKind.Name(change.kind).removeprefix("OBJECT_KIND_").lower()


async def _wait(
    stub: ControlAsyncStub,
    stack: LoadedStack,
    answer: ApplyStackResponse,
    arguments: argparse.Namespace,
    *,
    timeout_s: float,
    started: float,
) -> int:
    from orch_cli.deploy.progress import make_progress
    from orch_cli.deploy.wait import wait_converged
    from orch_cli.deploy.watch import stack_filter

    name = stack.spec.name
    names = frozenset(service.annotations.name for service in stack.spec.services)
    progress = make_progress("quiet" if arguments.quiet else arguments.progress, name, sys.stderr)
    outcome = await wait_converged(
        stub,
        name,
        [stack_filter(answer.stack_id, name)],
        names=names,
        progress=progress,
        timeout_s=timeout_s,
        started=started,
    )
    if outcome.detached:
        print(f"\nno longer waiting; the deploy goes on: `orch stack ps {name}` shows it", file=sys.stderr)
        return EXIT_OK
    if not arguments.quiet:
        _print_summary(outcome, name)
    if outcome.status != EXIT_OK:
        await _explain(stub, outcome, name, timeout_s)
    return outcome.status


def _print_summary(outcome: Outcome, stack: str) -> None:
    from orch_cli.output.listing import table_lines
    from orch_cli.output.units import format_elapsed

    rows = [
        [
            service.name.removeprefix(f"{stack}_"),
            str(service.wanted),
            str(service.running),
            str(service.restarts),
            service.verdict.value,
        ]
        for service in outcome.services
    ]
    print("\n".join(table_lines(["SERVICE", "WANTED", "RUNNING", "RESTARTS", "STATE"], rows)))
    done = "converged" if outcome.status == EXIT_OK else "not converged"
    print(f"Stack {stack} {done} after {format_elapsed(outcome.elapsed_s)}")
    sys.stdout.flush()


async def _explain(stub: ControlAsyncStub, outcome: Outcome, stack: str, timeout_s: float) -> None:
    """Says why a deploy did not succeed, with the last output of what failed."""
    from orch_cli.deploy.convergence import Verdict

    troubled = [service for service in outcome.services if service.verdict is not Verdict.CONVERGED]
    for service in troubled[:10]:
        if service.failing_task:
            await _print_last_lines(stub, service.failing_task, service.name)
    reasons = "; ".join(f"{service.name}: {service.reason or service.verdict.value}" for service in troubled[:10])
    what = f"the stack {stack} has not converged"
    todo = f"`orch stack ps {stack} --no-trunc` shows every task"
    if outcome.status == EXIT_NOT_IN_TIME:
        what += f" within {timeout_s:g} s"
        todo = f"the deploy goes on; {todo}"
    elif outcome.status == EXIT_ROLLED_BACK:
        what = f"the update of the stack {stack} did not succeed"
        todo += "; correct the file and deploy again"
    elif outcome.status == EXIT_UNPLACEABLE:
        what = f"the stack {stack} cannot be placed"
        todo = (
            "free or add what is missing (`orch node ls`), or change the file; waiting tasks start as soon as they fit"
        )
    print(format_error(what, reasons, todo), file=sys.stderr)


async def _print_last_lines(stub: ControlAsyncStub, task_id: str, name: str) -> None:
    from orch_cli.connection import calling
    from orch_proto.control_pb2 import LogsRequest
    from orch_proto.node_pb2 import LogsOptions
    from orch_rpc.errors import OrchError

    request = LogsRequest(targets=[task_id], options=LogsOptions(tail_lines=LOG_LINES, stdout=True, stderr=True))
    lines: list[str] = []
    try:
        with calling(f"read the output of {name}"):
            async for answer in stub.Logs(request, timeout=5):
                lines.extend(
                    line.line.decode("utf-8", "replace").rstrip("\n") for line in answer.lines if line.stream != "orch"
                )
    except OrchError as error:
        print(f"(the output of {name} cannot be shown: {error})", file=sys.stderr)
        return
    if lines:
        print(f"last output of {name}:", file=sys.stderr)
        for line in lines[-LOG_LINES:]:
            print(f"    {line}", file=sys.stderr)


# ---- plan --------------------------------------------------------------------------------------------


async def run_plan(arguments: argparse.Namespace) -> int:
    """Shows what would change: 0 nothing, 1 something, 255 an error."""
    from orch_cli.compose.report import ComposeError
    from orch_cli.connection import calling, control

    try:
        stack = _load(arguments)
        async with control(arguments.host) as stub:
            from orch_rpc.errors import OrchError

            try:
                with calling(f"plan the stack {stack.spec.name}"):
                    answer = await stub.PlanStack(_request(stack, arguments), timeout=APPLY_TIMEOUT_S)
            except OrchError as error:
                raise CliError(error.what, error.why, error.todo, status=EXIT_PLAN_ERROR) from error
    except ComposeError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise CliError(
            "the stack file has problems", "see above", "correct it and repeat", status=EXIT_PLAN_ERROR
        ) from error
    except CliError as error:
        raise CliError(error.what, error.why, error.todo, status=EXIT_PLAN_ERROR) from error
    for warning in answer.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.format == "json":
        import json

        from orch_cli.output.objects import to_json

        print(json.dumps(to_json(answer), indent=4, ensure_ascii=False))
    else:
        from orch_cli.deploy.plan import format_plan

        print("\n".join(format_plan(stack.spec.name, answer)))
    from orch_proto.control_pb2 import CHANGE_KIND_NONE

    return 1 if any(change.change != CHANGE_KIND_NONE for change in answer.changes) else EXIT_OK
