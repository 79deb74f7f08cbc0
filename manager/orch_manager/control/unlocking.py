"""Autolock: the key that people hold, and without which a manager that starts cannot read its state.

The key stands in the Cluster object, which only managers have; each seals its own data keys with it as soon as it sees
it, so that a disk that is stolen tells nothing.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Final

from orch_manager.faults import told_as
from orch_manager.store.store import Store
from orch_manager.store.transaction import Transaction
from orch_proto.control_pb2 import UnlockKeyAction
from orch_proto.objects_pb2 import Cluster, UnlockKey
from orch_rpc import logs
from orch_rpc.errors import FailedPrecondition, InvalidArgument

_log = logs.get("control")
SUBSYSTEM: Final = "manager"
KEY_BYTES: Final = 32
_PREFIX: Final = "ORCHKEY-1-"


def key_text(key: bytes) -> str:
    """A key as people keep it; empty for no key."""
    return _PREFIX + base64.b32encode(key).decode().rstrip("=").lower() if key else ""


def parse_key(text: str) -> bytes:
    """The key that a text stands for.

    Raises:
        InvalidArgument: it is no unlock key.
    """
    body = text.strip().removeprefix(_PREFIX).upper()
    try:
        key = base64.b32decode(body + "=" * (-len(body) % 8))
    except binascii.Error:
        key = b""
    if not text.strip().startswith(_PREFIX) or len(key) != KEY_BYTES:
        raise InvalidArgument(
            "cannot unlock", "this is no unlock key", f"it begins with {_PREFIX}: `orch cluster lock` printed it"
        )
    return key


def present_key(clusters: list[Cluster]) -> bytes:
    """The key in force; empty without autolock."""
    for cluster in clusters[:1]:
        if cluster.spec.autolock:
            return next((each.key for each in cluster.unlock_keys if each.subsystem == SUBSYSTEM), b"")
    return b""


class UnlockKeys:
    """See the module.

    Args:
        store: has the Cluster.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def act(self, action: UnlockKeyAction.ValueType) -> str:
        """Does what is asked; returns the key in force afterwards, as text.

        Raises:
            InvalidArgument: there is no such action.
            FailedPrecondition: it needs autolock to be on.
        """
        what = "cannot answer for the unlock key"
        if action == UnlockKeyAction.UNLOCK_KEY_ACTION_SHOW:
            return key_text(present_key(self._store.all(Cluster)))
        if action not in (
            UnlockKeyAction.UNLOCK_KEY_ACTION_LOCK,
            UnlockKeyAction.UNLOCK_KEY_ACTION_ROTATE,
            UnlockKeyAction.UNLOCK_KEY_ACTION_DISABLE,
        ):
            raise InvalidArgument(what, f"there is no action {action}")
        fresh = secrets.token_bytes(KEY_BYTES)

        def write(transaction: Transaction) -> bytes:
            clusters = transaction.all(Cluster)
            if not clusters:
                raise FailedPrecondition(what, "there is no cluster", "make one: orch cluster init")
            key = present_key(clusters)
            edited = transaction.edit(Cluster, clusters[0].id)
            if action == UnlockKeyAction.UNLOCK_KEY_ACTION_DISABLE:
                key = b""
            elif action == UnlockKeyAction.UNLOCK_KEY_ACTION_ROTATE:
                if not key:
                    raise FailedPrecondition(what, "the cluster is not locked", "lock it first: orch cluster lock")
                key = fresh
            else:
                key = key or fresh
            edited.spec.autolock = bool(key)
            del edited.unlock_keys[:]
            if key:
                edited.unlock_keys.append(UnlockKey(subsystem=SUBSYSTEM, key=key))
            transaction.update(edited)
            return key

        with told_as(what):
            key = await self._store.update(write, reason="unlock key")
        _log.info("unlock key", action=UnlockKeyAction.Name(action).removeprefix("UNLOCK_KEY_ACTION_").lower())
        return key_text(key)
