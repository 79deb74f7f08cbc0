"""The manager process of this node, as its daemon sees it: how it is started, and what its end means."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from orch_agent.processes import ChildProcess, python_module

EXIT_STATE_UNUSABLE: Final = 3
#: Its state is sealed and it was given no key that opens it.
EXIT_LOCKED: Final = 4
#: It is no member any more: the cluster removed it.
EXIT_REMOVED: Final = 5
#: Deaths of a process that was just started after which those who wait for it are told.
MOST_EARLY_DEATHS: Final = 4
_UNLOCK_KEY_FILE: Final = "unlock.key"


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """What does not change between two starts.

    Attributes:
        state_dir: the node's state; the manager's own is below it, and the identity.
        run_dir: where its socket stands, on a tmpfs.
        node_id: this node.
        listen_address: ``host:port`` where it listens for managers, agents and people.
        advertise_address: ``host:port`` where those reach it.
        metrics_address: where /metrics is served; empty: nowhere.
        log_level: of its log.
    """

    state_dir: Path
    run_dir: Path
    node_id: str
    listen_address: str
    advertise_address: str
    metrics_address: str
    log_level: str


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a manager without state comes by it; the default is for one that has some.

    Attributes:
        bootstrap: file with the first objects of a new cluster.
        join: ``host:port`` of a manager of the cluster that it joins.
        force_new_cluster: the state that is there goes on as a cluster of one manager.
    """

    bootstrap: Path | None = None
    join: str = ""
    force_new_cluster: bool = False


def manager_command(settings: ManagerSettings, beginning: Beginning) -> list[str]:
    """Command line of the manager process."""
    command = python_module(
        "orch_manager",
        *("--state-dir", str(settings.state_dir / "manager")),
        *("--run-dir", str(settings.run_dir)),
        *("--identity-dir", str(settings.state_dir)),
        *("--node-id", settings.node_id),
        *("--listen-address", settings.listen_address),
        *("--advertise-address", settings.advertise_address),
        *("--metrics-address", settings.metrics_address),
        *("--unlock-key-file", str(settings.run_dir / _UNLOCK_KEY_FILE)),
        *("--log-level", settings.log_level),
        *("--parent-pid", str(os.getpid())),
    )
    if beginning.bootstrap is not None:
        command += ["--bootstrap", str(beginning.bootstrap)]
    if beginning.join:
        command += ["--join", beginning.join]
    if beginning.force_new_cluster:
        command += ["--force-new-cluster"]
    return command


class ManagerChild:
    """Starts the manager, starts it again when it dies, and leaves it dead when it says that this would do harm."""

    def __init__(self, settings: ManagerSettings, beginning: Beginning, group: asyncio.TaskGroup) -> None:
        self._settings = settings
        self._group = group
        self._beginning = beginning
        #: It was to go on as the only manager, and has not come up as such yet: a locked one waits for its key first.
        self._goes_on_alone = False
        self._child = self._new_child()
        self._life = group.create_task(self._child.run(), name="manager-process")

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._child.pid is not None

    @property
    def locked(self) -> bool:
        """Whether it waits for the unlock key."""
        return self._child.last_status == EXIT_LOCKED

    @property
    def failure(self) -> str:
        """Why it was left dead; empty otherwise."""
        if self.locked:
            return "the cluster is locked: orch cluster unlock, with the key that `orch cluster lock` printed"
        if self._child.last_status == EXIT_REMOVED:
            return "the cluster removed this manager: orch cluster leave --force, then join again"
        return self._child.failure

    @property
    def why_not_running(self) -> str:
        """Why nobody should wait for it any longer: it was left dead, or dies again and again; empty otherwise."""
        if self.failure or self._child.restarts < MOST_EARLY_DEATHS:
            return self.failure
        status = self._child.last_status
        return (
            f"the manager process ended {self._child.restarts} times, last with exit status {status}; its log says why"
        )

    def has_begun(self) -> None:
        """The manager has its state: from now on it is started without what the beginning needed."""
        self._beginning = Beginning()
        self._goes_on_alone = False

    async def unlock(self, key: str) -> None:
        """Starts a locked manager with a key; the key stands in memory until the process has read it."""
        path = self._settings.run_dir / _UNLOCK_KEY_FILE
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as handle:
            handle.write(key)
        await self.restart()

    async def go_on_alone(self) -> None:
        """Starts the process again as the only manager of its cluster."""
        self._goes_on_alone = True
        await self.restart()

    async def restart(self) -> None:
        """Stops the process and starts it again."""
        await self.stop()
        beginning = replace(self._beginning, force_new_cluster=self._goes_on_alone)
        self._child = self._new_child(beginning)
        self._life = self._group.create_task(self._child.run(), name="manager-process")

    async def stop(self) -> None:
        """Stops the process for good."""
        self._life.cancel()
        await asyncio.wait({self._life})

    def _new_child(self, beginning: Beginning | None = None) -> ChildProcess:
        first = manager_command(self._settings, beginning or self._beginning)
        again = manager_command(self._settings, replace(self._beginning, force_new_cluster=False))
        fatal = (EXIT_STATE_UNUSABLE, EXIT_LOCKED, EXIT_REMOVED)
        return ChildProcess("manager", first, command_again=again, fatal_exit_codes=fatal)
