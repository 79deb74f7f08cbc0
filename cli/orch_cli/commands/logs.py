"""``orch logs``: the output of services and tasks, from all nodes that run them."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import TYPE_CHECKING, TextIO

from orch_cli.compose.units import parse_duration_ms
from orch_cli.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from orch_proto.node_pb2 import LogLine

_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?")
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``logs``."""
    parser.add_argument("targets", metavar="SERVICE|TASK", nargs="*", help="names, ids or beginnings of ids")
    parser.add_argument("--stack", default="", metavar="NAME", help="all services of a stack")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    parser.add_argument("-n", "--tail", default="all", metavar="LINES", help="only so many last lines; all")
    parser.add_argument("--since", default="", metavar="TIME", help="only lines since: 2026-01-31T12:00:00Z, or 10m")
    parser.add_argument("--until", default="", metavar="TIME", help="only lines before")
    parser.add_argument("-t", "--timestamps", action="store_true", help="show when each line was written")
    parser.add_argument("--raw", action="store_true", help="lines alone, without task and node")
    parser.add_argument("--no-task-ids", action="store_true", help="leave the task's id out of the prefix")
    parser.add_argument("--no-trunc", action="store_true", help="show ids in full")


def parse_time_ms(text: str, now_ms: int) -> int:
    """A time as Unix milliseconds: RFC 3339, Unix seconds, or a duration before now; 0 for an empty text.

    Raises:
        UsageError: for anything else.
    """
    if not text:
        return 0
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return int(float(text) * 1000)
    if _TIME.fullmatch(text):
        from datetime import UTC, datetime

        try:
            parsed = datetime.fromisoformat(text)
        except ValueError as error:
            raise UsageError(
                f"cannot read the time {text!r}", str(error), "write 2026-01-31T12:00:00Z, or 10m"
            ) from error
        return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)
    try:
        return now_ms - parse_duration_ms(text)
    except ValueError as error:
        raise UsageError(f"cannot read the time {text!r}", str(error), "write 2026-01-31T12:00:00Z, or 10m") from error


def parse_tail(text: str) -> int:
    """``--tail``: a count, or -1 for all.

    Raises:
        UsageError: for anything else.
    """
    if text == "all":
        return -1
    if text.isascii() and text.isdigit():
        return int(text)
    raise UsageError(f"cannot read --tail {text!r}", "it is a number of lines, or all", "write --tail 20")


async def run(arguments: argparse.Namespace) -> int:
    """Prints the lines as they come."""
    if bool(arguments.targets) == bool(arguments.stack):
        raise UsageError(
            "cannot tell whose output to show", "a service or task, or --stack, is needed", "write `orch logs NAME`"
        )
    now_ms = time.time_ns() // 1_000_000
    tail = parse_tail(arguments.tail)
    since, until = parse_time_ms(arguments.since, now_ms), parse_time_ms(arguments.until, now_ms)
    from orch_cli.connection import calling, control
    from orch_proto.control_pb2 import LogsRequest
    from orch_proto.node_pb2 import LogsOptions

    options = LogsOptions(
        follow=arguments.follow, since_unix_ms=since, until_unix_ms=until, tail_lines=tail, stdout=True, stderr=True
    )
    colour = sys.stdout.isatty()
    async with control(arguments.host) as stub:
        with calling("read the logs"):
            async for answer in stub.Logs(
                LogsRequest(targets=arguments.targets, stack=arguments.stack, options=options)
            ):
                for line in answer.lines:
                    write_line(line, arguments, colour=colour)
                sys.stdout.flush()
    return EXIT_OK


def write_line(
    line: LogLine, arguments: argparse.Namespace, *, colour: bool, out: TextIO | None = None, err: TextIO | None = None
) -> None:
    """Writes one line: the task's standard error to ours, notes of orch too."""
    out, err = out or sys.stdout, err or sys.stderr
    text = line.line.decode("utf-8", "replace").rstrip("\n")
    if line.stream == "orch":
        print(f"orch: {text}", file=err)
        return
    stamp = f"{format_time_ns(line.timestamp_unix_ns)} " if arguments.timestamps else ""
    prefix = "" if arguments.raw else f"{_prefix(line, arguments, colour=colour)} | "
    print(f"{stamp}{prefix}{text}", file=err if line.stream == "stderr" else out)


def _prefix(line: LogLine, arguments: argparse.Namespace, *, colour: bool) -> str:
    name = f"{line.service_name}.{line.slot or line.node_id}"
    task = "" if arguments.no_task_ids else f".{line.task_id if arguments.no_trunc else line.task_id[:12]}"
    text = f"{name}{task}@{line.node_hostname or line.node_id}"
    # The same task has the same colour as long as the command runs.
    return f"\x1b[{_COLOURS[sum(name.encode()) % len(_COLOURS)]}m{text}\x1b[0m" if colour else text


def format_time_ns(unix_ns: int) -> str:
    """RFC 3339 with nanoseconds, in UTC."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(unix_ns // 1_000_000_000))}.{unix_ns % 1_000_000_000:09d}Z"
