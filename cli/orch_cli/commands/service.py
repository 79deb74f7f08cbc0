"""``orch service``: services, their tasks and their output."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orch_cli.commands import logs
from orch_cli.errors import EXIT_NOT_IN_TIME, EXIT_OK, EXIT_UNPLACEABLE, UsageError, format_error
from orch_cli.output.listing import add_list_options, print_listing
from orch_cli.verbs import Verb
from orch_proto import defaults

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.objects_pb2 import Service


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    add_list_options(parser, filters=True)


async def _run_ls(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import fetch, parse_filters
    from orch_cli.connection import control
    from orch_cli.output.services import SERVICE_FILTERS, SERVICES, service_rows
    from orch_proto.objects_pb2 import Service, Task
    from orch_proto.types_pb2 import OBJECT_KIND_SERVICE, OBJECT_KIND_TASK

    filters = parse_filters(arguments.filter, SERVICE_FILTERS)
    async with control(arguments.host) as stub:
        services = await fetch(stub, OBJECT_KIND_SERVICE, filters)
        tasks = await fetch(stub, OBJECT_KIND_TASK)
    rows = service_rows(
        [item for item in services if isinstance(item, Service)], [item for item in tasks if isinstance(item, Task)]
    )
    print_listing(SERVICES, rows, arguments)
    return EXIT_OK


def _configure_ps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="SERVICE", nargs="+")
    parser.add_argument("--no-resolve", action="store_true", help="show the ids of nodes, not their names")
    add_list_options(parser, no_trunc=True, filters=True)


async def _run_ps(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import fetch, for_each, get, nodes_by_id, parse_filters
    from orch_cli.connection import control
    from orch_cli.output.tasks import TASK_FILTERS, TASKS, task_rows
    from orch_proto.control_pb2 import Filter
    from orch_proto.objects_pb2 import Service, Task
    from orch_proto.types_pb2 import OBJECT_KIND_SERVICE, OBJECT_KIND_TASK

    filters = parse_filters(arguments.filter, TASK_FILTERS)
    found: list[Service] = []
    tasks: list[Task] = []
    async with control(arguments.host) as stub:

        async def one(reference: str) -> None:
            service = await get(stub, OBJECT_KIND_SERVICE, reference)
            assert isinstance(service, Service)
            found.append(service)

        status = await for_each(arguments.references, one)
        identifiers = {service.id for service in found}
        if found:
            values = [*identifiers, *(service.spec.annotations.name for service in found)]
            listed = await fetch(stub, OBJECT_KIND_TASK, [*filters, Filter(key="service", values=values)])
            tasks = [task for task in listed if isinstance(task, Task) and task.service_id in identifiers]
        nodes = await nodes_by_id(stub)
    rows = task_rows(tasks, nodes, no_trunc=arguments.no_trunc, resolve=not arguments.no_resolve)
    print_listing(TASKS, rows, arguments)
    return status


# ---- scale -------------------------------------------------------------------------------------------


def _configure_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scales", metavar="SERVICE=REPLICAS", nargs="+")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait")
    parser.add_argument("--timeout", default="", metavar="DURATION", help="how long to wait")


def parse_scales(texts: list[str]) -> dict[str, int]:
    """``SERVICE=REPLICAS`` arguments.

    Raises:
        UsageError: for another form, or a number that cannot be.
    """
    result = {}
    for text in texts:
        name, equals, count = text.rpartition("=")
        if not equals or not name or not (count.isascii() and count.isdigit()):
            raise UsageError(f"cannot read {text!r}", "the form is SERVICE=REPLICAS", "for example shop_web=5")
        if int(count) > defaults.MAX_REPLICAS:
            raise UsageError(f"cannot scale {name} to {count}", f"at most {defaults.MAX_REPLICAS} tasks per service")
        result[name] = int(count)
    return result


async def _run_scale(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S
    from orch_cli.commands.deploy import parse_timeout_s
    from orch_cli.connection import calling, control
    from orch_proto.control_pb2 import ScaleServicesRequest, ServiceScale

    scales = parse_scales(arguments.scales)
    timeout_s = parse_timeout_s(arguments.timeout)
    started = time.monotonic()
    async with control(arguments.host) as stub:
        request = ScaleServicesRequest(
            scales=[ServiceScale(service=name, replicas=count) for name, count in scales.items()]
        )
        with calling(f"scale {', '.join(scales)}"):
            answer = await stub.ScaleServices(request, timeout=CALL_TIMEOUT_S)
        for service in answer.services:
            print(f"{service.spec.annotations.name} scaled to {service.spec.mode.replicated.replicas}")
        sys.stdout.flush()
        return EXIT_OK if arguments.detach else await _wait(stub, list(answer.services), timeout_s, started)


async def _wait(stub: ControlAsyncStub, services: list[Service], timeout_s: float, started: float) -> int:
    from orch_cli.commands.common import note
    from orch_cli.deploy.convergence import Verdict
    from orch_cli.deploy.progress import make_progress
    from orch_cli.deploy.wait import wait_converged
    from orch_proto.control_pb2 import Filter

    names = frozenset(service.spec.annotations.name for service in services)
    filters = [Filter(key="service", values=[*(service.id for service in services), *names])]
    progress = make_progress("auto", "", sys.stderr)
    outcome = await wait_converged(
        stub, ", ".join(sorted(names)), filters, names=names, progress=progress, timeout_s=timeout_s, started=started
    )
    if outcome.detached:
        note("\nno longer waiting; the change goes on: `orch service ls` shows it")
        return EXIT_OK
    if outcome.status != EXIT_OK:
        bad = [item for item in outcome.services if item.verdict is not Verdict.CONVERGED]
        reasons = "; ".join(f"{item.name}: {item.reason or item.verdict.value}" for item in bad)
        late = {EXIT_NOT_IN_TIME: f"have not converged within {timeout_s:g} s", EXIT_UNPLACEABLE: "cannot be placed"}
        what = f"{', '.join(sorted(names))} {late.get(outcome.status, 'did not change as asked')}"
        note(format_error(what, reasons, "`orch service ps NAME --no-trunc` shows every task"))
    return outcome.status


# ---- inspect, rm -------------------------------------------------------------------------------------


def _configure_references(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="SERVICE", nargs="+", help="name, id or beginning of an id")


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    _configure_references(parser)
    parser.add_argument("--pretty", action="store_true", help="indented text instead of JSON")


async def _run_inspect(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.objects import inspect
    from orch_proto.types_pb2 import OBJECT_KIND_SERVICE

    return await inspect(arguments, OBJECT_KIND_SERVICE)


async def _run_rm(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.objects import remove
    from orch_proto.types_pb2 import OBJECT_KIND_SERVICE

    return await remove(arguments, OBJECT_KIND_SERVICE)


VERBS: Final[Mapping[str, Verb]] = {
    "ls": Verb(_configure_ls, _run_ls),
    "ps": Verb(_configure_ps, _run_ps),
    "inspect": Verb(_configure_inspect, _run_inspect),
    "logs": Verb(logs.configure, logs.run),
    "scale": Verb(_configure_scale, _run_scale),
    "rm": Verb(_configure_references, _run_rm),
}
