"""Tables, templates, durations, sizes, progress and the packing of build contexts."""

from __future__ import annotations

import argparse
import io
import os
import tarfile
from pathlib import Path

import pytest

from orch_cli.deploy.context import ContextFile, pack_context
from orch_cli.deploy.convergence import ServiceProgress, Verdict
from orch_cli.deploy.ignore import IgnoreRules
from orch_cli.deploy.progress import JsonProgress, PlainProgress, TerminalProgress
from orch_cli.errors import CliError, UsageError
from orch_cli.output.listing import Listing, natural_key, print_listing
from orch_cli.output.tasks import format_ports, task_rows
from orch_cli.output.units import format_ago, format_duration, format_size
from orch_proto.objects_pb2 import Node, NodeState, Task
from orch_proto.types_pb2 import PORT_PROTOCOL_TCP, PUBLISH_MODE_INGRESS, PortConfig, TaskState

LISTING = Listing(columns=(("Name", "NAME"), ("Size", "SIZE")), quiet="ID", extra=(("ID", "ID"),))
ROWS = [{"ID": "1", "Name": "a", "Size": "10MB"}, {"ID": "2", "Name": "long", "Size": "1MB"}]


def shown(style: str, *, quiet: bool = False) -> str:
    stream = io.StringIO()
    print_listing(LISTING, ROWS, argparse.Namespace(format=style, quiet=quiet), stream)
    return stream.getvalue()


def test_lists_have_docker_s_forms() -> None:
    """A list is a table, JSON lines, a template, a table of a template, or ids."""
    assert shown("table") == "NAME   SIZE\na      10MB\nlong   1MB\n"
    assert shown("table", quiet=True) == "1\n2\n"
    assert shown("json") == '{"ID": "1", "Name": "a", "Size": "10MB"}\n{"ID": "2", "Name": "long", "Size": "1MB"}\n'
    assert shown(r"{{.Name}}\t{{ .ID }}") == "a\t1\nlong\t2\n"
    assert shown(r"table {{.ID}}\t{{.Name}}") == "ID   NAME\n1    a\n2    long\n"
    assert shown("{{json .}}").startswith('{"ID": "1"')


@pytest.mark.parametrize("style", ["{{.Nam}}", "{{range .}}", "{{.Name", "{{upper .Name}}", "table {{.X}}"])
def test_richer_templates_are_refused(style: str) -> None:
    """A template beyond fields is an error that names what is known."""
    with pytest.raises(UsageError):
        shown(style)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "Less than a second"),
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (200, "3 minutes"),
        (3600, "About an hour"),
        (7300, "2 hours"),
        (3 * 86400, "3 days"),
        (20 * 86400, "2 weeks"),
        (90 * 86400, "3 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_durations_are_in_words(seconds: float, text: str) -> None:
    """Spans of time are told as docker tells them."""
    assert format_duration(seconds) == text
    assert format_ago(1_000_000, 1_000_000 + int(seconds * 1000)) == f"{text} ago"


def test_sizes_and_order() -> None:
    """Sizes have three digits, names sort by their numbers."""
    assert [format_size(size) for size in (0, 999, 1_982_737, 2_500_000_000)] == ["0B", "999B", "1.98MB", "2.5GB"]
    assert sorted(["a10", "a2", "b"], key=natural_key) == ["a2", "a10", "b"]


def test_neighbouring_ports_are_joined() -> None:
    """Ports in a row are shown as a range."""

    def port(published: int, target: int) -> PortConfig:
        return PortConfig(
            protocol=PORT_PROTOCOL_TCP, published_port=published, target_port=target, mode=PUBLISH_MODE_INGRESS
        )

    assert format_ports([port(81, 81), port(80, 80), port(8080, 90)]) == "*:80-81->80-81/tcp, *:8080->90/tcp"


def test_earlier_tasks_stand_below_the_newest() -> None:
    """The tasks of a slot stand together, newest first, earlier ones marked; long errors are cut."""
    tasks = []
    for created, state in ((1, TaskState.TASK_STATE_FAILED), (2, TaskState.TASK_STATE_RUNNING)):
        task = Task(id=f"{created}" * 25, service_name="web", slot=1, desired_state=TaskState.TASK_STATE_RUNNING)
        task.meta.created_at_unix_ms = created
        task.status.state = state
        task.status.timestamp_unix_ms = 1000
        task.status.error = "x" * 100 if state == TaskState.TASK_STATE_FAILED else ""
        tasks.append(task)
    rows = task_rows(tasks, {}, now_ms=121_000)
    assert [row["Name"] for row in rows] == ["web.1", " \\_ web.1"]
    assert rows[0]["CurrentState"] == "Running 2 minutes ago"
    assert (len(rows[0]["ID"]), len(rows[1]["Error"])) == (12, 62)
    assert len(task_rows(tasks, {}, no_trunc=True)[1]["Error"]) == 102


def test_a_task_on_a_lost_node_is_shown_as_out_of_sight() -> None:
    """Its state is not passed off as known: since when, what was seen last, and how long it is waited for."""
    node = Node(id="n2")
    node.description.hostname = "two"
    node.status.state = NodeState.NODE_STATE_DOWN
    node.status.since_unix_ms = 100_000
    task = Task(id="t", service_name="web", slot=1, node_id="n2", desired_state=TaskState.TASK_STATE_RUNNING)
    task.status.state = TaskState.TASK_STATE_RUNNING
    task.status.timestamp_unix_ms = 1000
    task.spec.disconnect_grace_ms = 60_000
    row = task_rows([task], {"n2": node}, now_ms=120_000)[0]
    assert row["CurrentState"] == "Disconnected 20 seconds ago"
    assert row["Error"] == '"node down, last seen running; waiting up to 40 seconds"'
    task.desired_state = TaskState.TASK_STATE_SHUTDOWN
    row = task_rows([task], {"n2": node}, now_ms=120_000)[0]
    assert row["Error"] == '"node down, last seen running"'
    node.status.state = NodeState.NODE_STATE_READY
    assert task_rows([task], {"n2": node}, now_ms=120_000)[0]["CurrentState"].startswith("Running")


STEPS = [
    [ServiceProgress("shop_web", 2, 0, 0, Verdict.WORKING, "web.1: preparing")],
    [ServiceProgress("shop_web", 2, 0, 0, Verdict.WORKING, "web.1: preparing")],
    [ServiceProgress("shop_web", 2, 2, 0, Verdict.CONVERGED)],
]


def test_plain_progress_has_a_line_per_change() -> None:
    """Without a terminal a state that did not change makes no line."""
    stream = io.StringIO()
    plain = PlainProgress("shop", stream)
    for step in STEPS:
        plain.update(step, 1.0)
    lines = stream.getvalue().splitlines()
    assert [line[9:] for line in lines] == ["web 0/2 running, web.1: preparing (1.0s)", "web 2/2 running (1.0s)"]


def test_json_progress_is_one_object_per_change() -> None:
    """JSON progress has one object a line."""
    stream = io.StringIO()
    progress = JsonProgress("shop", stream)
    for step in STEPS:
        progress.update(step, 1.0)
    assert len(stream.getvalue().splitlines()) == 2


def test_terminal_progress_redraws_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal each state is drawn over the last, never wider than the terminal."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "10")
    stream = io.StringIO()
    progress = TerminalProgress("shop", stream)
    progress.update([ServiceProgress("shop_web", 2, 1, 0, Verdict.WORKING, "r" * 200)], 1.0)
    progress.update(STEPS[2], 2.0)
    assert "\x1b[1A" in stream.getvalue()
    assert all(
        len(line.replace("\x1b[2K", "")) <= 40 for line in stream.getvalue().split("\n") if "\x1b[1A" not in line
    )


@pytest.mark.parametrize(
    ("rules", "path", "ignored"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("/a/", "a/b", True),
        ("a", "b/a", False),
        ("**/a", "b/c/a", True),
        ("*.txt", "x.txt", True),
        ("*.txt", "d/x.txt", False),
        ("d/*\n!d/keep", "d/keep", False),
        ("d/*\n!d/keep", "d/x", True),
        ("*\n!src/**", "src/a/b", False),
        ("# c\n\n?.o", "x.o", True),
        ("[ab]", "b", True),
        ("../x", "x", True),
    ],
)
def test_ignore_rules(rules: str, path: str, ignored: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Rules of .dockerignore hold for what is below, later ones win, ! takes back."""
    assert IgnoreRules(rules).ignores(path) is ignored


def test_a_context_is_packed_alike_whatever_its_times(tmp_path: Path) -> None:
    """Two folders with the same content give the same bytes; ignored files stay out, the Dockerfile never."""
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "sub").mkdir(parents=True)
        files = ["b", "a", "Dockerfile", "sub/x", "skip"]
        for item in files if name == "one" else reversed(files):
            (folder / item).write_text(item)
            os.utime(folder / item, (1, 1 if name == "one" else 2))
        (folder / "link").symlink_to("a")
        (folder / ".dockerignore").write_text("skip\nDockerfile\n")
    first, second = (b"".join(pack_context(str(tmp_path / name), "", None)) for name in ("one", "two"))
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert archive.getnames() == [".dockerignore", "Dockerfile", "a", "b", "link", "sub", "sub/x"]


def test_an_inline_dockerfile_is_added(tmp_path: Path) -> None:
    """A Dockerfile from the stack file travels inside the context."""
    data = b"".join(pack_context(str(tmp_path), ".orch.Dockerfile", ContextFile(".orch.Dockerfile", b"FROM scratch\n")))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [".orch.Dockerfile"]


def test_a_missing_context_or_dockerfile_is_told(tmp_path: Path) -> None:
    """A folder that is not there, or has no Dockerfile, is an error before anything is sent."""
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(CliError):
            list(pack_context(str(folder), "", None))
