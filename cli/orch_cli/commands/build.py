"""``orch image build``, also ``orch build``: an image from a Dockerfile."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orch_cli.errors import EXIT_OK, CliError, UsageError
from orch_proto import defaults

if TYPE_CHECKING:
    from orch_cli.compose.service import Build

_DOCKERFILE_BYTES: Final = 1024 * 1024
_SECRETS_BYTES: Final = 2 * 1024 * 1024
_EPOCH: Final = "SOURCE_DATE_EPOCH"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of docker build that orch has."""
    parser.add_argument(
        "path", metavar="PATH", nargs="?", default=".", help="the build context, a folder (default: the current one)"
    )
    parser.add_argument(
        "-t", "--tag", action="append", default=[], metavar="NAME[:TAG]", help="name of the image; repeat for more"
    )
    parser.add_argument(
        "-f", "--file", default="", metavar="FILE", help="the Dockerfile (default PATH/Dockerfile); - is standard input"
    )
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="a value for ARG; without = the client's"
    )
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="a label of the image")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="id=ID[,src=FILE|,env=NAME]",
        help="a secret for RUN --mount=type=secret; without src and env the variable or file named as the id",
    )
    parser.add_argument("--target", default="", metavar="STAGE", help="build up to this stage")
    parser.add_argument(
        "--network", default="", metavar="MODE", choices=("default", "host", "none"), help="of RUN: default, host, none"
    )
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="must be the node's own")
    parser.add_argument("--no-cache", action="store_true", help="run every step")
    parser.add_argument(
        "--progress", default="auto", choices=("auto", "plain", "quiet"), help="how to show what happens (default auto)"
    )
    parser.add_argument("--iidfile", default="", metavar="FILE", help="write the image's id to this file")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the image's id only")
    parser.add_argument("--node", default="", metavar="NODE", help="on this node; else on the manager's own")


async def run(arguments: argparse.Namespace) -> int:
    """Build, and print the image's id."""
    from orch_cli.connection import control
    from orch_cli.deploy.build import build_image

    build = _wish(arguments)
    quiet = arguments.quiet or arguments.progress == "quiet"
    async with control(arguments.host) as stub:
        identifier = await build_image(stub, build, quiet=quiet, node=arguments.node)
    print(identifier)
    if arguments.iidfile:
        try:
            Path(arguments.iidfile).write_text(identifier)  # noqa: ASYNC240 - nothing else runs any more
        except OSError as error:
            raise CliError(
                f"cannot write {arguments.iidfile}", error.strerror or str(error), "check the path"
            ) from error
    return EXIT_OK


def _wish(arguments: argparse.Namespace) -> Build:
    from orch_cli.commands.common import parse_pairs
    from orch_cli.compose.service import Build, check_reference

    for tag in arguments.tag:
        if problem := check_reference(tag):
            raise UsageError(f"{tag!r} is no name of an image", problem, "write --tag name:tag")
    context = os.path.abspath(arguments.path)
    name, inline, ignore = _dockerfile(arguments.file, context)
    return Build(
        service="",
        image=arguments.tag[0] if arguments.tag else "",
        context=context,
        dockerfile=name,
        inline=inline,
        inline_ignore=ignore,
        args=_build_args(arguments.build_arg),
        target=arguments.target,
        labels=parse_pairs(arguments.label, "label"),
        no_cache=arguments.no_cache,
        tags=tuple(arguments.tag[1:]),
        network=arguments.network,
        platform=arguments.platform,
        secrets=_secrets(arguments.secret),
    )


def _dockerfile(path: str, context: str) -> tuple[str, str, bytes | None]:
    """The Dockerfile's path inside the context; or a name for one that lies elsewhere, its text and ignore rules.

    As docker, ``--file`` is relative to the working directory.
    """
    from orch_cli.compose.service import INLINE_DOCKERFILE

    if not path:
        return "", "", None
    if path == "-":
        return INLINE_DOCKERFILE, _text(sys.stdin.buffer.read(_DOCKERFILE_BYTES + 1), "standard input"), None
    relative = os.path.relpath(path, context)
    if not relative.startswith(".."):
        return relative, "", None
    inside = os.path.join(context, path)
    if not os.path.isfile(path) and os.path.isfile(inside):
        return os.path.relpath(inside, context), "", None
    ignore_file = Path(f"{path}.dockerignore")
    ignore = _read(str(ignore_file), _DOCKERFILE_BYTES) if ignore_file.is_file() else None
    return INLINE_DOCKERFILE, _text(_read(path, _DOCKERFILE_BYTES), path), ignore


def _text(data: bytes, name: str) -> str:
    if not data.strip() or len(data) > _DOCKERFILE_BYTES:
        raise UsageError(f"cannot build with {name}", "it is empty or larger than 1 MiB", "give a Dockerfile")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot build with {name}", str(error), "give a Dockerfile in UTF-8") from error


def _read(path: str, limit: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise CliError(f"cannot read {path}", error.strerror or str(error), "check the path") from error
    if len(data) > limit:
        raise CliError(f"cannot use {path}", f"it is larger than {limit} bytes", "name a smaller file")
    return data


def _build_args(values: list[str]) -> dict[str, str]:
    result = {_EPOCH: os.environ[_EPOCH]} if os.environ.get(_EPOCH) else {}
    for text in values:
        name, equals, value = text.partition("=")
        known = value if equals else os.environ.get(name)
        if known is not None:
            result[name] = known
    return result


def _secrets(values: list[str]) -> dict[str, bytes]:
    """The contents of ``--secret``, by id."""
    result = {}
    for text in values:
        options = dict(item.partition("=")[::2] for item in text.split(","))
        path = options.pop("src", "") or options.pop("source", "")
        identifier, variable, kind = options.pop("id", ""), options.pop("env", ""), options.pop("type", "")
        if options or not identifier or (path and variable) or kind not in ("", "file", "env"):
            raise UsageError(
                f"--secret {text} is not understood", "", "write id=ID,src=FILE or id=ID,env=NAME or id=ID alone"
            )
        if kind == "env" and path:
            path, variable = "", path
        if not path and not variable:
            path, variable = ("", identifier) if identifier in os.environ else (identifier, "")
        if variable and variable not in os.environ:
            raise UsageError(f"--secret {text}", f"the variable {variable} is not set", "set it, or use src=FILE")
        result[identifier] = os.environ[variable].encode() if variable else _read(path, defaults.SECRET_BYTES)
    if sum(map(len, result.values())) > _SECRETS_BYTES:
        raise UsageError("the secrets are too large", f"together {_SECRETS_BYTES} bytes are the most", "give less")
    return result
