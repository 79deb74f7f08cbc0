"""The file that says which member of the cluster a state folder belongs to.

One line: `<raft id> <stage> <checksum>`, in hex, written aside, synced and renamed. The stage tells a folder that has
nothing yet from one that lost what it had: a member that forgot its vote must not take part.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from zlib import crc32

from orch_raft.errors import MemberFileCorrupt
from orch_raft.log.files import Files


class Stage(Enum):
    """How far a state folder has come."""

    #: A cluster is being founded here; without a snapshot there is nothing in it, and founding can be repeated.
    FOUNDING = "founding"
    #: It waits for its first snapshot from the leader.
    JOINING = "joining"
    #: It has had a snapshot; without one it is damaged.
    MEMBER = "member"


@dataclass(frozen=True, slots=True)
class MemberFile:
    """Who works in the folder."""

    raft_id: int
    stage: Stage

    def write(self, files: Files, path: Path) -> None:
        """Put this in the place of what the file says. Raises OSError."""
        body = f"{self.raft_id:x} {self.stage.value}"
        aside = path.with_suffix(".tmp")
        if aside.name in files.list(path.parent):
            files.remove(aside)
        file = files.create(aside)
        try:
            file.write(0, f"{body} {crc32(body.encode()):08x}\n".encode())
            file.sync_data()
        finally:
            file.close()
        files.rename(aside, path)
        files.sync_folder(path.parent)

    @classmethod
    def read(cls, files: Files, path: Path) -> "MemberFile | None":
        """What the file says; None when there is none.

        Raises:
            MemberFileCorrupt: it does not match its checksum.
            OSError: it cannot be read.
        """
        try:
            raw = files.read(path)
        except FileNotFoundError:
            return None
        try:
            raft_id, stage, checksum = raw.decode().split()
            if int(checksum, 16) != crc32(f"{raft_id} {stage}".encode()):
                raise MemberFileCorrupt(path)
            return cls(int(raft_id, 16), Stage(stage))
        except ValueError:
            raise MemberFileCorrupt(path) from None
