"""`orch build` and `build:` of stack files: what reaches the node."""

import argparse
import io
import tarfile
from pathlib import Path

import pytest

from orch_cli.commands import build as command
from orch_cli.compose.service import Build
from orch_cli.deploy.context import ContextFile, pack_context
from orch_cli.errors import CliError
from unit.compose.loading import load, problems


def wish(*words: str) -> Build:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command._wish(parser.parse_args(words))


def test_without_a_path_the_current_folder_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`orch build` alone builds the Dockerfile here, without a name; several -t give several names."""
    monkeypatch.chdir(tmp_path)
    assert (wish().context, wish().image) == (str(tmp_path), "")
    build = wish("-t", "a:1", "-t", "b:2", "--network", "none", "--platform", "linux/amd64", "x")
    assert (build.image, build.tags, build.network, build.platform) == ("a:1", ("b:2",), "none", "linux/amd64")
    assert build.context == str(tmp_path / "x")


def test_a_dockerfile_may_lie_outside_with_its_ignore_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--file may name a Dockerfile anywhere, or standard input; the .dockerignore beside it counts."""
    context = tmp_path / "context"
    context.mkdir()
    for name in ("keep", "drop"):
        (context / name).write_text(name)
    (tmp_path / "My.Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "My.Dockerfile.dockerignore").write_text("drop\n")
    (context / "in").mkdir()
    (context / "in/Dockerfile").write_text("FROM scratch\n")
    monkeypatch.chdir(tmp_path)
    assert wish("context", "-f", "context/in/Dockerfile").dockerfile == "in/Dockerfile"
    build = wish("context", "-f", "My.Dockerfile")
    assert build.inline_ignore is not None
    chunks = pack_context(
        build.context,
        build.dockerfile,
        ContextFile(build.dockerfile, build.inline.encode()),
        ContextFile(f"{build.dockerfile}.dockerignore", build.inline_ignore),
    )
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        names = archive.getnames()
    assert sorted(names[:3]) == ["in", "in/Dockerfile", "keep"]
    assert names[3:] == [build.dockerfile, f"{build.dockerfile}.dockerignore"]
    stream = io.TextIOWrapper(io.BytesIO(b"FROM other\n"))
    monkeypatch.setattr("sys.stdin", stream)
    assert wish("context", "-f", "-").inline == "FROM other\n"


def test_secrets_come_from_files_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--secret takes src= and env=, else the variable or file of its id; no secret shows when the wish is printed."""
    (tmp_path / "f").write_bytes(b"from-file")
    monkeypatch.setenv("TOKEN", "from-env")
    monkeypatch.chdir(tmp_path)
    build = wish("--secret", "id=a,src=f", "--secret", "id=b,env=TOKEN", "--secret", "id=TOKEN", "--secret", "id=f")
    assert build.secrets == {"a": b"from-file", "b": b"from-env", "TOKEN": b"from-env", "f": b"from-file"}
    assert "from-" not in repr(build)
    for words in ("src=f", "id=a,src=f,env=TOKEN", "id=a,env=MISSING_VARIABLE", "id=a,what=b", "id=missing"):
        with pytest.raises(CliError):
            wish("--secret", words)


def test_the_clients_date_makes_a_build_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOURCE_DATE_EPOCH of the environment is passed on as a build argument, as docker buildx does."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert wish().args == {"SOURCE_DATE_EPOCH": "1700000000"}
    assert wish("--build-arg", "SOURCE_DATE_EPOCH=5").args == {"SOURCE_DATE_EPOCH": "5"}


def test_a_stack_file_gives_builds_secrets_network_and_platform() -> None:
    """build.secrets takes the contents of the stack's secrets by id; network, platforms, tags and labels arrive."""
    text = """
services:
  a:
    build:
      context: .
      network: none
      platforms: [linux/amd64]
      secrets: [one, {source: one, target: two}]
      tags: ['x:1']
      labels: {k: v}
      cache_from: [y]
secrets: {one: {environment: TOKEN}}
"""
    build = load(text, env={"TOKEN": "t0ken"}).builds[0]
    assert (build.network, build.platform, build.tags, dict(build.labels)) == (
        "none",
        "linux/amd64",
        ("x:1",),
        {"k": "v"},
    )
    assert build.secrets == {"one": b"t0ken", "two": b"t0ken"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("{context: ., network: mine}", "is not a network of builds"),
        ("{context: ., platforms: [linux/amd64, linux/arm64]}", "built for one platform"),
        ("{context: ., secrets: [none]}", "'none' is not defined"),
        ("{context: ., secrets: [ext]}", "is not known here"),
        ("{context: ., additional_contexts: {a: ./b}}", "additional_contexts"),
    ],
)
def test_what_a_build_cannot_have_is_told(build: str, message: str) -> None:
    """Networks, platforms and secrets that a build cannot have are errors of the file."""
    found = problems(f"services: {{a: {{build: {build}}}}}\nsecrets: {{ext: {{external: true}}}}\n")
    assert message in found[0]
