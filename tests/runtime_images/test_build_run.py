import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orch_agent.build.builder import Builder
from orch_agent.build.errors import BuildError, StepFailed
from orch_agent.build.events import BuildEvent, EventKind, plain_line
from orch_agent.build.runtime_runner import RuntimeStepRunner
from orch_agent.images.merged import MergedTree
from orch_agent.images.model import ImageInfo
from orch_agent.images.store import ImageStore
from orch_runtime.client import RuntimeClient

Context = Callable[..., Path]


def content(store: ImageStore, info: ImageInfo, path: str) -> str:
    node = MergedTree(store.lower_dirs(info)).lookup(path)
    assert node is not None, f"{path} is not in the image"
    return Path(node.source).read_text()


def outputs(events: list[BuildEvent]) -> list[str]:
    """What commands wrote; the step that makes the image speaks too."""
    exporting = {event.step for event in events if event.text == "exporting to image"}
    return [event.text for event in events if event.kind is EventKind.OUTPUT and event.step not in exporting]


def test_run_writes_files_with_the_steps_environment(builder: Builder, store: ImageStore, context: Context) -> None:
    """RUN sees ENV, ARG, WORKDIR, USER and SHELL of its stage, and what it writes is in the image."""
    accounts = "root:x:0:0::/:/bin/sh\napp:x:7:8::/:/bin/sh\n"
    folder = context(
        """ARG WHO=nobody
ENV GREETING="hello world"
WORKDIR /place
COPY accounts /etc/passwd
RUN echo "$GREETING $WHO $PWD" > out
RUN mkdir /own && chown app:8 /own
USER app
RUN ["/bin/sh", "-c", "id -u > /own/uid; id -g > /own/gid"]
USER root
SHELL ["/bin/sh", "-e", "-c"]
RUN <<END
cd /own
echo first > heredoc
END
""",
        accounts=accounts,
    )
    info = builder.build(folder, tag="t", build_args={"WHO": "me"})
    assert content(store, info, "/place/out") == "hello world me /place\n"
    assert (content(store, info, "/own/uid"), content(store, info, "/own/gid")) == ("7\n", "8\n")
    assert content(store, info, "/own/heredoc") == "first\n"


def test_output_is_told_line_by_line(builder: Builder, context: Context) -> None:
    """Both streams of RUN reach the progress as lines, long ones cut, the last one without a line feed too."""
    events: list[BuildEvent] = []
    folder = context(
        "RUN echo one; echo two >&2; printf 'three\\rfour\\n'; head -c 40000 /dev/zero | tr '\\0' x; printf end\n"
    )
    builder.build(folder, progress=events.append)
    lines = outputs(events)
    assert lines[:3] == ["one", "two", "four"]
    assert "".join(lines[3:]) == "x" * 40000 + "end"
    assert max(map(len, lines)) <= 16 * 1024
    assert any(plain_line(event).startswith("#4 [4/4] RUN echo one") for event in events)


def test_a_failing_command_names_its_line_and_leaves_no_image(
    builder: Builder, store: ImageStore, context: Context
) -> None:
    """A step that ends with another code than 0 fails the build with file, line and code, and makes no image."""
    events: list[BuildEvent] = []
    folder = context("RUN true\nRUN echo why >&2; exit 7\nRUN echo never\n")
    with pytest.raises(StepFailed, match=r"Dockerfile:5: .*exit code 7") as caught:
        builder.build(folder, tag="t", progress=events.append)
    assert caught.value.exit_code == 7
    assert outputs(events) == ["why"]
    assert store.list() == ()
    assert list((store.root / "staging").iterdir()) == []


def test_a_missing_program_is_explained(builder: Builder, context: Context) -> None:
    """A program that the image does not have is an error that names it."""
    with pytest.raises(BuildError, match="/no/such/program"):
        builder.build(context('RUN ["/no/such/program"]\n'))


def test_a_command_that_takes_too_long_is_stopped(store: ImageStore, runtime_socket: str, context: Context) -> None:
    """A step beyond its time is killed, also when it has closed its output, and nothing of it runs on."""
    builder = Builder(store, RuntimeStepRunner(runtime_socket, timeout_s=1))
    for command in ("sleep 1000", "exec >/dev/null 2>&1; sleep 1000"):
        with pytest.raises(BuildError, match="was stopped after 1 s"):
            builder.build(context(f"RUN {command}\n"))
    with RuntimeClient(runtime_socket) as client:
        assert client.list() == []


def test_a_layer_holds_what_the_command_changed_and_nothing_else(
    builder: Builder, store: ImageStore, context: Context
) -> None:
    """Targets of the container's own mounts are not in the image; deletions are, and an idle step adds no layer."""
    info = builder.build(context("RUN echo x > /f\nRUN rm /f\nRUN true\n"))
    layers = [sorted(path.name for path in Path(lower).iterdir()) for lower in store.lower_dirs(info)]
    assert layers == [["f"], ["f"], ["bin"], ["bin"]]
    tree = MergedTree(store.lower_dirs(info))
    assert [child.path for child in tree.children(tree.root())] == ["/bin"]
    document = store.document(info)
    assert [entry.empty_layer for entry in document.history] == [False, False, False, False, True]


def test_steps_are_repeated_only_from_the_first_change_on(
    builder: Builder, store: ImageStore, context: Context
) -> None:
    """Building again takes every step from the cache and gives the same image; a change repeats what follows it."""
    folder = context("COPY a /a\nRUN echo from-a > /1\nCOPY b /b\nRUN cat /b > /2\n", a="a", b="b")

    def build(**options: bool) -> tuple[str, list[int]]:
        events: list[BuildEvent] = []
        info = builder.build(folder, progress=events.append, **options)  # type: ignore[arg-type]
        return info.id, [event.step for event in events if event.kind is EventKind.CACHED]

    first, cached = build()
    assert cached == []
    assert build() == (first, [2, 3, 4, 5, 6, 7])
    os.utime(folder / "a", (1, 1))
    assert build()[1] == [2, 3, 4, 5, 6, 7]
    (folder / "b").write_text("changed")
    second, cached = build()
    assert cached == [2, 3, 4, 5]
    assert second != first
    (folder / "b").write_text("b")
    assert build()[0] == first
    assert build(no_cache=True)[1] == []


BUILD = """
import pathlib, sys
from orch_agent.build.builder import Builder
from orch_agent.build.runtime_runner import RuntimeStepRunner
from orch_agent.images.store import ImageStore
builder = Builder(ImageStore(pathlib.Path(sys.argv[1]), durable=False), RuntimeStepRunner(sys.argv[2]))
def tell(event):
    print(event.kind.value, event.text, flush=True)


builder.build(pathlib.Path(sys.argv[3]), tag="t", progress=tell)
"""


def test_a_killed_build_leaves_nothing_after_a_sweep(tmp_path: Path, runtime_socket: str, context: Context) -> None:
    """After kill -9 of a build a sweep ends its container, the store opens clean, and the cache still serves."""
    folder = context("RUN echo started; sleep 1000\n")
    command = [sys.executable, "-c", BUILD, str(tmp_path / "images"), runtime_socket, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "output started\n" for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert len(RuntimeStepRunner(runtime_socket).sweep()) == 1
    with RuntimeClient(runtime_socket) as client:
        assert client.list() == []
    store = ImageStore(tmp_path / "images", durable=False)
    assert list((store.root / "staging").iterdir()) == []
    (folder / "Dockerfile").write_text((folder / "Dockerfile").read_text().replace("sleep 1000", "true"))
    events: list[BuildEvent] = []
    Builder(store, RuntimeStepRunner(runtime_socket)).build(folder, tag="t", progress=events.append)
    assert [event.step for event in events if event.kind is EventKind.CACHED] == [2, 3]


def test_a_build_survives_the_death_of_the_supervisor(builder: Builder, runtime_socket: str, context: Context) -> None:
    """The runtime's supervisor may be killed during RUN: the step goes on and its output and exit code arrive."""
    lines: list[str] = []

    def progress(event: BuildEvent) -> None:
        lines.append(event.text)
        if event.kind is EventKind.OUTPUT and event.text == "before":
            with RuntimeClient(runtime_socket) as client:
                os.kill(client.version()["pid"], signal.SIGKILL)

    with pytest.raises(StepFailed) as caught:
        builder.build(context("RUN echo before; sleep 0.5; echo after; exit 3\n"), progress=progress)
    assert caught.value.exit_code == 3
    assert "after" in lines
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with RuntimeClient(runtime_socket) as client:
            if not client.list():
                return
    raise AssertionError("the step's container was not removed")
