"""All sessions of this leader: who is attached, who is overdue, and what each change means for whom."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from orch_manager import tasks as states
from orch_manager.clock import Clock, IdSource
from orch_manager.dispatcher.assignments import NodeAssignments
from orch_manager.dispatcher.endpoints import EndpointBook, changes_endpoints
from orch_manager.dispatcher.liveness import Liveness
from orch_manager.dispatcher.session import Session
from orch_manager.store.changes import Event
from orch_manager.store.errors import StoreError
from orch_manager.store.store import Store
from orch_manager.store.transaction import Transaction
from orch_manager.store.watch import Resync, Watch
from orch_proto import defaults
from orch_proto.dispatcher_pb2 import ManagerMessage
from orch_proto.objects_pb2 import Cluster, Config, Network, Node, NodeDescription, NodeState, Secret, Service, Task
from orch_raft.errors import OutcomeUnknown, ProposalQueueFull
from orch_rpc import logs
from orch_rpc.errors import FailedPrecondition, NotFound, Unavailable

_log = logs.get("dispatcher")


class Hub:
    """See the module.

    Args:
        store: read and written.
        clock: what time it is.
        ids: for sessions.
        heartbeat_period_ms: of the agents.
    """

    def __init__(self, store: Store, *, clock: Clock, ids: IdSource, heartbeat_period_ms: int) -> None:
        self.store = store
        self.clock = clock
        self.ids = ids
        self.liveness = Liveness(ids, heartbeat_period_ms)
        self.book = EndpointBook(store)
        self.sessions: dict[str, Session] = {}
        self.dropped_statuses: Counter[str] = Counter()
        self.leading = False
        self._liveness_changed = asyncio.Event()

    # ---- leadership --------------------------------------------------------------------------------

    def set_heartbeat_period(self, period_ms: int) -> None:
        """The cluster's own heartbeat period; takes effect for those that are heard of from now on."""
        self.liveness.set_period(period_ms)

    async def run(self) -> None:
        """Serves agents until cancelled; only the leader's hub runs."""
        now_s = self.clock.monotonic_s()
        self.book.clear()
        self.liveness.clear()
        for node in self.store.all(Node):
            if node.status.state != NodeState.NODE_STATE_DOWN:
                self.liveness.expect_first_word(node.id, now_s)
        self.leading = True
        try:
            with self.store.watch(Task, Service, Network, Node, Secret, Config, Cluster) as watch:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow(watch), name="dispatcher-changes")
                    group.create_task(self._mark_overdue(), name="dispatcher-liveness")
        finally:
            self.leading = False
            for session in list(self.sessions.values()):
                session.end("this manager leads no longer", reconnect=True)

    # ---- changes -----------------------------------------------------------------------------------

    async def _follow(self, watch: Watch) -> None:
        async for event in watch:
            if isinstance(event, Resync):
                self._resync()
                continue
            self._observe(event)
            for further in watch.drain():
                if isinstance(further, Resync):
                    self._resync()
                else:
                    self._observe(further)

    def _resync(self) -> None:
        self.book.clear()
        for session in self.sessions.values():
            session.assignments.mark_everything()
            session.mark_assignments()

    def _observe(self, event: Event) -> None:
        old, new = event.old, event.new
        task = new if isinstance(new, Task) else old
        if isinstance(task, Task):
            session = self.sessions.get(task.node_id)
            if session is not None and session.assignments.observe(event.kind, event.object_id, old, new):
                session.mark_assignments()
            if changes_endpoints(old if isinstance(old, Task) else None, new if isinstance(new, Task) else None):
                self._service_changed(task.service_id)
            return
        if event.kind is Service:
            self._service_changed(event.object_id)
            return
        if event.kind is Cluster:
            if isinstance(new, Cluster):
                self.set_heartbeat_period(new.spec.dispatcher.heartbeat_period_ms or defaults.HEARTBEAT_PERIOD_MS)
            return
        if event.kind is Network:
            # A name or subnet that changed concerns the services on it.
            self.book.clear()
        if event.kind is Node:
            self._node_changed(event)
            return
        for session in self.sessions.values():
            if session.assignments.observe(event.kind, event.object_id, old, new):
                session.mark_assignments()

    def _service_changed(self, service_id: str) -> None:
        self.book.forget(service_id)
        for session in self.sessions.values():
            if session.assignments.service_changed(service_id):
                session.mark_assignments()

    def _node_changed(self, event: Event) -> None:
        session = self.sessions.get(event.object_id)
        if not isinstance(event.new, Node):
            self.liveness.forget(event.object_id)
            if session is not None:
                session.end("the node was removed from the cluster", reconnect=False)
            self._data_paths_changed()
            return
        old = event.old
        if not isinstance(old, Node):
            self.liveness.expect_first_word(event.object_id, self.clock.monotonic_s())
            self._liveness_changed.set()
        elif states.node_is_up(old) != states.node_is_up(event.new):
            for service_id in {task.service_id for task in self.store.find(Task, node_id=event.object_id)}:
                self._service_changed(service_id)
        if not isinstance(old, Node) or _data_path(old) != _data_path(event.new):
            self._data_paths_changed()
        if session is not None and isinstance(old, Node) and _concerns_node(old, event.new):
            session.send(ManagerMessage(node=event.new))

    def _data_paths_changed(self) -> None:
        """Every node is told where overlay traffic of all nodes comes from and goes to."""
        for service in self.store.all(Service):
            self._service_changed(service.id)

    # ---- agents come and go --------------------------------------------------------------------------

    async def register(self, node_id: str, description: NodeDescription, address: str, highest_term: int) -> Session:
        """Admits an agent: its node becomes READY.

        Raises:
            Unavailable: this manager does not lead.
            NotFound: no such node is in the cluster.
            FailedPrecondition: the agent has obeyed a newer leader than this one.
        """
        if not self.leading:
            raise Unavailable("cannot attach here", "this manager does not lead", "attach to the leader")
        if highest_term > self.store.term:
            why = f"the agent has obeyed term {highest_term}, this leader's is {self.store.term}"
            raise FailedPrecondition(f"cannot attach node {node_id}", why, "attach to the present leader")
        if self.store.get(Node, node_id) is None:
            todo = "join the cluster again: orch cluster join"
            raise NotFound(f"cannot attach node {node_id}", "it is not in the cluster", todo)
        present = self.sessions.pop(node_id, None)
        if present is not None:
            present.end("the node has attached again", reconnect=False)
        self.heard(node_id)
        await self.store.update(
            lambda transaction: self._write_ready(transaction, node_id, description, address), reason="node attached"
        )
        session = Session(self.ids.new(), node_id, NodeAssignments(node_id, self.store, self.book))
        session.assignments.mark_everything()
        self.sessions[node_id] = session
        _log.info("node attached", node=node_id, hostname=description.hostname, session=session.session_id)
        return session

    def _write_ready(
        self, transaction: Transaction, node_id: str, description: NodeDescription | None, address: str
    ) -> None:
        node = transaction.edit(Node, node_id)
        before = node.SerializeToString(deterministic=True)
        if description is not None:
            node.description.CopyFrom(description)
        if address:
            node.status.address = address
        if node.status.state != NodeState.NODE_STATE_READY:
            node.status.state = NodeState.NODE_STATE_READY
            node.status.since_unix_ms = self.clock.unix_ms()
            node.status.message = ""
        if node.SerializeToString(deterministic=True) != before:
            transaction.update(node)

    async def describe(self, node_id: str, description: NodeDescription) -> None:
        """The agent described its node anew."""
        await self.store.update(
            lambda transaction: self._write_ready(transaction, node_id, description, ""), reason="node described"
        )

    def unregister(self, session: Session) -> None:
        """A stream ended. The node stays READY until its grace is over: agents restart."""
        session.closed()
        if self.sessions.get(session.node_id) is session:
            del self.sessions[session.node_id]
            _log.info("node detached", node=session.node_id, session=session.session_id)

    async def left(self, session: Session) -> None:
        """An agent said that its node leaves the cluster: nobody has to wait for heartbeats to know that it is gone."""
        self.liveness.forget(session.node_id)
        await self._mark_down([session.node_id], why="it left the cluster", reconnect=False)

    # ---- liveness ------------------------------------------------------------------------------------

    def heard(self, node_id: str) -> None:
        """A node gave a sign of life."""
        if self.liveness.heard(node_id, self.clock.monotonic_s()):
            self._liveness_changed.set()

    async def _mark_overdue(self) -> None:
        while True:
            now_s = self.clock.monotonic_s()
            late = self.liveness.overdue(now_s)
            if late:
                await self._mark_down(late, why=f"no heartbeat for {self.liveness.grace_ms / 1000:g} s", reconnect=True)
            due_s = self.liveness.next_due_s()
            self._liveness_changed.clear()
            wait_s = None if due_s is None else max(0.01, due_s - self.clock.monotonic_s())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._liveness_changed.wait()

    async def _mark_down(self, node_ids: Sequence[str], *, why: str, reconnect: bool) -> None:
        def write(transaction: Transaction) -> None:
            for node_id in node_ids:
                if transaction.get(Node, node_id) is None or self.liveness.expects(node_id):
                    continue  # removed, or heard of after all
                node = transaction.edit(Node, node_id)
                node.status.state = NodeState.NODE_STATE_DOWN
                node.status.message = why
                node.status.since_unix_ms = self.clock.unix_ms()
                transaction.update(node)

        try:
            await self.store.update(write, reason="nodes down")
        except (StoreError, OutcomeUnknown, ProposalQueueFull) as error:
            _log.warning("cannot write that nodes are down, trying again", nodes=list(node_ids), error=error)
            for node_id in node_ids:
                self.liveness.try_again(node_id, self.clock.monotonic_s())
            return
        for node_id in node_ids:
            if self.liveness.expects(node_id):
                continue
            _log.warning("node is down", node=node_id, reason=why)
            session = self.sessions.get(node_id)
            if session is not None:
                session.end(why, reconnect=reconnect)


def _data_path(node: Node) -> str:
    return node.description.data_path_address


def _concerns_node(old: Node, new: Node) -> bool:
    """Whether a change of its own object is something that the node must know: its role, or that it must renew."""
    return old.spec != new.spec or old.role != new.role or old.certificate.state != new.certificate.state
