"""``orch context``: the clusters that can be used from this machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orch_cli.connection import default_host
from orch_cli.contexts import DEFAULT, Context, ContextStore, check_name, from_json, write_private
from orch_cli.errors import EXIT_ERROR, EXIT_OK, CliError, UsageError, format_error
from orch_cli.output.listing import Listing, add_list_options, natural_key, print_listing
from orch_cli.verbs import Verb

CONTEXTS: Final = Listing(
    columns=(
        ("Name", "NAME"),
        ("Description", "DESCRIPTION"),
        ("Endpoint", "ENDPOINT"),
        ("User", "USER"),
        ("Expires", "EXPIRES"),
        ("Error", "ERROR"),
    ),
    quiet="Id",
    extra=(("Id", "ID"), ("Current", "CURRENT")),
)
_MAX_FILE_BYTES: Final = 256 * 1024


def _row(store: ContextStore, name: str, current: str) -> dict[str, str]:
    """A context in a list; one that cannot be used says why."""
    row = {field: "" for field, _ in (*CONTEXTS.columns, *CONTEXTS.extra)}
    row.update({"Id": name, "Name": f"{name} *" if name == current else name, "Current": str(name == current).lower()})
    if name == DEFAULT:
        return row | {"Description": "the manager on this host", "Endpoint": default_host()}
    from orch_cli.output.units import format_time
    from orch_rpc.errors import OrchError

    try:
        context = store.load(name)
        row |= {"Description": context.description, "Endpoint": ",".join(context.endpoints)}
        identity = _identity(context)
        row |= {
            "User": f"{identity.name} ({identity.role.removeprefix('orch-user-')})",
            "Expires": format_time(identity.facts.not_after_unix_ms),
        }
        identity.check_valid()
    except (CliError, OrchError) as error:
        row["Error"] = error.why or error.what
    return row


def _identity(context: Context):  # type: ignore[no-untyped-def]  # noqa: ANN202 -- importing its type costs what this avoids
    from orch_rpc.identity import Identity

    return Identity(context.certificate.encode(), context.key.encode(), context.roots.encode())


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    add_list_options(parser)


def _run_ls(arguments: argparse.Namespace) -> int:
    store = ContextStore()
    current = store.current()
    names = [DEFAULT, *sorted(store.names(), key=natural_key)]
    print_listing(CONTEXTS, [_row(store, name, current) for name in names], arguments)
    return EXIT_OK


# ---- making --------------------------------------------------------------------------------------


def _configure_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--endpoint",
        action="append",
        default=[],
        required=True,
        metavar="HOST[:PORT]",
        help="a manager; repeat for more",
    )
    parser.add_argument("--cert", required=True, metavar="FILE", help="the user's certificate, PEM")
    parser.add_argument("--key", required=True, metavar="FILE", help="its private key, PEM")
    parser.add_argument("--ca", required=True, metavar="FILE", help="the cluster's root certificate, PEM")
    parser.add_argument("--description", default="", metavar="TEXT")


def _run_create(arguments: argparse.Namespace) -> int:
    from orch_rpc.addresses import parse_address

    context = Context(
        name=check_name(arguments.name),
        endpoints=tuple(str(parse_address(each.removeprefix("tcp://"))) for each in arguments.endpoint),
        certificate=_read(arguments.cert),
        key=_read(arguments.key),
        roots=_read(arguments.ca),
        description=arguments.description,
    )
    return _keep(context, replace=False)


def _keep(context: Context, *, replace: bool) -> int:
    identity = _identity(context)  # refuses what does not belong together
    ContextStore().save(context, replace=replace)
    print(context.name)
    from orch_cli.commands.common import note

    note(f"{identity.name} of cluster {identity.cluster_id}; use it with: orch context use {context.name}")
    return EXIT_OK


def _read(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read(_MAX_FILE_BYTES)
        with open(path, encoding="utf-8") as stream:
            return stream.read(_MAX_FILE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read {path}", str(error), "check the path") from error


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the name that it gets here")
    parser.add_argument("file", metavar="FILE", help="what was exported, or made by orch cluster user add; - is stdin")
    parser.add_argument("--replace", action="store_true", help="in the place of a context of this name")


def _run_import(arguments: argparse.Namespace) -> int:
    return _keep(from_json(_read(arguments.file), arguments.file, arguments.name), replace=arguments.replace)


# ---- using ---------------------------------------------------------------------------------------


def _configure_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")


def _run_use(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import note
    from orch_cli.connection import CONTEXT_VARIABLE, HOST_VARIABLE

    ContextStore().use(arguments.name)
    print(arguments.name)
    for variable in (HOST_VARIABLE, CONTEXT_VARIABLE):
        if os.environ.get(variable):
            note(f"{variable} is set and goes before it: unset {variable}")
    return EXIT_OK


def _configure_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+")


def _run_rm(arguments: argparse.Namespace) -> int:
    store, status = ContextStore(), EXIT_OK
    for name in arguments.names:
        try:
            store.remove(name)
            print(name)
        except CliError as error:
            print(format_error(error.what, error.why, error.todo), file=sys.stderr)
            status = EXIT_ERROR
    return status


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="by default the one in use")


def _run_inspect(arguments: argparse.Namespace) -> int:
    from orch_cli.output.units import format_time

    store = ContextStore()
    shown = []
    for name in arguments.names or [store.current()]:
        if name == DEFAULT:
            shown.append({"Name": DEFAULT, "Endpoints": [default_host()]})
            continue
        context = store.load(name)
        identity = _identity(context)
        shown.append(
            {
                "Name": name,
                "Description": context.description,
                "Endpoints": list(context.endpoints),
                "User": identity.name,
                "Role": identity.role.removeprefix("orch-user-"),
                "StackPrefix": identity.facts.subject.stack_prefix,
                "Cluster": identity.cluster_id,
                "Expires": format_time(identity.facts.not_after_unix_ms),
            }
        )
    print(json.dumps(shown, indent=4, ensure_ascii=False))
    return EXIT_OK


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("file", metavar="FILE", nargs="?", default="", help="by default NAME.orch-context; - is stdout")


def _run_export(arguments: argparse.Namespace) -> int:
    context = ContextStore().load(arguments.name)
    write_context(context, arguments.file or f"{context.name}.orch-context")
    return EXIT_OK


def write_context(context: Context, path: str) -> None:
    """Writes a context to a file of its own, or to standard output for ``-``.

    Raises:
        UsageError: standard output is a terminal, or the file exists.
    """
    from orch_cli.commands.common import note

    if path == "-":
        if sys.stdout.isatty():
            raise UsageError("the context would be shown on the terminal", "a private key is in it", "name a file")
        sys.stdout.write(context.to_json())
        return
    if os.path.exists(path):
        raise UsageError(f"cannot write {path}", "it exists", "remove it, or name another file")
    write_private(Path(path), context.to_json())
    print(path)
    note("whoever has this file is this user: a private key is in it (mode 0600)")


VERBS: Final[Mapping[str, Verb]] = {
    "create": Verb(_configure_create, _run_create),
    "ls": Verb(_configure_ls, _run_ls),
    "use": Verb(_configure_name, _run_use),
    "rm": Verb(_configure_names, _run_rm),
    "inspect": Verb(_configure_inspect, _run_inspect),
    "export": Verb(_configure_export, _run_export),
    "import": Verb(_configure_import, _run_import),
}
