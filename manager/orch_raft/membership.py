"""The members of the cluster, as snapshots and membership entries hold them."""

from dataclasses import dataclass

from orch_proto import raft_pb2
from orch_raft.engine import Member, Suffrage


@dataclass(frozen=True, slots=True)
class Membership:
    """Who belongs to the cluster, and who ever did.

    Attributes:
        members: voters and learners.
        removed_ids: raft ids that were removed; never used again, or an old message could count as a new member's.
    """

    members: tuple[Member, ...]
    removed_ids: frozenset[int] = frozenset()

    def find(self, raft_id: int) -> Member | None:
        """The member with an id."""
        return next((member for member in self.members if member.raft_id == raft_id), None)

    @property
    def voters(self) -> tuple[Member, ...]:
        """The members whose votes count."""
        return tuple(member for member in self.members if member.suffrage is Suffrage.VOTER)

    def to_bytes(self) -> bytes:
        """Its form on disk, the same for equal values."""
        message = raft_pb2.RaftMembership(removed=sorted(self.removed_ids))
        for member in sorted(self.members, key=lambda each: each.raft_id):
            message.members.add(
                raft_id=member.raft_id,
                node_id=member.node_id,
                address=member.address,
                learner=member.suffrage is Suffrage.LEARNER,
            )
        return message.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Membership":
        """Read its form on disk.

        Raises:
            ValueError: it is not one.
        """
        try:
            message = raft_pb2.RaftMembership.FromString(data)
        except Exception as error:  # protobuf's DecodeError derives from Exception alone
            raise ValueError(f"not a membership: {error}") from error
        members = tuple(
            Member(
                raft_id=member.raft_id,
                node_id=member.node_id,
                address=member.address,
                suffrage=Suffrage.LEARNER if member.learner else Suffrage.VOTER,
            )
            for member in message.members
        )
        return cls(members, frozenset(message.removed))
