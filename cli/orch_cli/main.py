"""The ``orch`` command: finds the command, runs it, and tells what went wrong in three parts."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from orch_cli.errors import EXIT_ERROR, EXIT_UNKNOWN_FLAG, CliError, UsageError, format_error

_GARBAGE_THRESHOLD = 500_000  # objects; a command that follows logs for days still collects now and then
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the command line without the program's name; by default the process's.

    Returns:
        The exit status.
    """
    if argv is None:
        # Imports make objects that live as long as the process; walking them for garbage took a third of the time of
        # a short command.
        gc.set_threshold(_GARBAGE_THRESHOLD)
    try:
        return _finish(resolve(list(sys.argv[1:] if argv is None else argv)))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone: nothing left to say, and nothing to flush at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:
        return report(error)


def _debug() -> None:
    """Shows the traceback when ORCH_DEBUG asks for it."""
    if os.environ.get("ORCH_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exc()


def report(error: Exception) -> int:
    """Prints an error in three parts; returns the exit status that it calls for."""
    _debug()
    if isinstance(error, CliError):
        print(format_error(error.what, error.why, error.todo), file=sys.stderr)
        return error.status
    from orch_cli.compose.report import ComposeError

    if isinstance(error, ComposeError):
        for problem in error.problems:
            print(problem, file=sys.stderr)
        count = len(error.problems)
        what = "the stack file has a problem" if count == 1 else f"the stack file has {count} problems"
        print(format_error(what, "see above", "nothing was changed; correct it and repeat"), file=sys.stderr)
        return EXIT_ERROR
    if "orch_rpc.errors" in sys.modules:
        from orch_rpc.errors import OrchError

        if isinstance(error, OrchError):
            print(format_error(error.what, error.why, error.todo), file=sys.stderr)
            return EXIT_ERROR
    if isinstance(error, OSError):
        print(format_error("the system refused", str(error)), file=sys.stderr)
        return EXIT_ERROR
    what = f"{type(error).__name__}: {error}"
    print(
        format_error("an unexpected error", what, "this is a defect: ORCH_DEBUG=1 shows where; please report it"),
        file=sys.stderr,
    )
    return EXIT_ERROR


def resolve(arguments: list[str]) -> int | Coroutine[Any, Any, int]:
    """Finds the command and begins it.

    Returns:
        The exit status, or a coroutine that gives it.

    Raises:
        CliError: what people are to read.
        Exception: whatever the command raises.
    """
    host, rest = _global_options(arguments)
    if rest and rest[0] == "playground":
        return _playground(rest[1:], host)
    from orch_cli import verbs

    if not rest or rest[0] in ("help", "-h", "--help"):
        verbs.print_help(rest[1] if len(rest) > 1 and rest[1] in verbs.NOUNS else None)
        return 0 if rest else EXIT_ERROR
    noun = verbs.NOUN_ALIASES.get(rest[0], rest[0])
    shortcut = verbs.SHORTCUTS.get(noun)
    if shortcut is not None:
        command, parsed = verbs.parse(shortcut.noun, shortcut.verb, rest[1:], host)
        return command.run(parsed)
    if noun not in verbs.NOUNS:
        raise _unknown(rest[0], [*verbs.NOUNS, *verbs.SHORTCUTS, "playground"], "orch")
    if len(rest) < 2 or rest[1] in ("-h", "--help", "help"):
        verbs.print_help(noun)
        return 0 if len(rest) > 1 else EXIT_ERROR
    verb = verbs.VERB_ALIASES.get((noun, rest[1])) or verbs.ALIASES.get(rest[1], rest[1])
    if verb not in verbs.NOUNS[noun].verbs:
        raise _unknown(rest[1], list(verbs.NOUNS[noun].verbs), f"orch {noun}")
    command, parsed = verbs.parse(noun, verb, rest[2:], host)
    return command.run(parsed)


def _finish(result: int | Coroutine[Any, Any, int]) -> int:
    if isinstance(result, int):
        return result
    import asyncio

    return asyncio.run(result)


def _unknown(word: str, known: list[str], where: str) -> UsageError:
    from orch_cli.compose.report import nearest

    flag = word.startswith("-")
    prefix = "" if where == "orch" else f"{where}: "  # every error begins with the program's name
    what = f"{prefix}{'flag' if flag else 'command'} {word!r} is unknown"
    hint = nearest(word, known) or f"see `{where} --help`"
    return UsageError(what, "", hint, status=EXIT_UNKNOWN_FLAG if flag else EXIT_ERROR)


def _global_options(arguments: list[str]) -> tuple[str, list[str]]:
    """Takes ``--host``, ``--stale`` and ``--version`` off the front."""
    host = ""
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        flag, equals, value = rest[0].partition("=")
        if flag in ("-H", "--host"):
            if not equals and len(rest) < 2:
                raise UsageError("--host needs an address", "", "write --host unix:///run/orch/manager.sock")
            host = value if equals else rest[1]
            del rest[: 1 if equals else 2]
        elif rest[0] == "--stale":
            os.environ["ORCH_STALE"] = "1"
            del rest[0]
        elif flag in ("-v", "--version"):
            return host, ["version", "--client"]
        else:
            break
    return host, rest


def _playground(arguments: list[str], host: str) -> int:
    """The playground is a package of its own, with its own arguments."""
    if host:
        raise UsageError("--host does not go with playground", "a playground is always on this machine", "leave it out")
    from orch_cli.playground import command

    return int(command.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
