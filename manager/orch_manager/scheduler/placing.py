"""The decision itself, pure: tasks and nodes in, placements and reasons out.

Tasks of one service version are placed as a group: nodes are filtered once, then each task goes to the best node of a
heap. Ranking is Swarm's: faulty nodes last, then fewest tasks of the service, then fewest tasks in all; a preference
spreads over its branches first (SwarmKit: manager/scheduler/scheduler.go, decision_tree.go).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orch_manager.scheduler.constraints import preference_value
from orch_manager.scheduler.filters import Demand, explain, refusal, refusal_after_placing
from orch_manager.scheduler.nodes import NodeInfo, NodeSet
from orch_proto.objects_pb2 import Task
from orch_proto.types_pb2 import TaskState


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a task goes; no node id: nowhere, for `reason`."""

    task: Task
    node_id: str
    reason: str


@dataclass(slots=True)
class Outcome:
    """All placements of a round, and how many nodes each filter refused."""

    placements: list[Placement] = field(default_factory=list)
    filtered: Counter[str] = field(default_factory=Counter)


_Rank = tuple[bool, int, int, str]


def _rank(demand: Demand, info: NodeInfo, now_ms: int) -> _Rank:
    faulty = info.is_faulty(demand.service_id, demand.spec_version, now_ms)
    return faulty, info.by_service.get(demand.service_id, 0), info.total, info.node.id


class _Branch:
    """One value of a spread preference: the nodes or further branches under it, and the tasks of the service there."""

    def __init__(self) -> None:
        self.tasks = 0
        self.branches: dict[str, _Branch] = {}
        self.heap: list[_Rank] = []

    def empty(self) -> bool:
        """True when no node below can take a further task."""
        return not self.heap and all(branch.empty() for branch in self.branches.values())


def _grow(demand: Demand, infos: Iterable[NodeInfo], now_ms: int) -> _Branch:
    root = _Branch()
    for info in infos:
        rank = _rank(demand, info, now_ms)
        branch = root
        branch.tasks += rank[1]
        for descriptor in demand.preferences:
            branch = branch.branches.setdefault(preference_value(info.node, descriptor), _Branch())
            branch.tasks += rank[1]
        branch.heap.append(rank)
    _heapify(root)
    return root


def _heapify(branch: _Branch) -> None:
    heapq.heapify(branch.heap)
    for child in branch.branches.values():
        _heapify(child)


def _pick(root: _Branch) -> tuple[list[_Branch], _Rank] | None:
    """The best node: in each level the branch with the fewest tasks of the service. The path to it, and its rank."""
    path = [root]
    while path[-1].branches:
        living = [(child.tasks, value) for value, child in path[-1].branches.items() if not child.empty()]
        if not living:
            return None
        path.append(path[-1].branches[min(living)[1]])
    if not path[-1].heap:
        return None
    return path, heapq.heappop(path[-1].heap)


def _place_group(group: Sequence[Task], nodes: NodeSet, now_ms: int, outcome: Outcome) -> None:
    demand = Demand.of(group[0])
    reasons: Counter[str] = Counter()
    fitting = []
    for info in nodes.infos.values():
        name, reason = refusal(demand, info)
        if reason:
            reasons[reason] += 1
            outcome.filtered[name] += 1
        else:
            fitting.append(info)
    root = _grow(demand, fitting, now_ms)
    for task in group:
        picked = _pick(root)
        if picked is None:
            outcome.placements.append(Placement(task, "", explain(reasons)))
            continue
        path, rank = picked
        info = nodes.infos[rank[3]]
        placed = Task(id=task.id, service_id=task.service_id, spec_version=task.spec_version, node_id=rank[3])
        placed.spec.resources.CopyFrom(task.spec.resources)
        placed.endpoint.CopyFrom(task.endpoint)
        placed.desired_state = TaskState.TASK_STATE_RUNNING
        nodes.put_task(placed, now_ms)
        for branch in path:
            branch.tasks += 1
        again = refusal_after_placing(demand, info)
        if again:
            reasons[again] += 1
        else:
            heapq.heappush(path[-1].heap, _rank(demand, info, now_ms))
        outcome.placements.append(Placement(task, rank[3], f"assigned to {info.node.description.hostname or rank[3]}"))


def place(tasks: Iterable[Task], nodes: NodeSet, now_ms: int) -> Outcome:
    """Chooses a node for each task.

    Args:
        tasks: PENDING tasks; those of one service version are treated as identical.
        nodes: changed as the tasks are placed, so that no later one overcommits; a dry run passes a set of its own.
        now_ms: for the memory of faulty nodes.
    """
    groups: dict[tuple[str, int, bytes], list[Task]] = {}
    for task in tasks:
        # Two tasks of one version differ in placement when a constraint was tightened without a restart.
        key = (task.service_id, task.spec_version, task.spec.placement.SerializeToString())
        groups.setdefault(key, []).append(task)
    outcome = Outcome()
    for group in groups.values():
        _place_group(group, nodes, now_ms, outcome)
    return outcome
