"""Serves `Dispatcher.Attach`: reads what an agent says, writes what it must know."""
# ruff: noqa: N802 - methods bear the names of the contract

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import grpc.aio

from orch_manager.dispatcher import statuses
from orch_manager.dispatcher.assignments import in_messages
from orch_manager.dispatcher.hub import Hub
from orch_manager.dispatcher.session import Session, ended_error
from orch_manager.faults import told_as
from orch_manager.forwarding.leader import Leader
from orch_manager.streaming import END_OF_STREAM
from orch_proto import defaults
from orch_proto.dispatcher_pb2 import (
    AssignmentChange,
    HeartbeatAck,
    ManagerMessage,
    SessionEnd,
    SessionOpened,
    StatusAck,
    StatusBatch,
)
from orch_proto.dispatcher_pb2_grpc import DispatcherServicer
from orch_proto.objects_pb2 import Cluster, Node
from orch_rpc import logs
from orch_rpc.authorization import current_call
from orch_rpc.errors import Cancelled, InvalidArgument, OrchError

_log = logs.get("dispatcher")
_Context = Any
#: Status batches that may wait for the disk; then the agent's stream is not read further.
_WAITING_BATCHES: Final = 16
#: Shortest time between two tellings of services: in a deploy every task that runs changes its service, and each one
#: names all of its endpoints. The first change of a quiet time is told at once, and tasks always are.
_SERVICES_INTERVAL_S: Final = 0.05
_OPEN_TIMEOUT_S: Final = defaults.NODE_CALL_TIMEOUT_MS / 1000


class _Stream:
    """One `Attach` call: three workers over one session."""

    def __init__(self, hub: Hub, session: Session, context: _Context, leader: Leader) -> None:
        self._hub = hub
        self._session = session
        self._leader = leader
        self._told_managers: list[str] = []
        self._context = context
        self._batches: asyncio.Queue[StatusBatch] = asyncio.Queue(maxsize=_WAITING_BATCHES)
        self._held = ""
        self._number = 0
        self._services_due_s = 0.0
        self._services_timer: asyncio.TimerHandle | None = None

    async def run(self, cluster_id: str, version: str) -> None:
        """Serves until the agent closes, the session is ended, or something fails."""
        node = self._hub.store.get(Node, self._session.node_id)
        self._told_managers = self._leader.addresses()
        opened = SessionOpened(
            session_id=self._session.session_id,
            heartbeat_period_ms=self._hub.liveness.next_period_ms(),
            node=node,
            cluster_id=cluster_id,
            version=version,
            managers=self._told_managers,
        )
        await self._write(ManagerMessage(opened=opened))
        workers = [
            asyncio.create_task(self._read(), name="session-read"),
            asyncio.create_task(self._send(), name="session-send"),
            asyncio.create_task(self._write_statuses(), name="session-statuses"),
        ]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for worker in workers:
                worker.cancel()
            if self._services_timer is not None:
                self._services_timer.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        for worker in done:
            error = worker.exception()
            if error is not None and not isinstance(error, Cancelled):
                raise error

    async def _write(self, message: ManagerMessage) -> None:
        message.term = self._hub.store.term
        await self._context.write(message)

    # ---- up ------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        node_id = self._session.node_id
        while True:
            message = await self._context.read()
            if message is END_OF_STREAM:
                return
            self._hub.heard(node_id)
            kind = message.WhichOneof("message")
            if kind == "heartbeat":
                self._session.send(ManagerMessage(heartbeat=self._heartbeat_ack(message.heartbeat.sequence)))
            elif kind == "statuses":
                if max(len(message.statuses.updates), len(message.statuses.replacements)) > defaults.STATUS_BATCH_ITEMS:
                    what = f"cannot take the statuses of node {node_id}"
                    raise InvalidArgument(what, f"more than {defaults.STATUS_BATCH_ITEMS} in one batch", "send less")
                await self._batches.put(message.statuses)
            elif kind == "description":
                with told_as("cannot write the node's description"):
                    await self._hub.describe(node_id, message.description)
            elif kind == "call_result":
                self._session.answered(message.call_result)
            elif kind == "leaving":
                await self._hub.left(self._session)
                return
            elif kind == "open":
                raise InvalidArgument(f"cannot serve node {node_id}", "the session is open already")

    def _heartbeat_ack(self, sequence: int) -> HeartbeatAck:
        ack = HeartbeatAck(sequence=sequence, period_ms=self._hub.liveness.next_period_ms())
        managers = self._leader.addresses()
        if managers != self._told_managers:
            ack.managers.extend(managers)
            self._told_managers = managers
        return ack

    async def _write_statuses(self) -> None:
        """Writes batches, those that wait together as one transaction, and acknowledges them once committed."""
        node_id, store = self._session.node_id, self._hub.store
        while True:
            batches = [await self._batches.get()]
            while not self._batches.empty() and len(batches) < _WAITING_BATCHES:
                batches.append(self._batches.get_nowait())
            updates = [update for batch in batches for update in batch.updates]
            made = [replacement for batch in batches for replacement in batch.replacements]
            with told_as("cannot write the node's statuses"):
                taken = await store.update(
                    partial(statuses.take, node_id=node_id, replacements=made, updates=updates, term=store.term),
                    reason="task statuses",
                )
            if taken.dropped:
                self._hub.dropped_statuses.update(taken.dropped)
                _log.debug("statuses dropped", node=node_id, reasons=dict(taken.dropped))
            if made:
                _log.info("tasks made by their node", node=node_id, count=len(made), refused=len(taken.refused))
                self._session.refuse_tasks(taken.refused)
            for batch in batches:
                self._session.send(ManagerMessage(status_ack=StatusAck(batch=batch.batch)))

    # ---- down ----------------------------------------------------------------------------------------

    async def _send(self) -> None:
        """Writes what waits; while a write is under way, further changes gather."""
        session = self._session
        while True:
            await session.wake.wait()
            session.wake.clear()
            for message in session.take_outbox():
                await self._write(message)
            if session.end_reason is not None:
                await self._write(ManagerMessage(end=with_leader(session.end_reason, self._leader)))
                raise ended_error(session)
            if session.assignments_dirty:
                session.assignments_dirty = False
                await self._send_assignments()

    async def _send_assignments(self) -> None:
        complete = not self._held
        changes = self._changes(complete=complete)
        if not changes and not complete:
            return
        self._number += 1
        results_in = f"{self._session.session_id}-{self._number}"
        for part in in_messages(changes, complete=complete, applies_to=self._held, results_in=results_in):
            await self._write(ManagerMessage(assignments=part))
        self._held = results_in

    def _changes(self, *, complete: bool) -> list[AssignmentChange]:
        """What to tell now; services only when they are due, and a timer for those that are not."""
        session, loop = self._session, asyncio.get_running_loop()
        now_s = loop.time()
        due = complete or now_s >= self._services_due_s
        told = due and session.assignments.services_wait
        changes = session.assignments.changes(with_services=due)
        if told:
            self._services_due_s = now_s + _SERVICES_INTERVAL_S
        if session.assignments.services_wait and self._services_timer is None:
            self._services_timer = loop.call_at(self._services_due_s, self._services_are_due)
        return changes

    def _services_are_due(self) -> None:
        self._services_timer = None
        self._session.mark_assignments()


class DispatcherService(DispatcherServicer):
    """The gRPC side of the hub.

    Args:
        hub: has the sessions.
        leader: knows where agents are to go when this manager does not lead.
        version: of this software.
    """

    def __init__(self, hub: Hub, leader: Leader, *, version: str) -> None:
        self._hub = hub
        self._leader = leader
        self._version = version

    async def Attach(self, request_iterator: Any, context: _Context) -> None:  # type: ignore[override]  # grpc.aio serves coroutines too
        """One agent's stream; see dispatcher.proto."""
        del request_iterator  # read through the context, so that reading and writing can be cancelled apart
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                first = await context.read()
        except TimeoutError as error:
            raise InvalidArgument("cannot attach", f"nothing was said in {_OPEN_TIMEOUT_S:g} s") from error
        if first is END_OF_STREAM or first.WhichOneof("message") != "open":
            raise InvalidArgument("cannot attach", "the first message must be `open`", "use an agent of this version")
        opening = first.open
        current_call().require_node(opening.node_id)
        if not self._hub.leading:
            end = SessionEnd(reason="this manager does not lead", reconnect=True)
            await context.write(ManagerMessage(term=self._hub.store.term, end=with_leader(end, self._leader)))
            return
        with told_as(f"cannot attach node {opening.node_id}"):
            session = await self._hub.register(
                opening.node_id, opening.description, _peer_address(context.peer()), opening.highest_term
            )
        cluster = next(iter(self._hub.store.all(Cluster)), Cluster())
        try:
            await _Stream(self._hub, session, context, self._leader).run(cluster.id, self._version)
        except OrchError:
            raise
        except grpc.aio.UsageError:
            _log.debug("stream is gone", node=session.node_id)
        finally:
            self._hub.unregister(session)


def with_leader(end: SessionEnd, leader: Leader) -> SessionEnd:
    """The end of a session, with where to go instead."""
    told = SessionEnd()
    told.CopyFrom(end)
    found = leader.where()
    if found is not None:
        told.leader_address = found.address
    told.managers.extend(leader.addresses())
    return told


def _peer_address(peer: str) -> str:
    """The address of a peer as gRPC writes it ("ipv4:10.0.0.1:5000"); empty for a unix socket."""
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    return ""
