"""RUN with mounts, networks and interpreters, on the real runtime."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orch_agent.build.builder import Builder
from orch_agent.build.errors import BuildError, DockerfileError, StepFailed
from orch_agent.build.events import BuildEvent, EventKind
from orch_agent.build.runtime_runner import RuntimeStepRunner
from orch_agent.images.merged import MergedTree
from orch_agent.images.model import ImageInfo
from orch_agent.images.store import ImageStore
from orch_runtime.client import RuntimeClient

Context = Callable[..., Path]


def text(store: ImageStore, info: ImageInfo, path: str) -> str:
    node = MergedTree(store.lower_dirs(info)).lookup(path)
    assert node is not None, f"{path} is not in the image"
    return Path(node.source).read_text()


def paths(store: ImageStore, info: ImageInfo) -> set[str]:
    tree = MergedTree(store.lower_dirs(info))
    return {node.path for node in tree.walk(tree.root()) if not node.path.startswith("/bin/")}


def cached(events: list[BuildEvent]) -> list[int]:
    return [event.step for event in events if event.kind is EventKind.CACHED]


def test_a_cache_outlives_builds_and_is_in_no_layer(builder: Builder, store: ImageStore, context: Context) -> None:
    """What a step writes into a cache is there in the next, with the owner and mode asked for, and in no image."""
    run = (
        "RUN --mount=type=cache,target=/cache,uid=7,mode=0711 stat -c '%u %a' /cache > /stat; "
        "echo $ROUND >> /cache/rounds; cat /cache/rounds > /seen\n"
    )
    builder.build(context(f"ARG ROUND\n{run}"), build_args={"ROUND": "1"})
    info = builder.build(context(f"ARG ROUND\n{run}"), build_args={"ROUND": "2"})
    assert (text(store, info, "/seen"), text(store, info, "/stat")) == ("1\n2\n", "7 711\n")
    assert "/cache" not in paths(store, info)


def test_binds_show_the_context_a_stage_and_files_without_keeping_them(
    builder: Builder, store: ImageStore, context: Context
) -> None:
    """A bind shows the build's folder, a stage (deletions heeded) or one file; writes into it are lost or refused."""
    folder = context(
        """RUN mkdir /d && echo 1 > /d/gone && echo 2 > /d/kept
RUN rm /d/gone && echo 3 > /d/new
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox","--install","-s","/bin"]
RUN --mount=target=/src --mount=type=bind,from=0,source=/d,target=/d,rw --mount=from=0,source=/d/new,target=/one/file \
  ls /d > /listed; cat /src/hello /one/file > /read; echo x > /d/more; ! echo x > /src/more; ls -d /src/.secret || true
""",
        hello="hello\n",
    )
    (folder / ".secret").write_text("ignored")
    (folder / ".dockerignore").write_text(".secret\n")
    info = builder.build(folder)
    assert text(store, info, "/listed") == "kept\nnew\n"
    assert text(store, info, "/read") == "hello\n3\n"
    assert paths(store, info) == {"/bin", "/listed", "/read"}
    assert not (folder / "more").exists()
    events: list[BuildEvent] = []
    builder.build(folder, progress=events.append)
    assert len(cached(events)) == 7
    (folder / "hello").write_text("other\n")
    assert text(store, builder.build(folder), "/read") == "other\n3\n"


def test_a_tmpfs_is_empty_and_bounded(builder: Builder, store: ImageStore, context: Context) -> None:
    """A tmpfs mount hides what the image has there, is as large as asked, and leaves nothing."""
    info = builder.build(
        context(
            "RUN mkdir /t && echo kept > /t/f\n"
            'RUN --mount=type=tmpfs,target=/t,size=1m test -z "$(ls /t)" && '
            "! dd if=/dev/zero of=/t/big bs=1M count=2 2>/dev/null && df -k /t | tail -1 | awk '{print $2}' > /size\n"
        )
    )
    assert text(store, info, "/size") == "1024\n"
    assert text(store, info, "/t/f") == "kept\n"


def test_secrets_are_in_the_step_and_nowhere_else(
    builder: Builder, store: ImageStore, context: Context, tmp_path: Path
) -> None:
    """A secret is a file or variable of its step; no layer, config, cache or file of the node holds it afterwards."""
    dockerfile = (
        "RUN --mount=type=secret,id=token,uid=5,mode=0440 stat -c '%u %a' /run/secrets/token > /stat; "
        "md5sum < /run/secrets/token > /sum\n"
        "RUN --mount=type=secret,id=token,env=TOKEN echo ${#TOKEN} > /length\n"
        "RUN --mount=type=secret,id=other test ! -e /run/secrets/other\n"
    )
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    builder._secrets_folder = secrets
    events: list[BuildEvent] = []
    info = builder.build(context(dockerfile), secrets={"token": b"geheim-4711"}, progress=events.append)
    assert text(store, info, "/stat") == "5 440\n"
    assert text(store, info, "/length") == "11\n"
    assert "/run" not in paths(store, info)
    assert list(secrets.iterdir()) == []
    found = subprocess.run(["grep", "-r", "geheim-4711", str(store.root)], capture_output=True, check=False)
    assert found.returncode == 1
    assert any("secret other was not given" in event.text for event in events if event.kind is EventKind.WARNING)
    with pytest.raises(DockerfileError, match=r"Dockerfile:4: RUN needs the secret must"):
        builder.build(context("RUN --mount=type=secret,id=must,required true\n"))


def test_without_network_there_is_none(builder: Builder, store: ImageStore, context: Context) -> None:
    """RUN --network=none sees no link but loopback; the build's option is the default of all RUN."""
    show = "ls /sys/class/net > /links"
    info = builder.build(context(f"RUN --network=none {show}\n"))
    assert text(store, info, "/links") == "lo\n"
    assert text(store, builder.build(context(f"RUN {show} \n"), network="none"), "/links") == "lo\n"
    here = sorted(os.listdir("/sys/class/net"))  # noqa: PTH208 - names
    assert sorted(text(store, builder.build(context(f"RUN --network=host {show}\n")), "/links").split()) == here


def test_a_heredoc_may_name_its_interpreter(builder: Builder, store: ImageStore, context: Context) -> None:
    """A heredoc that begins with #! is run by that program."""
    info = builder.build(context('RUN <<EOF\n#!/bin/awk -f\nBEGIN { print 6 * 7 > "/answer" }\nEOF\n'))
    assert text(store, info, "/answer") == "42\n"
    assert "/dev" not in paths(store, info)


def test_a_failing_stage_ends_the_others(builder: Builder, store: ImageStore, context: Context) -> None:
    """When one of the stages built side by side fails, the commands of the others are ended; its error is told."""
    folder = context(
        """FROM 0 AS base
FROM scratch AS slow
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox echo slow; /bin/busybox sleep 1000"]
FROM scratch AS bad
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox sleep 0.5; exit 9"]
FROM scratch
COPY --from=slow /bin /a
COPY --from=bad /bin /b
""".removeprefix("FROM 0 AS base\n")
    )
    with pytest.raises(StepFailed) as caught:
        builder.build(folder, tag="t")
    assert caught.value.exit_code == 9
    assert store.list() == ()
    assert list((store.root / "staging").iterdir()) == []


def test_independent_stages_run_side_by_side(builder: Builder, store: ImageStore, context: Context) -> None:
    """Two stages that need nothing of each other run at once: each waits for what the other writes into a cache."""
    wait = (
        "RUN --mount=type=cache,id=meet,target=/m echo x > /m/{0}; "
        "for i in $(seq 200); do test -e /m/{1} && exit 0; sleep 0.1; done; exit 1\n"
    )
    install = 'COPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\n'
    one, two = wait.replace("{0}", "1").replace("{1}", "2"), wait.replace("{0}", "2").replace("{1}", "1")
    last = "FROM scratch\nCOPY --from=0 /bin/busybox /a\nCOPY --from=b /bin/busybox /b\n"
    info = builder.build(context(f"{one}FROM scratch AS b\n{install}{two}{last}"))
    assert paths(store, info) == {"/a", "/b"}


BUILD = """
import pathlib, sys
from orch_agent.build.builder import Builder
from orch_agent.build.runtime_runner import RuntimeStepRunner
from orch_agent.images.store import ImageStore
builder = Builder(
    ImageStore(pathlib.Path(sys.argv[1]), durable=False),
    RuntimeStepRunner(sys.argv[2]),
    secrets_folder=pathlib.Path(sys.argv[4]),
)
print("begun", flush=True)
builder.build(pathlib.Path(sys.argv[3]), tag="t", secrets={"s": b"geheim"}, no_cache=True)
"""


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.long)])
def test_builds_killed_at_any_moment_leave_nothing_half(
    tmp_path: Path, runtime_socket: str, context: Context, kills: int
) -> None:
    """After kill -9 anywhere in a build the next one finishes, and no container, staging folder or secret is left."""
    folder = context(
        "RUN --mount=type=cache,target=/c,sharing=locked --mount=type=secret,id=s echo $$ > /c/f; seq 2000 > /out\n"
        "COPY . /all/\n"
        "FROM scratch\nCOPY --from=0 /all /all\nCOPY --from=0 /out /out\n"
    )
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    arguments = [str(tmp_path / "images"), runtime_socket, str(folder), str(secrets)]
    for number in range(kills):
        with subprocess.Popen([sys.executable, "-c", BUILD, *arguments], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            try:
                process.wait(0.013 * (number % 40))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
    RuntimeStepRunner(runtime_socket).sweep()
    with RuntimeClient(runtime_socket) as client:
        assert client.list() == []
    store = ImageStore(tmp_path / "images", durable=False)
    assert list((store.root / "staging").iterdir()) == []
    builder = Builder(store, RuntimeStepRunner(runtime_socket), secrets_folder=secrets)
    info = builder.build(folder, tag="t", secrets={"s": b"geheim"})
    assert text(store, info, "/out").splitlines()[-1] == "2000"
    assert list(secrets.iterdir()) == []
    assert [image.id for image in store.list()] == [info.id]


def test_wrong_mounts_name_their_line(builder: Builder, context: Context) -> None:
    """A mount that cannot be is refused with file, line and what to do, before anything is built."""
    for options, message in {
        "type=nfs,target=/a": "is not a kind of mount",
        "type=cache": "needs target=",
        "type=tmpfs,target=/a,sharing=x": "has no option sharing",
        "type=cache,target=/a,sharing=x": "choose one of shared, private, locked",
        "type=bind,target=/a,source=missing": "'missing' does not exist",
        "type=bind,target=/": "would hide the whole image",
        "type=secret,target=/a,mode=9": "not an octal mode",
        "type=ssh,required": "no agent's keys",
    }.items():
        with pytest.raises(BuildError, match=r"Dockerfile:4") as caught:
            builder.build(context(f"RUN --mount={options} true\n"))
        assert message in str(caught.value)
