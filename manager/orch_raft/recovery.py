"""Going on after the quorum is lost for good: a member's own log makes it the only one.

Everything in its log counts as committed, also what was not: such entries were never acknowledged, and may take effect,
as their writers were told ("outcome unknown"). The others are removed by entries of a new term, so that their ids are
never used again, and what they still send is refused. (SwarmKit: raft.go, ForceNewCluster)
"""

import logging
from pathlib import Path

from orch_raft.engine import Member, MembershipAction, MembershipChange, Observer, Suffrage
from orch_raft.errors import MembershipError
from orch_raft.limits import EngineOptions
from orch_raft.log.files import Files
from orch_raft.log.records import Entry, EntryKind, HardState
from orch_raft.membership import Membership, decode_change, encode_change
from orch_raft.storage import RecoveredState, open_storage

_logger = logging.getLogger(__name__)
#: Agents obey no leader of an older term than one they have obeyed, and the lost managers may have held elections that
#: this one never heard of: what goes on alone leaves all of them behind.
TERMS_AHEAD = 1 << 20


def force_new_cluster(
    folder: Path, *, files: Files | None = None, unlock_key: bytes | None = None, options: EngineOptions | None = None
) -> tuple[Member, ...]:
    """Make the member whose state folder this is the only one. Twice is as once.

    Args:
        folder: of a member that does not run.
        files: the disk, for tests.
        unlock_key: opens a sealed data key.
        options: sizes of segments.

    Returns:
        the members that were removed.

    Raises:
        MembershipError: this member was removed, or has not received the cluster's state yet.
        StorageError: the folder cannot be used; nothing in it was changed.
        DurabilityLost: the disk refused.
    """
    storage, recovered = open_storage(
        folder, files=files, options=options or EngineOptions(), observer=Observer(), unlock_key=unlock_key
    )
    try:
        own_id = storage.member.raft_id
        membership = _membership_at_the_end(recovered)
        own = membership.find(own_id)
        if own is None:
            raise MembershipError(
                f"cannot go on with member {own_id:x} alone: it is no member of the cluster in {folder}; "
                f"recover another manager, or restore a backup"
            )
        others = tuple(member for member in membership.members if member.raft_id != own_id)
        changes = [MembershipChange(MembershipAction.REMOVE, member) for member in others]
        if own.suffrage is Suffrage.LEARNER:
            changes.insert(0, MembershipChange(MembershipAction.PROMOTE, own))
        if changes:
            entries, hard_state = _ending(recovered, own_id, changes)
            storage.log.append(entries, hard_state)
            _logger.warning("goes on alone member=%x removed=%d term=%d", own_id, len(others), hard_state.term)
        return others
    finally:
        storage.close()


def _membership_at_the_end(recovered: RecoveredState) -> Membership:
    membership = recovered.snapshot.membership
    for entry in recovered.log.entries:
        if entry.kind is EntryKind.MEMBERSHIP and entry.index > recovered.snapshot.index:
            membership = membership.after(decode_change(entry.data))
    return membership


def _ending(recovered: RecoveredState, own_id: int, changes: list[MembershipChange]) -> tuple[list[Entry], HardState]:
    last = recovered.log.entries[-1] if recovered.log.entries else None
    last_index = max(recovered.snapshot.index, last.index if last else 0)
    term = TERMS_AHEAD + max(recovered.log.hard_state.term, recovered.snapshot.term, last.term if last else 0)
    entries = [
        Entry(last_index + position, term, EntryKind.MEMBERSHIP, encode_change(change))
        for position, change in enumerate(changes, start=1)
    ]
    return entries, HardState(term, vote=own_id, commit=entries[-1].index)
