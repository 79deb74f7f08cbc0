"""Removal: a service goes after its last task, a stack's other objects after its services, its name last of all."""
# ruff: noqa: ARG002 - every loop has the same methods

from __future__ import annotations

from typing import Any

from orch_manager import tasks as states
from orch_manager.labels import SUPERSEDED_LABEL
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.tables import Reader
from orch_manager.workspace import Workspace
from orch_proto.objects_pb2 import Config, Network, Secret, Service, Stack, Task, Volume


class Removal:
    """A `ControlLoop`."""

    def __init__(self) -> None:
        self._dirty = False
        #: True while a replaced secret or config waits for its last user to go.
        self._superseded = False

    def reset(self, reader: Reader) -> None:
        """There may be something half removed."""
        self._dirty = True
        self._superseded = True

    def observe(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        """Wakes when something goes, or is to go."""
        if isinstance(new, (Service, Stack, Network)):
            self._dirty = self._dirty or new.pending_delete
        elif new is None and kind in (Task, Service):
            self._dirty = True
        elif isinstance(new, (Secret, Config)):
            self._superseded = self._superseded or SUPERSEDED_LABEL in new.spec.annotations.labels
        if self._superseded and (isinstance(new, Service) or (isinstance(new, Task) and states.has_ended(new))):
            self._dirty = True

    def has_work(self) -> bool:
        """True when something may be ready to go."""
        return self._dirty

    def step(self, workspace: Workspace) -> int | None:
        """Deletes what nothing depends on any more."""
        if not self._dirty:
            return None
        self._dirty = False
        for service in workspace.all(Service):
            if service.pending_delete and not workspace.find(Task, service_id=service.id):
                if not workspace.may_touch(Service, service.id):
                    self._dirty = True
                    return None
                workspace.delete(Service, service.id)
        self._drop_superseded(workspace)
        users = _networks_in_use(workspace)
        for network in workspace.all(Network):
            if network.pending_delete and network.id not in users and workspace.may_touch(Network, network.id):
                workspace.delete(Network, network.id)
        for stack in workspace.all(Stack):
            if stack.pending_delete and not workspace.find(Service, stack_id=stack.id):
                self._remove_rest(workspace, stack)
        return None

    def _drop_superseded(self, workspace: Workspace) -> None:
        """Deletes replaced secrets and configs that no task and no specification, present or previous, names."""
        left = False
        for kind in (Secret, Config):
            items: list[Any] = workspace.all(kind)
            old = [item for item in items if SUPERSEDED_LABEL in item.spec.annotations.labels]
            if not old:
                continue
            users = _contents_in_use(workspace)
            for item in old:
                if item.id in users or not workspace.may_touch(kind, item.id):
                    left = True
                else:
                    workspace.delete(kind, item.id)
        self._superseded = left

    def _remove_rest(self, workspace: Workspace, stack: Stack) -> None:
        """Networks, secrets and configs of the stack, then the stack. Volumes hold people's data: they stay."""
        users = _networks_in_use(workspace)
        kept = False
        for kind in (Network, Secret, Config):
            for item in workspace.find(kind, stack_id=stack.id):
                if not workspace.has_room():
                    self._dirty = True
                    return
                if item.id in users:
                    kept = True
                    continue
                workspace.delete(kind, item.id)
        for volume in workspace.find(Volume, stack_id=stack.id):
            freed = workspace.edit(volume)
            freed.stack_id = ""
            workspace.put(freed)
        if not kept and workspace.has_room():
            workspace.delete(Stack, stack.id)


def _contents_in_use(workspace: Workspace) -> set[str]:
    """Ids of the secrets and configs that something may still need."""
    containers = [service.spec.task.container for service in workspace.all(Service)]
    containers += [service.previous_spec.task.container for service in workspace.all(Service)]
    containers += [task.spec.container for task in workspace.all(Task) if not states.has_ended(task)]
    return {
        *(secret.secret_id for container in containers for secret in container.secrets),
        *(config.config_id for container in containers for config in container.configs),
    }


def _networks_in_use(workspace: Workspace) -> set[str]:
    return {attachment.target for service in workspace.all(Service) for attachment in service.spec.task.networks}
