"""What can go wrong in consensus, and who must act on it.

RaftError
├── ProposalError            a write or read was not done, or may not have been done
│   ├── NotLeader            raised before anything was written: ask `leader_id` instead
│   ├── ProposalTooLarge     raised before anything was written: make the proposal smaller
│   ├── ProposalQueueFull    raised before anything was written: slow down, try again
│   ├── OutcomeUnknown       the write may or may not take effect: read before repeating it
│   ├── EngineStopped        raised before anything was written: the engine is stopped or has failed
│   └── ReadUnconfirmed      a read barrier found no leader that would confirm it: try again, or read what may be old
├── MembershipError          a change of members was refused
├── SnapshotRefused          a snapshot that the leader sends cannot be taken now; it sends it again
├── StorageError             the state folder cannot be used as it is; nothing in it was changed
│   ├── NotFounded           there is no cluster in the folder
│   ├── AlreadyFounded       there is one already
│   ├── FolderInUse          another process holds it
│   ├── DataKeyError         the key that decrypts it is missing, unreadable or another one
│   │   └── StateLocked      the data key is sealed: the unlock key is missing or another one
│   ├── LogCorrupt           a record that was acknowledged cannot be read
│   ├── SnapshotCorrupt      a snapshot cannot be read
│   └── MemberFileCorrupt    the file that says which member this is cannot be read
└── FatalError               the process must stop: it can keep no promise any more
    ├── DurabilityLost       a write or sync failed; what the disk holds is unknown
    ├── ApplyFailed          the state machine raised on a committed entry
    ├── Removed              this member was removed from the cluster
    ├── EngineDefect         the engine raised what it should not
    └── SafetyBroken         members disagree about what is committed
"""

from pathlib import Path


class RaftError(Exception):
    """Base of every error of this package."""


class ProposalError(RaftError):
    """A proposal or a read barrier did not succeed."""


class NotLeader(ProposalError):
    """This member does not lead, so it may not write.

    Attributes:
        leader_id: the member that leads, or None when none is known.
    """

    def __init__(self, leader_id: int | None, member_id: int) -> None:
        self.leader_id = leader_id
        where = f"member {leader_id:x} leads" if leader_id is not None else "no leader is known"
        super().__init__(
            f"cannot write through member {member_id:x}: it is not the leader ({where}); "
            f"send the request to the leader, or try again once one is elected"
        )


class ProposalTooLarge(ProposalError):
    """A proposal is over the bound on its size."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"cannot propose {size_bytes} bytes: one proposal holds at most {limit_bytes} bytes; "
            f"split the change into several"
        )


class ProposalQueueFull(ProposalError):
    """Too many proposals wait already."""

    def __init__(self, waiting: int) -> None:
        super().__init__(
            f"cannot take another proposal: {waiting} wait to be written already, "
            f"so the disk is slower than the writers; try again later, and batch changes"
        )


class OutcomeUnknown(ProposalError):
    """A proposal was handed to the log, and its fate was not learnt."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the outcome of the write is unknown: {why}; "
            f"it may still take effect, so read the state before repeating it"
        )


class EngineStopped(ProposalError):
    """The engine was not started, was stopped, or has failed."""

    def __init__(self, why: str) -> None:
        super().__init__(f"consensus is not running: {why}; start the manager again")


class ReadUnconfirmed(ProposalError):
    """No leader confirmed in time that this member's state is not old."""

    def __init__(self, leader_id: int | None) -> None:
        self.leader_id = leader_id
        who = "no leader is known" if leader_id is None else f"the leader, member {leader_id:x}, did not confirm it"
        super().__init__(
            f"cannot vouch that a read would be current: {who}; try again, or ask for what may be old (--stale)"
        )


class MembershipError(RaftError):
    """A change of the members was refused; nothing was changed."""


class SnapshotRefused(RaftError):
    """A snapshot that the leader sends cannot be taken now."""


class StorageError(RaftError):
    """The state folder cannot be used as it stands."""


class NotFounded(StorageError):
    """The state folder holds no cluster."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"no cluster in {folder}: it holds no snapshot and no log; found a cluster there, or join one, first"
        )


class AlreadyFounded(StorageError):
    """The state folder holds a cluster already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"cannot found a cluster in {folder}: it holds one already; "
            f"leave that cluster first, or name another folder"
        )


class FolderInUse(StorageError):
    """Another process works in the state folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"cannot open {folder}: another process has it locked; stop the other manager, or name another folder"
        )


class DataKeyError(StorageError):
    """The key that decrypts the state folder cannot be had."""


class StateLocked(DataKeyError):
    """The data key is sealed with the cluster's unlock key (autolock)."""

    def __init__(self, file: Path, why: str) -> None:
        super().__init__(
            f"cannot decrypt the state folder: {file} is sealed, and {why}; "
            f"give this manager the unlock key of its cluster (`orch cluster unlock`)"
        )


class LogCorrupt(StorageError):
    """A record of the log that had been acknowledged cannot be read back.

    Attributes:
        file: the segment.
        offset_bytes: where in it.
    """

    def __init__(self, file: Path, offset_bytes: int, why: str) -> None:
        self.file = file
        self.offset_bytes = offset_bytes
        super().__init__(
            f"the log is damaged: {file} at byte {offset_bytes}: {why}; nothing was changed. "
            f"Check the disk; then restore this manager from a backup, or remove it and let it join again"
        )


class SnapshotCorrupt(StorageError):
    """A snapshot cannot be read back.

    Attributes:
        file: the snapshot.
        offset_bytes: where in it.
    """

    def __init__(self, file: Path, offset_bytes: int, why: str) -> None:
        self.file = file
        self.offset_bytes = offset_bytes
        super().__init__(
            f"the snapshot is damaged: {file} at byte {offset_bytes}: {why}; nothing was changed. "
            f"Check the disk; then restore this manager from a backup, or remove it and let it join again"
        )


class MemberFileCorrupt(StorageError):
    """The file that says which member a state folder belongs to cannot be read."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"cannot tell which member this is: {file} does not match its checksum; nothing was changed. "
            f"Check the disk; then restore this manager from a backup, or remove it and let it join again"
        )


class FatalError(RaftError):
    """The engine has stopped for good and the process must end."""


class DurabilityLost(FatalError):
    """A write, sync or rename in the state folder failed.

    After a failed sync the kernel may have dropped the pages it could not write, so a second sync that
    succeeds proves nothing. Only reading the file again, in a new process, tells what is there.
    """

    def __init__(self, action: str, cause: OSError) -> None:
        self.action = action
        super().__init__(
            f"cannot {action}: {cause.strerror or cause}; what the disk holds is no longer known, "
            f"so this process must stop. Make room or repair the disk, then start the manager again"
        )


class ApplyFailed(FatalError):
    """The state machine raised on a committed entry, as it will on every member."""

    def __init__(self, index: int, cause: BaseException) -> None:
        self.index = index
        super().__init__(
            f"cannot apply log entry {index}: {type(cause).__name__}: {cause}; going on would make members differ, "
            f"so this process must stop. This is a defect of orch, or an entry of a newer version: "
            f"install that version, or report it"
        )


class Removed(FatalError):
    """This member was removed from the cluster, for good."""

    def __init__(self, member_id: int) -> None:
        super().__init__(
            f"member {member_id:x} was removed from the cluster; this manager must stop. "
            f"To be a manager again the node joins anew, with another id"
        )


class EngineDefect(FatalError):
    """The engine raised what it should not, and cannot vouch for what it holds in memory any more."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(
            f"consensus met a defect of its own: {type(cause).__name__}: {cause}; this process must stop. "
            f"What is on disk is whole: start the manager again, and report this"
        )


class SafetyBroken(FatalError):
    """Members disagree about what is committed, which consensus excludes. Raised before anything is overwritten."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the managers disagree about committed state: {what}; this process must stop. "
            f"A disk has lost acknowledged data, two managers run on copies of one state folder, or this is a defect "
            f"of orch: remove this manager and let it join again with an empty folder"
        )
