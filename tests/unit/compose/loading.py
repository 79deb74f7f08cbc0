"""Helpers of the loader's tests: load text without touching a disk."""

from __future__ import annotations

from collections.abc import Mapping

from orch_cli.compose.loader import LoadedStack, Options, SourceFile, load_stack
from orch_cli.compose.report import ComposeError
from orch_proto.specs_pb2 import ContainerSpec, ServiceSpec

FOLDER = "/stack"


def load(
    *texts: str,
    files: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    profiles: frozenset[str] = frozenset(),
    stack: str = "shop",
) -> LoadedStack:
    """Loads the texts as files a.yml, b.yml, … in a folder whose other files are ``files``."""

    def read(path: str, limit: int) -> bytes:
        for name, content in (files or {}).items():
            if path == f"{FOLDER}/{name}":
                return content.encode()[: limit + 1]
        raise FileNotFoundError(2, "No such file or directory", path)

    sources = [SourceFile(f"{'abcdef'[index]}.yml", text) for index, text in enumerate(texts)]
    return load_stack(sources, Options(FOLDER, env or {}, stack=stack, profiles=profiles), read)


def service(text: str, **options: object) -> ServiceSpec:
    """The one service ``web`` of a stack whose service's YAML (flow or block) is ``text``."""
    loaded = load(f"services:\n  web:\n    image: web\n{indent(text)}", **options)  # type: ignore[arg-type]
    return loaded.spec.services[0]


def container(text: str, **options: object) -> ContainerSpec:
    """The container of that service."""
    return service(text, **options).task.container


def indent(text: str) -> str:
    """The text as part of a service."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def problems(*texts: str, **options: object) -> list[str]:
    """Every problem of the texts; empty when they load."""
    try:
        load(*texts, **options)  # type: ignore[arg-type]
    except ComposeError as error:
        return [str(problem) for problem in error.problems]
    return []


def service_problems(text: str, **options: object) -> list[str]:
    """Every problem of a service's YAML."""
    return problems(f"services:\n  web:\n    image: web\n{indent(text)}", **options)
