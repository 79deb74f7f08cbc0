"""What one node must know, and the differences to what it was told: its tasks, what they need, and no more.

A task stays assigned until it is deleted (its logs and exit are still asked for); the secrets, configs and networks it
needs only until it has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from orch_manager import tasks as states
from orch_manager.dispatcher.endpoints import EndpointBook, meshed_network
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.tables import Reader
from orch_proto import defaults
from orch_proto.dispatcher_pb2 import (
    Assignment,
    AssignmentAction,
    AssignmentChange,
    AssignmentSet,
    AssignmentSetType,
    ServiceEndpoints,
)
from orch_proto.objects_pb2 import Config, Network, Secret, Service, Task

_UPDATE: Final = AssignmentAction.ASSIGNMENT_ACTION_UPDATE
_REMOVE: Final = AssignmentAction.ASSIGNMENT_ACTION_REMOVE
#: A kind and an id.
Key = tuple[Kind, str]
#: Configs may be large: a message stays well below the largest one.
_MESSAGE_BYTES: Final = defaults.MESSAGE_BYTES // 2


def _needs(task: Task) -> frozenset[Key]:
    if states.has_ended(task):
        return frozenset()
    container = task.spec.container
    keys: set[Key] = {(Network, attachment.network_id) for attachment in task.networks}
    keys |= {(Secret, secret.secret_id) for secret in container.secrets}
    keys |= {(Config, config.config_id) for config in container.configs}
    return frozenset(keys)


class NodeAssignments:
    """The state of one session's assignments.

    Args:
        node_id: whose.
        reader: the store.
        book: descriptions of services.
    """

    def __init__(self, node_id: str, reader: Reader, book: EndpointBook) -> None:
        self._node_id = node_id
        self._reader = reader
        self._book = book
        self._tasks: dict[str, int] = {}
        self._needs: dict[str, frozenset[Key]] = {}
        self._users: Counter[Key] = Counter()
        self._objects: dict[Key, int] = {}
        self._services: dict[str, ServiceEndpoints] = {}
        #: The network that this node has for the published ports of a service, by service.
        self._meshed: dict[str, str] = {}
        self._dirty_tasks: dict[str, None] = {}
        self._dirty_objects: dict[Key, None] = {}
        self._dirty_services: dict[str, None] = {}

    def mark_everything(self) -> None:
        """Compare everything: at the start, and when events were lost."""
        self._dirty_tasks.update(dict.fromkeys(task.id for task in self._reader.find(Task, node_id=self._node_id)))
        self._dirty_tasks.update(dict.fromkeys(self._tasks))
        self._dirty_objects.update(dict.fromkeys(self._objects))
        self._dirty_services.update(dict.fromkeys(service.id for service in self._reader.all(Service)))
        self._dirty_services.update(dict.fromkeys(self._services))

    def observe(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> bool:
        """Notes a change; True when it may concern this node."""
        task = new if isinstance(new, Task) else old
        if isinstance(task, Task):
            if task.node_id != self._node_id or not self._concerns_agent(old, new):
                return False
            self._dirty_tasks[object_id] = None
            return True
        if (kind, object_id) in self._objects:
            self._dirty_objects[(kind, object_id)] = None
            return True
        return False

    @staticmethod
    def _concerns_agent(old: StoreObject | None, new: StoreObject | None) -> bool:
        """False for what the agent said itself, unless it said that the task ended."""
        if not isinstance(old, Task) or not isinstance(new, Task):
            return True
        return (
            old.desired_state != new.desired_state
            or old.node_id != new.node_id
            or states.has_ended(old) != states.has_ended(new)
        )

    def refuse(self, task_id: str) -> None:
        """The agent has a task that is not to be: it is told to give it up."""
        self._tasks.setdefault(task_id, 0)
        self._dirty_tasks[task_id] = None

    def service_changed(self, service_id: str) -> bool:
        """Notes that a service's description changed; True when this node may have to be told."""
        # A service that this node knows is described when it is told: at each of many changes it would cost too much.
        if service_id not in self._services:
            described = self._book.get(service_id)
            if described is None or not self._interested(described):
                return False
        self._dirty_services[service_id] = None
        return True

    @property
    def services_wait(self) -> bool:
        """Whether changes of services have not been told yet."""
        return bool(self._dirty_services)

    def _interested(self, described: ServiceEndpoints) -> bool:
        return bool(described.ports) or any(self._users[(Network, on.network_id)] > 0 for on in described.networks)

    def changes(self, *, with_services: bool = True) -> list[AssignmentChange]:
        """The differences since the last call, in an order that an agent can apply.

        Args:
            with_services: False leaves changes of services for a later call, but for those on networks that this node
                did not need before: a task must find them when it starts.
        """
        touched: dict[Key, None] = {}
        tasks = [change for task_id in self._dirty_tasks if (change := self._task_change(task_id, touched))]
        self._dirty_tasks.clear()
        with_services = with_services or any(kind is Network for kind, _ in touched)
        if with_services:
            self._touch_meshed_networks(touched)
        brought, taken = self._object_changes(touched)
        services = self._service_changes(touched) if with_services else []
        return [*brought, *tasks, *services, *taken]

    def _touch_meshed_networks(self, touched: dict[Key, None]) -> None:
        """A node that answers on a published port needs the port's network, whether it has tasks in it or not."""
        for service_id in self._dirty_services:
            described = self._book.get(service_id)
            after = meshed_network(described) if described is not None else ""
            network = self._reader.get(Network, after) if after else None
            if network is None or not network.ipam.pools:
                after = ""
            before = self._meshed.pop(service_id, "")
            if after:
                self._meshed[service_id] = after
            if after == before:
                continue
            for network_id, change in ((after, 1), (before, -1)):
                if network_id:
                    self._users[(Network, network_id)] += change
                    touched[(Network, network_id)] = None

    def _task_change(self, task_id: str, touched: dict[Key, None]) -> AssignmentChange | None:
        task = self._reader.get(Task, task_id)
        mine = task is not None and task.node_id == self._node_id and task.status.state >= states.ASSIGNED
        needs = _needs(task) if task is not None and mine else frozenset()
        before = self._needs.pop(task_id, frozenset())
        if needs:
            self._needs[task_id] = needs
        for key in needs - before:
            self._users[key] += 1
            touched[key] = None
        for key in before - needs:
            self._users[key] -= 1
            touched[key] = None
        if task is None or not mine:
            if self._tasks.pop(task_id, None) is None:
                return None
            return AssignmentChange(action=_REMOVE, assignment=Assignment(task=Task(id=task_id)))
        if self._tasks.get(task_id) == task.desired_state:
            return None
        self._tasks[task_id] = task.desired_state
        return AssignmentChange(action=_UPDATE, assignment=Assignment(task=task))

    def _object_changes(self, touched: dict[Key, None]) -> tuple[list[AssignmentChange], list[AssignmentChange]]:
        brought, taken = [], []
        for key in [*touched, *self._dirty_objects]:
            kind, object_id = key
            item = self._reader.get(kind, object_id)
            if self._users[key] > 0 and item is not None:
                version = item.meta.version_index
                if self._objects.get(key) != version:
                    self._objects[key] = version
                    brought.append(AssignmentChange(action=_UPDATE, assignment=_wrap(item)))
            elif self._objects.pop(key, None) is not None:
                taken.append(AssignmentChange(action=_REMOVE, assignment=_wrap(kind(id=object_id))))
            if self._users[key] <= 0:
                del self._users[key]
        self._dirty_objects.clear()
        return brought, taken

    def _service_changes(self, touched: dict[Key, None]) -> list[AssignmentChange]:
        networks = {object_id for kind, object_id in touched if kind is Network}
        if networks:
            for service in self._reader.all(Service):
                if any(wish.target in networks for wish in service.spec.task.networks):
                    self._dirty_services[service.id] = None
        result = []
        for service_id in self._dirty_services:
            described = self._book.get(service_id)
            if described is not None and self._interested(described):
                if self._services.get(service_id) != described:
                    self._services[service_id] = described
                    result.append(AssignmentChange(action=_UPDATE, assignment=Assignment(service=described)))
            elif self._services.pop(service_id, None) is not None:
                gone = Assignment(service=ServiceEndpoints(service_id=service_id))
                result.append(AssignmentChange(action=_REMOVE, assignment=gone))
        self._dirty_services.clear()
        return result


def _wrap(item: StoreObject) -> Assignment:
    if isinstance(item, Network):
        return Assignment(network=item)
    if isinstance(item, Secret):
        return Assignment(secret=item)
    assert isinstance(item, Config)
    return Assignment(config=item)


def in_messages(
    changes: list[AssignmentChange], *, complete: bool, applies_to: str, results_in: str
) -> Iterator[AssignmentSet]:
    """The changes in sets of bounded size; all but the last one say that more follows."""
    kind = (
        AssignmentSetType.ASSIGNMENT_SET_TYPE_COMPLETE
        if complete
        else AssignmentSetType.ASSIGNMENT_SET_TYPE_INCREMENTAL
    )
    part: list[AssignmentChange] = []
    size = 0
    for change in changes:
        bytes_now = change.ByteSize()
        if part and (len(part) >= defaults.ASSIGNMENT_BATCH_CHANGES or size + bytes_now > _MESSAGE_BYTES):
            yield AssignmentSet(type=kind, applies_to=applies_to, results_in=results_in, changes=part, more=True)
            part, size = [], 0
        part.append(change)
        size += bytes_now
    yield AssignmentSet(type=kind, applies_to=applies_to, results_in=results_in, changes=part)
