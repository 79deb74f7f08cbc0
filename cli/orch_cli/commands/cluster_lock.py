"""``orch cluster lock``: managers that start ask for a key, without which their disk tells nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from orch_cli.errors import EXIT_OK
from orch_cli.verbs import Verb

_EXPLAINED: Final = """\
A manager that is started again now asks for this key (orch cluster unlock, on its host):

    {key}

Keep it where you find it when the managers cannot help you: without it what they store cannot be read."""


def _configure_lock(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--rotate", action="store_true", help="make another key: the old one opens nothing any more")
    choice.add_argument("--show", action="store_true", help="print the key that there is")
    choice.add_argument("--off", action="store_true", help="managers start without a key again")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the key alone")


async def _run_lock(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import CALL_TIMEOUT_S
    from orch_cli.connection import calling, control
    from orch_proto.control_pb2 import (
        UNLOCK_KEY_ACTION_DISABLE,
        UNLOCK_KEY_ACTION_LOCK,
        UNLOCK_KEY_ACTION_ROTATE,
        UNLOCK_KEY_ACTION_SHOW,
        UnlockKeyRequest,
    )

    action = UNLOCK_KEY_ACTION_LOCK
    if arguments.rotate:
        action = UNLOCK_KEY_ACTION_ROTATE
    elif arguments.show:
        action = UNLOCK_KEY_ACTION_SHOW
    elif arguments.off:
        action = UNLOCK_KEY_ACTION_DISABLE
    async with control(arguments.host) as stub:
        with calling("lock the cluster"):
            answer = await stub.UnlockKey(UnlockKeyRequest(action=action), timeout=CALL_TIMEOUT_S)
    if not answer.unlock_key:
        if not arguments.quiet:
            print("The cluster is not locked: managers start without a key.")
    elif arguments.quiet or arguments.show:
        print(answer.unlock_key)
    else:
        print(_EXPLAINED.format(key=answer.unlock_key))
    return EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {"lock": Verb(_configure_lock, _run_lock)}
