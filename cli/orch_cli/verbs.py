"""How commands are declared and found. Only the module of the command that runs is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from orch_cli.errors import EXIT_ERROR, EXIT_UNKNOWN_FLAG, UsageError

#: A command's work: an exit status, now or from a coroutine.
Run = Callable[[argparse.Namespace], "int | Coroutine[Any, Any, int]"]


@dataclass(frozen=True, slots=True)
class Verb:
    """A command: its arguments and its work.

    Attributes:
        ordered: options come first; what stands after the first name is another program's, options too.
    """

    configure: Callable[[argparse.ArgumentParser], None]
    run: Run
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class Noun:
    """A group of commands: the module whose ``VERBS`` has them, and a line of help for each."""

    help: str
    module: str
    verbs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A command at the top level: the noun and verb that it stands for."""

    noun: str
    verb: str
    help: str = field(default="")


ALIASES: Final[Mapping[str, str]] = {"list": "ls", "remove": "rm"}

NOUNS: Final[Mapping[str, Noun]] = {
    "stack": Noun(
        "Stacks: what is deployed together",
        "orch_cli.commands.stack",
        {
            "deploy": "Deploy a stack, and wait until it runs (alias: up)",
            "plan": "Show what a deploy would change, and where it would run",
            "ls": "List stacks",
            "ps": "List the tasks of a stack",
            "services": "List the services of a stack",
            "rm": "Remove stacks (alias: down)",
            "config": "Show the stack file as orch reads it",
            "inspect": "Show everything about stacks",
            "history": "List the kept versions of a stack",
        },
    ),
    "service": Noun(
        "Services: programs that run as tasks",
        "orch_cli.commands.service",
        {
            "ls": "List services",
            "ps": "List the tasks of services",
            "inspect": "Show everything about services",
            "logs": "Show the output of a service or task",
            "scale": "Change how many tasks services have",
            "rm": "Remove services",
        },
    ),
    "task": Noun(
        "Tasks: single runs of a service",
        "orch_cli.commands.tasks",
        {
            "ls": "List tasks",
            "inspect": "Show everything about tasks",
            "exec": "Run a command in a running task",
            "attach": "Show a task's output as it comes, and send it signals",
            "cp": "Copy files out of a running task, or into it",
            "top": "List the processes of a task",
            "stats": "Show what tasks use",
            "pause": "Freeze tasks",
            "unpause": "Let frozen tasks go on",
        },
    ),
    "node": Noun(
        "Nodes: the machines of the cluster",
        "orch_cli.commands.node",
        {
            "ls": "List nodes",
            "ps": "List the tasks of nodes",
            "inspect": "Show everything about nodes",
            "update": "Change labels and availability of a node",
            "drain": "Move all tasks away from nodes",
            "activate": "Let nodes take tasks again",
            "promote": "Make nodes managers",
            "demote": "Make managers workers",
            "rm": "Remove nodes from the cluster",
            "info": "Show the state of this node",
        },
    ),
    "image": Noun(
        "Images: what tasks run",
        "orch_cli.commands.image",
        {
            "ls": "List images",
            "pull": "Fetch an image from its registry",
            "push": "Send an image to its registry",
            "load": "Load images from an archive",
            "save": "Write images to an archive, as docker save does",
            "import": "Make an image from the tar of a root file system",
            "build": "Build an image from a Dockerfile",
            "inspect": "Show everything about images",
            "tag": "Give an image another name",
            "rm": "Remove images",
            "prune": "Remove images that nothing wants",
        },
    ),
    "network": Noun(
        "Networks of services",
        "orch_cli.commands.network",
        {
            "ls": "List networks",
            "create": "Make a network",
            "inspect": "Show everything about networks",
            "rm": "Remove networks",
        },
    ),
    "secret": Noun(
        "Secrets: files that only tasks see",
        "orch_cli.commands.secret",
        {
            "ls": "List secrets",
            "inspect": "Show secrets without their data",
            "create": "Make a secret",
            "rm": "Remove secrets",
        },
    ),
    "config": Noun(
        "Configs: files for tasks",
        "orch_cli.commands.config",
        {
            "ls": "List configs",
            "inspect": "Show configs with their data",
            "create": "Make a config",
            "rm": "Remove configs",
        },
    ),
    "volume": Noun("Volumes: data that outlives tasks", "orch_cli.commands.volume", {"ls": "List volumes"}),
    "cluster": Noun(
        "The cluster itself (alias: swarm)",
        "orch_cli.commands.cluster",
        {
            "init": "Make a cluster of this node",
            "join": "Have this node join a cluster",
            "info": "Show the state of the cluster",
            "update": "Change what holds for the whole cluster",
            "leave": "Leave the cluster",
            "token": "Show or rotate the token that lets nodes join",
            "ca": "Show or rotate the root certificate",
            "user": "Make certificates for people",
            "backup": "Write the state of the cluster to a file",
            "restore": "Make a cluster of this node from a backup",
            "recover": "Go on with this manager alone, when most are lost",
            "lock": "Have managers ask for a key when they start, show the key, or change it",
            "unlock": "Give this node's manager the key of a locked cluster",
        },
    ),
    "context": Noun(
        "Contexts: clusters that can be used from here",
        "orch_cli.commands.context",
        {
            "ls": "List contexts",
            "use": "Choose the context that commands go to",
            "import": "Take in a context that was exported, or made by an admin",
            "export": "Write a context to a file",
            "create": "Make a context of certificate files",
            "inspect": "Show contexts",
            "rm": "Forget contexts",
        },
    ),
    "system": Noun(
        "The system as a whole",
        "orch_cli.commands.system",
        {
            "df": "Show what takes up the nodes' disks",
            "events": "Show what happens in the cluster",
            "version": "Show versions",
        },
    ),
}

#: Verbs whose work is not in their noun's module.
ELSEWHERE: Final[Mapping[tuple[str, str], str]] = {
    **{("cluster", verb): "orch_cli.commands.cluster_trust" for verb in ("token", "ca", "user")},
    **{
        ("cluster", verb): "orch_cli.commands.cluster_node"
        for verb in ("join", "backup", "restore", "recover", "unlock")
    },
    ("cluster", "lock"): "orch_cli.commands.cluster_lock",
    ("cluster", "update"): "orch_cli.commands.cluster_update",
    **{("task", verb): "orch_cli.commands.exec" for verb in ("exec", "attach")},
    **{("task", verb): "orch_cli.commands.pause" for verb in ("pause", "unpause", "top")},
    ("task", "cp"): "orch_cli.commands.copy",
    ("task", "stats"): "orch_cli.commands.stats",
    **{("node", verb): "orch_cli.commands.node_roles" for verb in ("promote", "demote", "rm")},
}

NOUN_ALIASES: Final[Mapping[str, str]] = {"swarm": "cluster", "container": "task"}
VERB_ALIASES: Final[Mapping[tuple[str, str], str]] = {("stack", "up"): "deploy", ("stack", "down"): "rm"}

SHORTCUTS: Final[Mapping[str, Shortcut]] = {
    "deploy": Shortcut("stack", "deploy", "Deploy a stack, and wait until it runs"),
    "up": Shortcut("stack", "deploy"),
    "down": Shortcut("stack", "rm"),
    "plan": Shortcut("stack", "plan", "Show what a deploy would change"),
    "ps": Shortcut("task", "ls", "List tasks"),
    "logs": Shortcut("service", "logs", "Show the output of a service or task"),
    "exec": Shortcut("task", "exec", "Run a command in a running task"),
    "attach": Shortcut("task", "attach"),
    "cp": Shortcut("task", "cp", "Copy files out of a running task, or into it"),
    "top": Shortcut("task", "top"),
    "stats": Shortcut("task", "stats", "Show what tasks use"),
    "pause": Shortcut("task", "pause"),
    "unpause": Shortcut("task", "unpause"),
    "images": Shortcut("image", "ls"),
    "build": Shortcut("image", "build"),
    "pull": Shortcut("image", "pull"),
    "push": Shortcut("image", "push"),
    "load": Shortcut("image", "load"),
    "info": Shortcut("cluster", "info"),
    "events": Shortcut("system", "events", "Show what happens in the cluster"),
    "version": Shortcut("system", "version", "Show versions"),
}


class Parser(argparse.ArgumentParser):
    """argparse, with errors in three parts and docker's exit statuses."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse.

        Raises:
            UsageError: always.
        """
        unknown_flag = message.startswith("unrecognized arguments: -") or "expected one argument" in message
        raise UsageError(
            f"cannot understand `{self.prog}`",
            message,
            f"see `{self.prog} --help`",
            status=EXIT_UNKNOWN_FLAG if unknown_flag else EXIT_ERROR,
        )


def find_verb(noun: str, verb: str) -> Verb:
    """Imports the module of a command."""
    from importlib import import_module

    module = ELSEWHERE.get((noun, verb), NOUNS[noun].module)
    verbs: Mapping[str, Verb] = import_module(module).VERBS
    return verbs[verb]


def parse(noun: str, verb: str, arguments: Sequence[str], host: str) -> tuple[Verb, argparse.Namespace]:
    """Parses a command's own arguments.

    Raises:
        UsageError: when they make no sense.
    """
    command = find_verb(noun, verb)
    parser = Parser(prog=f"orch {noun} {verb}", description=NOUNS[noun].verbs[verb], allow_abbrev=False)
    command.configure(parser)
    parse_words = parser.parse_args if command.ordered else parser.parse_intermixed_args
    namespace = parse_words(list(arguments))
    namespace.host = host
    return command, namespace


def print_help(noun: str | None = None) -> None:
    """Prints the commands, of one noun or all."""
    stream = sys.stdout
    if noun is not None:
        group = NOUNS[noun]
        lines = [f"Usage: orch {noun} COMMAND", "", group.help, "", "Commands:", *_entries(group.verbs)]
        lines += ["", f"Run `orch {noun} COMMAND --help` for more."]
    else:
        common = {name: shortcut.help for name, shortcut in SHORTCUTS.items() if shortcut.help}
        nouns = {
            **{name: group.help for name, group in NOUNS.items()},
            "playground": "A cluster on this machine, to try things",
        }
        lines = ["Usage: orch [--host HOST|CONTEXT] [--stale] COMMAND", "", "A small cluster orchestrator.", ""]
        lines += ["Common commands:", *_entries(common), "", "Commands by subject:", *_entries(nouns)]
        lines += ["", "Run `orch COMMAND --help` for more. ORCH_HOST names a manager, ORCH_DEBUG=1 shows tracebacks."]
    print("\n".join(lines), file=stream)


def _entries(table: Mapping[str, str]) -> list[str]:
    width = max(map(len, table))
    return [f"  {name:<{width}}  {text}" for name, text in table.items()]
