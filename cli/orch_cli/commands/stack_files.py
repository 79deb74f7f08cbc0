"""The stack file options that deploy, plan and config share, and reading the files."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from orch_cli.compose.loader import Options, SourceFile
from orch_cli.errors import CliError, UsageError
from orch_proto import defaults

DEFAULT_FILES: Final = (
    "stack.yml",
    "stack.yaml",
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
)


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Adds the file, the stack's name, and what else decides how a file is read."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="FILE|STACK",
        help="the stack file (else stack.yml or compose.yaml here); with -c: the stack's name, as docker has it",
    )
    parser.add_argument(
        "-c",
        "--compose-file",
        action="append",
        default=[],
        metavar="FILE",
        help="a stack file; repeat to merge, - is stdin",
    )
    parser.add_argument(
        "--stack",
        "--name",
        dest="stack",
        default="",
        metavar="NAME",
        help="the stack's name (else the file's, else the folder's)",
    )
    parser.add_argument(
        "--env-file",
        action="append",
        default=[],
        metavar="FILE",
        help="variables for the file (else .env beside it); the environment wins",
    )
    parser.add_argument(
        "--profile", action="append", default=[], metavar="NAME", help="take services of this profile in; * for all"
    )


def read_files(arguments: argparse.Namespace) -> tuple[list[SourceFile], Options]:
    """Reads the files that the command line names.

    Raises:
        UsageError: when it is not clear which file or stack is meant.
        CliError: when a file cannot be read.
    """
    paths = [path for item in arguments.compose_file for path in item.split(",") if path]
    stack = arguments.stack
    words = list(arguments.words)
    if paths and words:
        if stack or len(words) > 1:
            raise UsageError("more names are given than there are stacks", f"{' '.join(words)!r}", "give one name")
        stack = words.pop()
    paths += words
    if not paths:
        paths = [next((name for name in DEFAULT_FILES if Path(name).is_file()), "")]
        if not paths[0]:
            raise UsageError(
                "no stack file is given",
                f"and there is none of {', '.join(DEFAULT_FILES)} here",
                "write `orch deploy FILE`",
            )
    files = [_read(path) for path in paths]
    first = next((path for path in paths if path != "-"), "")
    options = Options(
        folder=os.path.dirname(os.path.abspath(first)) if first else os.getcwd(),
        environment=dict(os.environ),
        stack=stack,
        profiles=frozenset(name for item in arguments.profile for name in item.split(",")),
        env_files=tuple(_read(path) for path in arguments.env_file),
    )
    return files, options


def _read(path: str) -> SourceFile:
    try:
        if path == "-":
            return SourceFile("<stdin>", sys.stdin.read(defaults.STACK_FILE_BYTES + 1))
        with open(path, encoding="utf-8") as stream:
            return SourceFile(path, stream.read(defaults.STACK_FILE_BYTES + 1))
    except UnicodeDecodeError as error:
        raise CliError(f"cannot read {path}", "it is no UTF-8 text", "is it a stack file?") from error
    except OSError as error:
        raise CliError(
            f"cannot read {path}", error.strerror or str(error), "check the path; relative ones start in this folder"
        ) from error
