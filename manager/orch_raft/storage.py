"""A member's state folder: the lock, the data keys, who it belongs to, the snapshots and the log.

lock        held while a process works here
data.key    what decrypts the rest; mode 0600; sealed when the cluster has an unlock key
member      raft id, and how far the folder has come
snapshots/  the newest one counts
log/        segments that go on from it
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from orch_raft.engine import Member, Observer, SnapshotWriter
from orch_raft.errors import AlreadyFounded, DurabilityLost, FolderInUse, NotFounded, SnapshotCorrupt
from orch_raft.limits import EngineOptions
from orch_raft.log.durable import DurableLog, LogContents, RecoveredLog
from orch_raft.log.files import Files, FolderLock, OsFiles
from orch_raft.log.key_file import create_key_file, is_sealed, read_key_file, write_key_file
from orch_raft.log.keys import Keyring
from orch_raft.log.member_file import MemberFile, Stage
from orch_raft.log.records import Entry, HardState, ReceivedMark
from orch_raft.log.snapshots import FOUNDING_INDEX, SnapshotFolder
from orch_raft.membership import Membership, SnapshotMeta

_LOCK = "lock"
_KEY = "data.key"
_MEMBER = "member"
_LOG = "log"
_SNAPSHOTS = "snapshots"
_FOUNDING_TERM = 1


@dataclass(slots=True)
class Storage:
    """An open state folder. Close it to let another process in. To be used by one thread at a time."""

    folder: Path
    files: Files
    lock: FolderLock
    log: DurableLog
    snapshots: SnapshotFolder
    keyring: Keyring = field(repr=False)
    member: MemberFile
    #: What seals the data keys; None keeps them in clear.
    unlock_key: bytes | None = field(default=None, repr=False)

    def close(self) -> None:
        """Release the folder."""
        self.log.close()
        self.lock.release()

    def install_received(self, meta: SnapshotMeta, hard_state: HardState | None, entries: Sequence[Entry] = ()) -> None:
        """Make a snapshot that was received the member's own; the log begins anew after it.

        The mark in the log is the moment at which it counts; a crash after that is completed at the next start.

        Raises:
            DurabilityLost: the disk refused.
        """
        self.log.append(entries, hard_state, ReceivedMark(meta.index, meta.term))
        self.snapshots.install(meta.index, meta.term)
        self._graduate()

    def seal_keys(self, unlock_key: bytes | None) -> None:
        """Seal the data keys with another unlock key, or with none.

        Raises:
            DurabilityLost: the disk refused; the old file or the new one is there.
        """
        self._write_keys(self.keyring, unlock_key)
        self.unlock_key = unlock_key

    def change_data_key(self) -> int:
        """Encrypt with a new data key from now on; return the last index that may stand under an older one.

        Once a snapshot covers that index and the log is released through it, `retire_keys` forgets the older ones.

        Raises:
            DurabilityLost: the disk refused.
        """
        keyring = self.keyring.with_new_key()
        # The key is durable before anything is written under it.
        self._write_keys(keyring, self.unlock_key)
        last_index = self.log.last_index
        self.snapshots.change_key(keyring)
        self.log.change_key(keyring)
        self.keyring = keyring
        return last_index

    @property
    def has_old_keys(self) -> bool:
        """Whether a change of the data key is not finished yet."""
        return len(self.keyring.key_ids) > 1

    def retire_keys(self) -> bool:
        """Forget the data keys that no file needs; True when only the current one is left.

        Raises:
            DurabilityLost: the disk refused.
        """
        try:
            reduced = self.keyring.reduced_to(self.log.key_ids | self.snapshots.key_ids())
        except OSError as error:
            raise DurabilityLost(f"read the snapshots in {self.folder}", error) from error
        if reduced.key_ids != self.keyring.key_ids:
            self._write_keys(reduced, self.unlock_key)
            self.keyring = reduced
        return not self.has_old_keys

    def _write_keys(self, keyring: Keyring, unlock_key: bytes | None) -> None:
        try:
            write_key_file(self.files, self.folder / _KEY, keyring, unlock_key)
        except OSError as error:
            raise DurabilityLost(f"write the key file in {self.folder}", error) from error

    def _graduate(self) -> None:
        if self.member.stage is Stage.MEMBER:
            return
        self.member = MemberFile(self.member.raft_id, Stage.MEMBER)
        try:
            self.member.write(self.files, self.folder / _MEMBER)
        except OSError as error:
            raise DurabilityLost(f"write to {self.folder}", error) from error


@dataclass(frozen=True, slots=True)
class RecoveredState:
    """What a state folder held.

    Attributes:
        snapshot: what the newest snapshot covers; index 0 and no member for a joiner that has none yet.
        state: stream of the state in it; None in the snapshot that founded the cluster, which has none.
        log: what follows, and may begin before it.
    """

    snapshot: SnapshotMeta
    state: BinaryIO | None
    log: RecoveredLog


def _lock(files: Files, folder: Path) -> FolderLock:
    lock = files.lock(folder / _LOCK)
    if lock is None:
        raise FolderInUse(folder)
    return lock


def _has_snapshot(folder: Path, files: Files) -> bool:
    try:
        return any(name.endswith(".snap") for name in files.list(folder / _SNAPSHOTS))
    except FileNotFoundError:
        return False


def is_founded(folder: Path, files: Files | None = None) -> bool:
    """Whether the folder holds a member of a cluster: one that was founded here, or one that joins.

    Raises:
        MemberFileCorrupt: it cannot be told.
    """
    files = files or OsFiles()
    if _has_snapshot(folder, files):
        return True
    member = MemberFile.read(files, folder / _MEMBER)
    return member is not None and member.stage is not Stage.FOUNDING


def is_locked(folder: Path, files: Files | None = None) -> bool:
    """Whether the folder can be opened with the unlock key of its cluster alone."""
    return is_sealed(files or OsFiles(), folder / _KEY)


def check_unlock_key(folder: Path, unlock_key: bytes, files: Files | None = None) -> None:
    """Raise StateLocked when a key does not open the folder, DataKeyError when the key file cannot be read."""
    read_key_file(files or OsFiles(), folder / _KEY, unlock_key)


def found_cluster(
    folder: Path,
    member: Member,
    *,
    files: Files | None = None,
    options: EngineOptions | None = None,
    write_state: SnapshotWriter | None = None,
    index: int = FOUNDING_INDEX,
    term: int = _FOUNDING_TERM,
    unlock_key: bytes | None = None,
) -> None:
    """Make a new cluster of one member in an empty folder.

    The founding configuration is a snapshot at index 1 and not an entry: who joins later must receive it, and
    can never replay the log from its first entry and believe that it is alone.

    Args:
        folder: made if it is missing.
        member: the first one.
        files: the disk, for tests.
        options: sizes.
        write_state: writes the state to begin with, in the form of `StateMachine.snapshot`: a restored backup.
        index: of the state in the backup; counting goes on from there, so that what names an index stays true.
        term: of the leader that wrote the backup; the next one is larger.
        unlock_key: seals the data key from the beginning.

    Raises:
        AlreadyFounded: there is a cluster in the folder.
        FolderInUse: another process works in it.
        DurabilityLost: the disk refused.
    """
    if write_state is not None:
        index = max(index, FOUNDING_INDEX + 1)  # the one at the founding index has no state
    files = files or OsFiles()
    options = options or EngineOptions()
    try:
        lock = _begin_folder(folder, files)
        try:
            MemberFile(member.raft_id, Stage.FOUNDING).write(files, folder / _MEMBER)
            keyring = create_key_file(files, folder / _KEY, unlock_key)
            if index > FOUNDING_INDEX:
                log = DurableLog(files, folder / _LOG, keyring, options)
                log.append((), HardState(term, 0, index))
                log.close()
            snapshots = SnapshotFolder(files, folder / _SNAPSHOTS, keyring, options.snapshot_chunk_bytes)
            meta = SnapshotMeta(index, term, Membership((member,)))
            snapshots.save(meta, write_state or (lambda _stream: None))
            MemberFile(member.raft_id, Stage.MEMBER).write(files, folder / _MEMBER)
        finally:
            lock.release()
    except OSError as error:
        raise DurabilityLost(f"found a cluster in {folder}", error) from error


def prepare_joiner(folder: Path, raft_id: int, *, files: Files | None = None, unlock_key: bytes | None = None) -> None:
    """Make a folder for a member that joins a cluster; it waits for its first snapshot from the leader.

    Args:
        folder: made if it is missing.
        raft_id: random number of 63 bits, chosen once and told to the leader when asking to join.
        files: the disk, for tests.
        unlock_key: seals the data key from the beginning.

    Raises:
        AlreadyFounded: there is a cluster in the folder.
        FolderInUse: another process works in it.
        DurabilityLost: the disk refused.
    """
    files = files or OsFiles()
    try:
        lock = _begin_folder(folder, files)
        try:
            create_key_file(files, folder / _KEY, unlock_key)
            # Last: it is what makes the folder count.
            MemberFile(raft_id, Stage.JOINING).write(files, folder / _MEMBER)
        finally:
            lock.release()
    except OSError as error:
        raise DurabilityLost(f"prepare {folder} for a member", error) from error


def member_id(folder: Path, files: Files | None = None) -> int | None:
    """The raft id of the member in a folder, None when there is none or an older version made it.

    Raises:
        MemberFileCorrupt: it cannot be read.
    """
    member = MemberFile.read(files or OsFiles(), folder / _MEMBER)
    return member.raft_id if member is not None and member.stage is not Stage.FOUNDING else None


def _begin_folder(folder: Path, files: Files) -> FolderLock:
    """Lock a folder that holds no member, and clear away what an attempt that was cut short left."""
    for path in (folder, folder / _LOG, folder / _SNAPSHOTS):
        files.make_folder(path)
    lock = _lock(files, folder)
    try:
        begun = MemberFile.read(files, folder / _MEMBER)
        if is_founded(folder, files) or (begun is None and files.list(folder / _LOG)):
            raise AlreadyFounded(folder)  # noqa: TRY301  # the lock is released in one place
        for path in (folder / _LOG, folder / _SNAPSHOTS):
            for name in files.list(path):
                files.remove(path / name)
        # A key without a snapshot has encrypted nothing that counts.
        if _KEY in files.list(folder):
            files.remove(folder / _KEY)
    except BaseException:
        lock.release()
        raise
    return lock


def open_storage(
    folder: Path,
    *,
    files: Files | None = None,
    options: EngineOptions,
    observer: Observer,
    unlock_key: bytes | None = None,
) -> tuple[Storage, RecoveredState]:
    """Lock a state folder and read what it holds, repairing what a crash left.

    Raises:
        StorageError: it cannot be used; nothing in it was changed.
        DurabilityLost: the disk refused.
    """
    files = files or OsFiles()
    if not is_founded(folder, files):
        _check_never_founded(folder, files)
        raise NotFounded(folder)
    try:
        lock = _lock(files, folder)
        try:
            return _open_locked(folder, files, lock, options=options, observer=observer, unlock_key=unlock_key)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise DurabilityLost(f"read the state in {folder}", error) from error


def _open_locked(
    folder: Path,
    files: Files,
    lock: FolderLock,
    *,
    options: EngineOptions,
    observer: Observer,
    unlock_key: bytes | None,
) -> tuple[Storage, RecoveredState]:
    keyring = read_key_file(files, folder / _KEY, unlock_key)
    if not is_sealed(files, folder / _KEY):
        unlock_key = None
    member = MemberFile.read(files, folder / _MEMBER)
    snapshots = SnapshotFolder(files, folder / _SNAPSHOTS, keyring, options.snapshot_chunk_bytes)
    log = DurableLog(files, folder / _LOG, keyring, options, observer)
    contents = log.read()
    _complete_received(folder, snapshots, contents)
    if not snapshots.is_empty():
        meta, state = snapshots.open_latest()
        recovered = RecoveredState(
            meta, state if snapshots.has_state(meta) else None, log.recover(meta.index, contents)
        )
    elif member is not None and member.stage is Stage.JOINING:
        recovered = RecoveredState(SnapshotMeta(0, 0, Membership(())), None, log.recover(0, contents))
    else:
        raise SnapshotCorrupt(folder / _SNAPSHOTS, 0, "this member had a snapshot, and there is none")
    snapshots.remove_leftovers()
    if member is None:
        member = MemberFile(_only_member(folder, recovered.snapshot.membership), Stage.FOUNDING)
    storage = Storage(folder, files, lock, log, snapshots, keyring, member, unlock_key)
    if recovered.snapshot.index:
        storage._graduate()  # noqa: SLF001  # a crash came before it was noted
    return storage, recovered


def _complete_received(folder: Path, snapshots: SnapshotFolder, contents: LogContents) -> None:
    """Give a received snapshot its name, when a crash came between the mark in the log and that."""
    mark = contents.received
    if mark is None:
        return
    if snapshots.has_received(mark.index, mark.term):
        snapshots.install(mark.index, mark.term)
    elif snapshots.is_empty() or snapshots.open_latest()[0].index < mark.index:
        raise SnapshotCorrupt(
            folder / _SNAPSHOTS, 0, f"the log goes on from a received snapshot at index {mark.index}, which is missing"
        )


def _only_member(folder: Path, membership: Membership) -> int:
    """Whose folder it is, when an older version made it: that one served a single manager."""
    if len(membership.members) != 1:
        raise SnapshotCorrupt(folder / _MEMBER, 0, "the file that says which member this is, is missing")
    return membership.members[0].raft_id


def _check_never_founded(folder: Path, files: Files) -> None:
    try:
        names = files.list(folder / _LOG)
    except FileNotFoundError:
        return
    begun = MemberFile.read(files, folder / _MEMBER)
    if names and begun is None:
        raise SnapshotCorrupt(folder / _SNAPSHOTS, 0, "there is a log, but no snapshot that it goes on from")
