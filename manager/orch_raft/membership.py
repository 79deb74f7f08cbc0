"""The members of the cluster, as snapshots and membership entries hold them."""

from dataclasses import dataclass, replace

from orch_proto import raft_pb2
from orch_raft.engine import Member, MembershipAction, MembershipChange, Suffrage


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

    def refusal(self, change: MembershipChange) -> str | None:
        """Why a change cannot be made to these members, None when it can."""
        present = self.find(change.member.raft_id)
        if change.action is MembershipAction.ADD_LEARNER:
            return self._addition_refusal(change.member.raft_id, present)
        if present is None:
            return "it is no member"
        votes = present.suffrage is Suffrage.VOTER
        if change.action is MembershipAction.PROMOTE and votes:
            return "it votes already"
        if change.action is MembershipAction.DEMOTE and not votes:
            return "it does not vote"
        loses_vote = change.action in {MembershipAction.DEMOTE, MembershipAction.REMOVE}
        return "it is the only one that votes" if loses_vote and self.voters == (present,) else None

    def _addition_refusal(self, raft_id: int, present: Member | None) -> str | None:
        if raft_id in self.removed_ids:
            return "its id was removed before, and ids are never used again"
        if raft_id <= 0:
            return "ids are positive numbers"
        return "it is a member already" if present else None

    def after(self, change: MembershipChange) -> "Membership":
        """The members after a change; the same ones when it cannot be made (`refusal` says why).

        An entry that cannot be applied must change nothing on every member, rather than stop them all.
        """
        if self.refusal(change) is not None:
            return self
        raft_id = change.member.raft_id
        others = tuple(member for member in self.members if member.raft_id != raft_id)
        present = self.find(raft_id)
        if present is None:
            return replace(self, members=(*others, replace(change.member, suffrage=Suffrage.LEARNER)))
        match change.action:
            case MembershipAction.PROMOTE:
                changed = replace(present, suffrage=Suffrage.VOTER)
            case MembershipAction.DEMOTE:
                changed = replace(present, suffrage=Suffrage.LEARNER)
            case MembershipAction.UPDATE_ADDRESS:
                changed = replace(present, address=change.member.address)
            case _:
                return Membership(others, self.removed_ids | {raft_id})
        return replace(self, members=(*others, changed))

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


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot covers: every entry up to `index`, which is of `term`."""

    index: int
    term: int
    membership: Membership


_ACTION_NUMBERS = {
    MembershipAction.ADD_LEARNER: raft_pb2.RaftMembershipChange.ACTION_ADD_LEARNER,
    MembershipAction.PROMOTE: raft_pb2.RaftMembershipChange.ACTION_PROMOTE,
    MembershipAction.DEMOTE: raft_pb2.RaftMembershipChange.ACTION_DEMOTE,
    MembershipAction.REMOVE: raft_pb2.RaftMembershipChange.ACTION_REMOVE,
    MembershipAction.UPDATE_ADDRESS: raft_pb2.RaftMembershipChange.ACTION_UPDATE_ADDRESS,
}
_ACTIONS = {number: action for action, number in _ACTION_NUMBERS.items()}


def encode_change(change: MembershipChange) -> bytes:
    """A change as the data of an entry of kind MEMBERSHIP."""
    member = change.member
    return raft_pb2.RaftMembershipChange(
        action=_ACTION_NUMBERS[change.action],
        member=raft_pb2.RaftMember(
            raft_id=member.raft_id,
            node_id=member.node_id,
            address=member.address,
            learner=member.suffrage is Suffrage.LEARNER,
        ),
    ).SerializeToString(deterministic=True)


def decode_change(data: bytes) -> MembershipChange:
    """The change in an entry's data.

    Raises:
        ValueError: it is none, or one of a newer version.
    """
    try:
        message = raft_pb2.RaftMembershipChange.FromString(data)
    except Exception as error:  # protobuf's DecodeError derives from Exception alone
        raise ValueError(f"not a change of membership: {error}") from error
    action = _ACTIONS.get(message.action)
    if action is None:
        raise ValueError(f"unknown change of membership {message.action}; a newer version wrote it")
    member = message.member
    suffrage = Suffrage.LEARNER if member.learner else Suffrage.VOTER
    return MembershipChange(action, Member(member.raft_id, member.node_id, member.address, suffrage))
