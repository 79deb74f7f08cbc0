"""What one replicated service needs done: pure, from any soup of tasks.

Rules (SwarmKit: manager/orchestrator/replicated, /restart, /update):
- a slot holds one live task, but for a start-first update, where old and new run together until the new one runs;
- a task that ended, or whose node is gone, drained, or down for longer than the service's grace, is set to SHUTDOWN and
  replaced in one write;
- a replacement waits in READY until its delay has passed and the old task has stopped, a minute at most;
- scaling down removes what does not run first, then what crowds a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orch_manager import tasks as states
from orch_manager.scheduler.constraints import first_broken
from orch_proto import defaults, restart
from orch_proto.objects_pb2 import Node, NodeState, Service, Task
from orch_proto.specs_pb2 import NodeAvailability
from orch_proto.types_pb2 import TaskState


@dataclass(frozen=True, slots=True)
class Create:
    """Make a task of the service as it is now."""

    slot: int
    reason: str
    desired_state: TaskState.ValueType = states.RUNNING
    not_before_ms: int = 0
    restart_count: int = 0


@dataclass(frozen=True, slots=True)
class SetDesired:
    """Change what is wanted of a task."""

    task: Task
    desired_state: TaskState.ValueType
    reason: str


Action = Create | SetDesired


@dataclass(slots=True)
class Decisions:
    """What is to be done now, and when to look again without any change."""

    actions: list[Action] = field(default_factory=list)
    wake_ms: int | None = None

    def wake_at(self, at_ms: int) -> None:
        """Look again at this time, or earlier."""
        self.wake_ms = at_ms if self.wake_ms is None else min(self.wake_ms, at_ms)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a decision on one service looks at."""

    service: Service
    tasks: Sequence[Task]
    nodes: Mapping[str, Node]
    now_ms: int


class Slots:
    """The tasks of a service by slot, sorted into what is live, ended and outdated."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.all: dict[int, list[Task]] = {}
        self.live: dict[int, list[Task]] = {}
        for task in situation.tasks:
            self.all.setdefault(task.slot, []).append(task)
            if states.is_wanted(task):
                self.live.setdefault(task.slot, []).append(task)

    def is_outdated(self, task: Task) -> bool:
        """True when a task does not stand for the service's newest version."""
        service = self.situation.service
        if task.spec_version != service.spec_version:
            return True
        if task.spec.placement == service.spec.task.placement:
            return False
        node = self.situation.nodes.get(task.node_id)
        return node is None or bool(first_broken(tuple(service.spec.task.placement.constraints), node))

    def is_exhausted(self, slot: int) -> bool:
        """True when the slot's last task ended by itself and its policy wants no other."""
        last = states.newest(self.all.get(slot, ()))
        return (
            last is not None
            and slot not in self.live
            and last.desired_state == states.SHUTDOWN
            and last.spec_version == self.situation.service.spec_version
            and last.status.state in (states.COMPLETE, states.FAILED, states.REJECTED)
        )


def wanted_replicas(service: Service) -> int:
    """How many tasks a replicated service is to have."""
    if service.pending_delete:
        return 0
    return int(service.spec.mode.replicated.replicas)


def node_trouble(task: Task, situation: Situation) -> tuple[str, int]:
    """Why a task must leave its node (empty: it may stay), and when to ask again while a grace runs (0: no need)."""
    if not task.node_id:
        return "", 0
    node = situation.nodes.get(task.node_id)
    if node is None:
        return "its node was removed", 0
    name = node.description.hostname or node.id
    if node.spec.availability == NodeAvailability.NODE_AVAILABILITY_DRAIN:
        return f"node {name} is drained", 0
    broken = first_broken(tuple(task.spec.placement.constraints), node)
    if broken:
        return f"node {name} no longer meets {broken}", 0
    if node.status.state == NodeState.NODE_STATE_DOWN:
        # The service's grace as it is now: people change it while a node is away.
        until = node.status.since_unix_ms + situation.service.spec.task.disconnect_grace_ms
        return (f"node {name} is down", 0) if situation.now_ms >= until else ("", until)
    return "", 0


def decide(situation: Situation) -> Decisions:
    """Everything but the choice of slots to update, which is `updating.decide`'s."""
    slots = Slots(situation)
    decisions = Decisions()
    replaced = _replace_ended(slots, decisions)
    _settle_doubles(slots, decisions, replaced)
    _raise_ready(slots, decisions, replaced)
    _match_count(slots, decisions)
    return decisions


# ---- tasks that ended or lost their node -----------------------------------------------------------


def _replace_ended(slots: Slots, decisions: Decisions) -> set[str]:
    """Sets ended tasks to SHUTDOWN, with a replacement where the policy wants one. Ids of the tasks given up."""
    situation, given_up = slots.situation, set()
    wanted = wanted_replicas(situation.service)
    for slot, live in sorted(slots.live.items()):
        leaving: list[tuple[Task, str]] = []
        for task in live:
            if states.has_ended(task):
                leaving.append((task, ""))
                continue
            why, ask_again_ms = node_trouble(task, situation)
            if why:
                leaving.append((task, why))
            elif ask_again_ms:
                decisions.wake_at(ask_again_ms)
        if not leaving:
            continue
        given_up |= {task.id for task, _ in leaving}
        staying = [task for task in live if task.id not in given_up and not slots.is_outdated(task)]
        last = max(leaving, key=lambda pair: (not slots.is_outdated(pair[0]), pair[0].meta.created_at_unix_ms))
        create, reason = (None, "") if staying or len(slots.live) > wanted else _replacement(slots, slot, *last)
        for task, why in leaving:
            decisions.actions.append(SetDesired(task, states.SHUTDOWN, why or reason or "ended"))
        if create is not None:
            decisions.actions.append(create)
    return given_up


def _replacement(slots: Slots, slot: int, task: Task, why: str) -> tuple[Create | None, str]:
    situation = slots.situation
    policy = situation.service.spec.task.restart
    verdict = restart.judge(task, slots.all[slot], policy, situation.now_ms)
    if not verdict.restart:
        return None, f"not restarted: {verdict.reason}"
    if why:
        # Moved, not failed: neither the delay nor the back-off applies. It waits for the old one unless that one's
        # node is down.
        stopped = states.is_stopped(task) or not states.node_is_up(situation.nodes.get(task.node_id))
        desired = states.RUNNING if stopped else states.READY
        return Create(slot, f"replaces a task: {why}", desired), why
    if slots.is_outdated(task) and task.spec_version != situation.service.spec_version:
        return Create(slot, "replaces an ended task of an older version"), verdict.reason
    if not verdict.delay_ms:
        return Create(slot, f"replaces: {verdict.reason}", restart_count=verdict.count), verdict.reason
    until = situation.now_ms + verdict.delay_ms
    message = f"starts in {verdict.delay_ms / 1000:g} s: {verdict.reason}"
    return Create(slot, message, states.READY, until, verdict.count), verdict.reason


# ---- two live tasks in one slot ---------------------------------------------------------------------


def _settle_doubles(slots: Slots, decisions: Decisions, given_up: set[str]) -> None:
    """Of several live tasks in a slot keeps one; an old version stays until the new one runs (start-first)."""
    for live in slots.live.values():
        left = [task for task in live if task.id not in given_up]
        if len(left) < 2:
            continue
        left.sort(
            key=lambda task: (not slots.is_outdated(task), task.status.state, -task.meta.created_at_unix_ms, task.id),
            reverse=True,
        )
        best = left[0]
        for other in left[1:]:
            if slots.is_outdated(other) and not slots.is_outdated(best) and best.status.state != states.RUNNING:
                continue
            decisions.actions.append(SetDesired(other, states.SHUTDOWN, "another task has taken its slot"))
            given_up.add(other.id)


# ---- tasks that wait in READY ------------------------------------------------------------------------


def _raise_ready(slots: Slots, decisions: Decisions, given_up: set[str]) -> None:
    """Lets waiting tasks run once their delay has passed and the slot's old task has stopped."""
    situation = slots.situation
    for slot, live in slots.live.items():
        for task in live:
            if task.desired_state >= states.RUNNING or task.id in given_up:
                continue
            if task.not_before_unix_ms > situation.now_ms:
                decisions.wake_at(task.not_before_unix_ms)
                continue
            give_up_waiting_ms = max(task.meta.created_at_unix_ms, task.not_before_unix_ms) + defaults.OLD_TASK_WAIT_MS
            still_there = [
                other
                for other in slots.all[slot]
                if other.id != task.id
                and other.desired_state > states.RUNNING
                and not states.is_stopped(other)
                and states.node_is_up(situation.nodes.get(other.node_id))
            ]
            if still_there and situation.now_ms < give_up_waiting_ms:
                decisions.wake_at(give_up_waiting_ms)
                continue
            decisions.actions.append(SetDesired(task, states.RUNNING, "its turn has come"))


# ---- the number of slots -----------------------------------------------------------------------------


def _match_count(slots: Slots, decisions: Decisions) -> None:
    wanted = wanted_replicas(slots.situation.service)
    replaced = {action.slot for action in decisions.actions if isinstance(action, Create)}
    # A slot whose task has just been found ended, and is not restarted, keeps its place: it is done.
    occupied = set(slots.live) | replaced | {slot for slot in slots.all if slots.is_exhausted(slot)}
    if len(occupied) > wanted:
        _remove_slots(slots, decisions, occupied, len(occupied) - wanted)
        return
    slot = 1
    for _ in range(wanted - len(occupied)):
        while slot in occupied:
            slot += 1
        occupied.add(slot)
        decisions.actions.append(Create(slot, "created"))


def _remove_slots(slots: Slots, decisions: Decisions, occupied: set[int], surplus: int) -> None:
    """Gives up whole slots: what does not run, then from the nodes with most of its tasks, then the highest."""
    per_node: Counter[str] = Counter()
    best: dict[int, Task] = {}
    for slot in occupied:
        live = slots.live.get(slot, ())
        if live:
            best[slot] = max(live, key=lambda task: (task.status.state == states.RUNNING, task.status.state))
            if best[slot].status.state == states.RUNNING:
                per_node[best[slot].node_id] += 1
    removed: set[int] = set()
    idle = sorted(
        (slot for slot in occupied if slot not in best or best[slot].status.state != states.RUNNING), reverse=True
    )
    removed.update(idle[:surplus])
    while len(removed) < surplus:
        crowded = max(
            (slot for slot in occupied if slot not in removed), key=lambda slot: (per_node[best[slot].node_id], slot)
        )
        per_node[best[crowded].node_id] -= 1
        removed.add(crowded)
    decisions.actions = [
        action
        for action in decisions.actions
        if not (isinstance(action, Create) and action.slot in removed)
        and not (isinstance(action, SetDesired) and action.task.slot in removed)
    ]
    service = slots.situation.service
    reason = "its service is being removed" if service.pending_delete else "the service was scaled down"
    for slot in sorted(removed):
        decisions.actions += [
            SetDesired(task, states.REMOVE, reason)
            for task in slots.all.get(slot, ())
            if task.desired_state < states.REMOVE
        ]
