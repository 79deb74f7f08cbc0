"""A world of managers: virtual time, a network that loses, doubles, delays and cuts, and clients."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import replace

from orch_raft.core import election
from orch_raft.core.messages import Message, MessageKind
from orch_raft.core.ready import Proposed
from orch_raft.engine import Member as ClusterMember
from orch_raft.engine import MembershipAction, MembershipChange, Role, Suffrage
from orch_raft.log.records import HardState
from orch_raft.membership import Membership, SnapshotMeta
from simulation.raft.disk import Disk, Image
from simulation.raft.faults import TICK, FaultMix
from simulation.raft.invariants import BrokenPromiseError, History
from simulation.raft.member import CrashError, Member

FOUNDING = 1


class SimulatedManagers:
    """One run. Everything follows from the seed."""

    def __init__(self, seed: int, mix: FaultMix | None = None) -> None:
        self.rng = random.Random(seed)
        self.mix = mix or FaultMix.draw(self.rng)
        self.history = History(FOUNDING)
        self.now = 0
        self.calm = False
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._names = itertools.count(1)
        #: Pairs (from, to) that do not hear each other.
        self._cut: set[tuple[int, int]] = set()
        self.disks: dict[int, Disk] = {}
        self.members: dict[int, Member] = {}
        self.crashes = 0
        self.messages = 0
        self.changes = 0
        membership = Membership(
            tuple(ClusterMember(raft_id, f"node-{raft_id}", "a:1") for raft_id in range(1, self.mix.voters + 1))
        )
        for raft_id in range(1, self.mix.voters + 1):
            image = Image(HardState(1, 0, FOUNDING), SnapshotMeta(FOUNDING, 1, membership))
            self.disks[raft_id] = Disk(self.rng, image)
            self._start(raft_id)

    # ---- time ------------------------------------------------------------------------------------

    def later(self, delay: int, action: Callable[[], None]) -> None:
        """Do something after a while."""
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def run(self, ticks: int) -> None:
        """Let time pass."""
        end = self.now + ticks * TICK
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def _within(self, member: Member, action: Callable[[], None]) -> None:
        """Do something in a member's process, which may end by it."""
        if member.dead:
            return
        try:
            action()
        except CrashError:
            self.crash(member.raft_id)
        else:
            if member.node.removed:
                self._remove(member)

    # ---- processes -------------------------------------------------------------------------------

    def _start(self, raft_id: int) -> None:
        if raft_id in self.members or raft_id not in self.disks:
            return
        member = Member(raft_id, self.disks[raft_id], world=self, history=self.history, mix=self.mix, rng=self.rng)
        self.members[raft_id] = member
        self._tick_later(member)
        self._within(member, member.turn)

    def _tick_later(self, member: Member) -> None:
        jitter = 0.0 if self.calm else self.mix.tick_jitter
        period = max(1, round(TICK * self.rng.uniform(1 - jitter, 1 + jitter)))

        def tick() -> None:
            if not member.dead:
                member.node.tick()
                if self.mix.lazy_commit and self.rng.random() < 0.5:
                    member.node.announce_commit()
                self._within(member, member.turn)
                self._tick_later(member)

        self.later(period, tick)

    def crash(self, raft_id: int) -> None:
        """End a process; what it did not sync may be lost. It comes back after a while."""
        member = self.members.pop(raft_id, None)
        if member is None:
            return
        member.dead = True
        self.crashes += 1
        self.disks[raft_id].lose_power(torn_batches=self.mix.torn_batches)
        self.later(self.rng.randint(1, 20 * TICK), lambda: self._start(raft_id))

    def _remove(self, member: Member) -> None:
        """A removed manager ends itself and never comes back."""
        member.dead = True
        self.members.pop(member.raft_id, None)
        self.disks.pop(member.raft_id, None)

    def leaders(self) -> list[Member]:
        """Those who believe that they lead."""
        return [member for member in self.members.values() if member.node.role is Role.LEADER]

    # ---- what members need -----------------------------------------------------------------------

    def sync_later(self, member: Member) -> None:
        """See `World`."""
        longest = 2 if self.calm else self.mix.longest_sync
        self.later(self.rng.randint(1, longest), lambda: self._within(member, member.sync_done))

    def apply_later(self, member: Member) -> None:
        """See `World`."""

        def apply() -> None:
            member.apply_some()
            member.turn()

        self.later(self.rng.randint(1, 3 * TICK), lambda: self._within(member, apply))

    def send(self, message: Message) -> None:
        """See `World`."""
        self.messages += 1
        lost = (message.sender, message.to) in self._cut
        if not self.calm:
            lost = lost or self.rng.random() < self.mix.drop
            if self.rng.random() < self.mix.duplicate:
                self._deliver_later(message)
        if message.kind is MessageKind.SNAPSHOT:
            self._send_snapshot(message, lost=lost)
        elif not lost:
            self._deliver_later(message)
        elif self.rng.random() < self.mix.told_of_drops:
            self._report_unreachable(message)

    def _report_unreachable(self, message: Message) -> None:
        def report() -> None:
            sender = self.members.get(message.sender)
            if sender is not None:
                sender.node.report_unreachable(message.to)

        self.later(1, report)

    def _send_snapshot(self, message: Message, *, lost: bool) -> None:
        """Send the newest snapshot of the sender, which may be newer than the one the core asked for."""
        sender = self.members.get(message.sender)
        if sender is None:
            return
        if not lost:
            self._deliver_later(replace(message, snapshot=self.disks[message.sender].recover().snapshot))

        def report() -> None:
            if not sender.dead:
                sender.node.report_snapshot(message.to, ok=not lost)
                self._within(sender, sender.turn)

        self.later(self.rng.randint(1, 5 * TICK), report)

    def _deliver_later(self, message: Message) -> None:
        longest = 2 if self.calm else self.mix.longest_delay

        def deliver() -> None:
            member = self.members.get(message.to)
            if member is not None and (message.sender, message.to) not in self._cut:
                member.node.step(message)
                self._within(member, member.turn)

        self.later(self.rng.randint(1, longest), deliver)

    # ---- what goes on ----------------------------------------------------------------------------

    def live(self, ticks: int) -> None:
        """Let clients work and faults happen."""
        for _ in range(ticks):
            self.run(1)
            self._harm()
            self._use()

    def _chance(self, rate: float) -> bool:
        return rate > 0 and self.rng.random() < rate

    def _harm(self) -> None:
        mix, rng = self.mix, self.rng
        if self._chance(mix.leader_crash) and (leaders := self.leaders()):
            self.crash(rng.choice(leaders).raft_id)
        if self._chance(mix.power_loss):
            for raft_id in list(self.members):
                self.crash(raft_id)
        while self._chance(mix.impatience) and self.members:
            self._stand(self.members[rng.choice(sorted(self.members))])
        ids = sorted(self.disks)
        if self._chance(mix.partition):
            side = {raft_id for raft_id in ids if rng.random() < 0.5}
            self._cut = {(a, b) for a in ids for b in ids if (a in side) != (b in side)}
        if self._chance(mix.one_way):
            self._cut.add((rng.choice(ids), rng.choice(ids)))
        if self._cut and rng.random() < 0.05:
            self._cut.clear()

    def _stand(self, member: Member) -> None:
        state = member.node._state
        if election.may_campaign(state):
            election.stand_for_election(state, transferred=True)
            self._within(member, member.turn)

    def _use(self) -> None:
        mix, rng = self.mix, self.rng
        for leader in self.leaders():
            if self._chance(mix.propose):
                self._within(leader, lambda leader=leader: self.propose(leader))  # type: ignore[misc]
            if self._chance(mix.transfer):
                leader.node.transfer(rng.choice(sorted(self.disks)))
            if self._chance(mix.membership):
                self._change_members(leader)
            self._within(leader, leader.turn)
        if self._chance(mix.read) and self.members:
            reader = self.members[rng.choice(sorted(self.members))]
            context = f"{reader.raft_id}.{next(self._names)}".encode()
            reader.read_floors[context] = self.history.floor
            reader.node.read_index(context)
            self._within(reader, reader.turn)

    def propose(self, leader: Member) -> None:
        """Write a few things at once."""
        data = [b"%d" % next(self._names) for _ in range(self.rng.choice((1, 1, 3, 8)))]
        proposed = leader.node.propose(data)
        if isinstance(proposed, Proposed):
            for index, each in enumerate(data, proposed.first_index):
                leader.proposed[index, proposed.term] = each
        leader.turn()

    def _change_members(self, leader: Member) -> None:
        rng = self.rng
        membership = leader.node.membership
        action = rng.choice(tuple(MembershipAction))
        if action is MembershipAction.ADD_LEARNER:
            if len(membership.members) >= 7:
                return
            member = ClusterMember(100 + next(self._names), "node-new", "a:1", Suffrage.LEARNER)
        else:
            member = replace(rng.choice(membership.members), address=f"a:{rng.randint(1, 9)}")
        if isinstance(leader.node.propose_membership(MembershipChange(action, member)), Proposed):
            self.changes += 1
            if action is MembershipAction.ADD_LEARNER:
                self.disks[member.raft_id] = Disk(rng, Image())
                self._start(member.raft_id)

    # ---- the end ---------------------------------------------------------------------------------

    def heal(self) -> None:
        """End all faults, start everyone, and demand progress: a leader, a write, and the same state everywhere."""
        self.calm = True
        self.mix = replace(self.mix, crash_at_send=0, crash_at_sync=0, failed_sync=0, slow_apply=0, drop=0, duplicate=0)
        self._cut.clear()
        for member in self.members.values():
            member._mix = self.mix
        for raft_id in sorted(self.disks):
            self._start(raft_id)
        marker: int | None = None
        for _ in range(60):
            self.run(10)
            leaders = self.leaders()
            if marker is None or marker not in self.history.acknowledged:
                for leader in leaders:
                    proposed = leader.node.propose([b"after the healing"])
                    if isinstance(proposed, Proposed):
                        marker = proposed.first_index
                        leader.proposed[marker, proposed.term] = b"after the healing"
                    self._within(leader, leader.turn)
            elif leaders and self._all_alike(max(leaders, key=lambda leader: leader.node.term)):
                self.history.check_acknowledged_kept()
                return
        raise BrokenPromiseError(f"no progress after the healing: {self.describe()}")

    def _all_alike(self, leader: Member) -> bool:
        members = [self.members.get(member.raft_id) for member in leader.node.membership.members]
        return all(member is not None and member.applied == leader.node.last_index for member in members)

    def describe(self) -> str:
        """Where everyone stands."""
        return "; ".join(
            f"{each.raft_id} {each.node.role.value} term={each.node.term} last={each.node.last_index} "
            f"commit={each.node.commit_index} applied={each.applied}"
            for each in self.members.values()
        )


def run_seed(seed: int, ticks: int = 150) -> SimulatedManagers:
    """One whole run: faults, then healing.

    Raises:
        BrokenPromiseError: an invariant does not hold.
    """
    world = SimulatedManagers(seed)
    world.live(ticks)
    world.heal()
    return world
