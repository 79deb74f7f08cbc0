"""What the leader has assigned to this node, as a value that assignment sets change. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects

_T = TypeVar("_T")


class OutOfStep(Exception):  # noqa: N818 -- named for the condition
    """Raised when a set does not continue from what is held; the agent then asks for a new session."""


@dataclass(slots=True)
class Holdings:
    """Everything assigned to this node, by id."""

    tasks: dict[str, objects.Task] = field(default_factory=dict)
    secrets: dict[str, objects.Secret] = field(default_factory=dict)
    configs: dict[str, objects.Config] = field(default_factory=dict)
    networks: dict[str, objects.Network] = field(default_factory=dict)
    volumes: dict[str, objects.Volume] = field(default_factory=dict)
    services: dict[str, dispatcher.ServiceEndpoints] = field(default_factory=dict)


@dataclass(slots=True)
class Delta:
    """Ids that an applied set touched; removals of tasks and networks apart, since they mean work."""

    complete: bool = False
    tasks: set[str] = field(default_factory=set)
    tasks_removed: set[str] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)
    networks_removed: set[str] = field(default_factory=set)
    services: set[str] = field(default_factory=set)
    services_removed: dict[str, dispatcher.ServiceEndpoints] = field(default_factory=dict)


class Assignments:
    """Applies assignment sets in order.

    The sets form a chain: each names the state it applies to and the state it results in. A COMPLETE set starts a new
        chain and may come in parts, which are applied together with the last one.
    """

    def __init__(self) -> None:
        self.held = Holdings()
        self.result = ""
        self._parts: list[dispatcher.AssignmentSet] = []

    def apply(self, received: dispatcher.AssignmentSet) -> Delta | None:
        """Takes one set in and tells what it changed; None while further parts are to come.

        Raises:
            OutOfStep: the set applies to a state that is not held.
        """
        if (
            received.type == dispatcher.ASSIGNMENT_SET_TYPE_INCREMENTAL
            and not self._parts
            and received.applies_to != self.result
        ):
            raise OutOfStep(f"the set applies to {received.applies_to!r}, held is {self.result!r}")
        self._parts.append(received)
        if received.more:
            return None
        parts, self._parts = self._parts, []
        delta = Delta(complete=parts[0].type == dispatcher.ASSIGNMENT_SET_TYPE_COMPLETE)
        before = self.held
        if delta.complete:
            self.held = Holdings()
        for part in parts:
            for change in part.changes:
                self._change(change, delta)
        if delta.complete:
            delta.tasks_removed |= before.tasks.keys() - self.held.tasks.keys()
            delta.networks_removed = before.networks.keys() - self.held.networks.keys()
            delta.services_removed = {key: old for key, old in before.services.items() if key not in self.held.services}
        self.result = received.results_in
        return delta

    def reset(self) -> None:
        """Forgets a half-received set: the session it came on has ended."""
        self._parts.clear()

    def _change(self, change: dispatcher.AssignmentChange, delta: Delta) -> None:
        item = change.assignment
        remove = change.action == dispatcher.ASSIGNMENT_ACTION_REMOVE
        held = self.held
        match item.WhichOneof("item"):
            case "task":
                _put(held.tasks, item.task.id, item.task, remove=remove)
                (delta.tasks_removed if remove else delta.tasks).add(item.task.id)
                (delta.tasks if remove else delta.tasks_removed).discard(item.task.id)
            case "secret":
                _put(held.secrets, item.secret.id, item.secret, remove=remove)
            case "config":
                _put(held.configs, item.config.id, item.config, remove=remove)
            case "network":
                _put(held.networks, item.network.id, item.network, remove=remove)
                (delta.networks_removed if remove else delta.networks).add(item.network.id)
                (delta.networks if remove else delta.networks_removed).discard(item.network.id)
            case "volume":
                _put(held.volumes, item.volume.id, item.volume, remove=remove)
            case "service":
                key = item.service.service_id
                old = held.services.get(key)
                _put(held.services, key, item.service, remove=remove)
                if remove:
                    delta.services.discard(key)
                    if old is not None:
                        delta.services_removed[key] = old
                else:
                    delta.services.add(key)
                    delta.services_removed.pop(key, None)
            case None:
                raise OutOfStep("an assignment of a kind that this version does not know; upgrade this node")


def _put(table: dict[str, _T], key: str, value: _T, *, remove: bool) -> None:
    if remove:
        table.pop(key, None)
    else:
        table[key] = value
