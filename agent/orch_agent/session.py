"""The agent's session with the leader: one stream, heartbeats, assignments down, statuses up, again after every loss.

The session ends when the stream breaks, when the leader says so, or when an assignment set does not continue from
what is held; after a back-off the agent attaches again and gets a COMPLETE set. Tasks run on meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import grpc

from orch_agent.managers import ManagerLine
from orch_agent.worker.assignments import OutOfStep
from orch_agent.worker.reporter import StatusReporter
from orch_proto import defaults, dispatcher_pb2_grpc
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import node_pb2 as node_calls
from orch_proto import objects_pb2 as objects
from orch_rpc import logs
from orch_rpc.errors import OrchError

log = logs.get("session")
MAX_OUTGOING = 256
ATTACH_WAIT_S = 3.0  # a manager that is cut off refuses nothing, it just does not answer
MOST_REDIRECTS = 3  # in a row: two managers that each take the other for the leader must not keep an agent busy
FAREWELL_WAIT_S = 2.0
SILENT_PERIODS = 2.5  # heartbeats that a manager may leave unanswered
_Stream = grpc.aio.StreamStreamCall[dispatcher.AgentMessage, dispatcher.ManagerMessage]


class SessionHandler(Protocol):
    """What the rest of the agent does with what comes down the stream."""

    def assignments(self, received: dispatcher.AssignmentSet) -> None:
        """Takes an assignment set.

        Raises:
            OutOfStep: it does not continue from what is held.
        """

    def session_opened(self, opened: dispatcher.SessionOpened) -> None:
        """A session has begun; a COMPLETE assignment set follows."""

    def session_lost(self) -> None:
        """The session has ended."""

    def managers_changed(self, addresses: Iterable[str]) -> None:
        """A manager named all managers; empty when it did not."""

    def node_changed(self, node: objects.Node) -> None:
        """The node's own object changed."""

    async def call(self, call: node_calls.NodeCall) -> node_calls.NodeCallResult:
        """Answers a small question."""

    async def relay(self, relay_id: str, channel: grpc.aio.Channel) -> None:
        """Opens a relay stream and serves what is asked on it."""


@dataclass(slots=True)
class SessionFacts:
    """What is true of the session now; read by metrics and by the local API."""

    connected: bool = False
    sessions: int = 0
    highest_term: int = 0
    last_error: str = ""


class Session:
    """Keeps a session up until cancelled.

    Args:
        node_id: the node.
        managers: whom to turn to.
        dial: gives the channel to the manager at an address, which connects on first use; its owner closes it.
        describe: makes the node's description.
        reporter: where statuses wait.
        handler: the rest of the agent.
        version: of this software.
    """

    def __init__(
        self,
        *,
        node_id: str,
        managers: ManagerLine,
        dial: Callable[[str], grpc.aio.Channel],
        describe: Callable[[], objects.NodeDescription],
        reporter: StatusReporter,
        handler: SessionHandler,
        version: str,
        random_source: random.Random | None = None,
    ) -> None:
        self._node_id = node_id
        self._managers = managers
        self._dial = dial
        self._channel: grpc.aio.Channel | None = None
        self._describe = describe
        self._reporter = reporter
        self._handler = handler
        self._version = version
        self._random = random_source or random.Random()  # noqa: S311 -- jitter, no secret
        self._description_changed = asyncio.Event()
        self._period_ms = defaults.HEARTBEAT_PERIOD_MS
        self._heard_at_s = 0.0
        self._try_now = asyncio.Event()
        self._leaves = asyncio.Event()
        self._over = asyncio.Event()
        self.facts = SessionFacts()

    def describe_again(self) -> None:
        """Sends the node's description anew: something in it changed."""
        self._description_changed.set()

    def try_now(self) -> None:
        """Something changed that makes an attempt worth while: the pause under way ends."""
        self._try_now.set()

    async def say_farewell(self) -> None:
        """Tells the manager that this node leaves, and waits a moment until it knows; then there are no more sessions.

        Without a session nobody is told: the manager then finds out by itself, as of a node that died.
        """
        self._leaves.set()
        if self.facts.connected:
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_WAIT_S):
                    await self._over.wait()

    async def run(self) -> None:
        """Attaches, serves, and attaches again after each loss; goes to the leader at once when told who leads."""
        await self._run_sessions()
        self._over.set()

    async def _run_sessions(self) -> None:
        delay_ms = defaults.AGENT_BACKOFF_FIRST_MS
        loop = asyncio.get_running_loop()
        redirected = 0
        while not self._leaves.is_set():
            began, address = loop.time(), self._managers.next()
            leader = ""
            try:
                await self._one_session(address)
                self.facts.last_error = "the manager ended the session"
            except _SessionBroken as broken:
                self.facts.last_error, leader = str(broken), broken.leader
            finally:
                if self.facts.connected:
                    self.facts.connected = False
                    self._reporter.session_ended()
                    self._handler.session_lost()
            log.info("session.ended", manager=address, why=self.facts.last_error, leader=leader or "not told")
            if leader and leader != address and redirected < MOST_REDIRECTS:
                redirected += 1
                self._managers.leads(leader)
                continue
            redirected = 0
            self._managers.failed(address)
            if loop.time() - began > defaults.AGENT_BACKOFF_LAST_MS / 1000:
                delay_ms = defaults.AGENT_BACKOFF_FIRST_MS
            if await self._pause(delay_ms / 1000 * self._random.uniform(0.5, 1.0)):
                delay_ms = defaults.AGENT_BACKOFF_FIRST_MS
            else:
                delay_ms = min(delay_ms * 2, defaults.AGENT_BACKOFF_LAST_MS)

    async def _pause(self, longest_s: float) -> bool:
        """Waits; True when it was cut short."""
        self._try_now.clear()
        try:
            async with asyncio.timeout(longest_s):
                await self._try_now.wait()
        except TimeoutError:
            return False
        return True

    @property
    def channel(self) -> grpc.aio.Channel | None:
        """The way to the manager that the session is with; None while there is none."""
        return self._channel

    async def _one_session(self, address: str) -> None:
        try:
            channel = self._dial(address)
        except OrchError as error:
            raise _SessionBroken(str(error)) from error  # such as a certificate that has expired
        stream = dispatcher_pb2_grpc.DispatcherStub(channel).Attach(None)
        broken: _SessionBroken | None = None
        try:
            await self._attach(stream)
            self._channel = channel
            await self._serve(stream, channel)
        except* (grpc.aio.AioRpcError, OutOfStep, _SessionBroken) as errors:
            # Raised in here, the exception would leave wrapped in a group, and end the daemon.
            broken = _SessionBroken(_reason(errors), _leader(errors))
        finally:
            self._channel = None
            stream.cancel()
        if broken is not None:
            raise broken

    async def _attach(self, stream: _Stream) -> None:
        opening = dispatcher.SessionOpen(
            node_id=self._node_id,
            description=self._describe(),
            highest_term=self.facts.highest_term,
            version=self._version,
        )
        try:
            async with asyncio.timeout(ATTACH_WAIT_S):
                await stream.write(dispatcher.AgentMessage(open=opening))
                first = await stream.read()
        except TimeoutError as error:
            raise _SessionBroken(f"the manager did not answer in {ATTACH_WAIT_S:g} s") from error
        if isinstance(first, dispatcher.ManagerMessage) and first.WhichOneof("message") == "end":
            self._told_to_end(first.end)
        if not isinstance(first, dispatcher.ManagerMessage) or first.WhichOneof("message") != "opened":
            raise _SessionBroken("the manager did not open the session")
        self._obey(first.term)
        self._period_ms = first.opened.heartbeat_period_ms or defaults.HEARTBEAT_PERIOD_MS
        self._heard_at_s = asyncio.get_running_loop().time()
        self.facts.connected = True
        self.facts.sessions += 1
        log.info("session.opened", session=first.opened.session_id, term=first.term)
        self._handler.session_opened(first.opened)

    def _told_to_end(self, end: dispatcher.SessionEnd) -> None:
        self._handler.managers_changed(end.managers)
        raise _SessionBroken(end.reason or "the manager ended the session", end.leader_address)

    async def _serve(self, stream: _Stream, channel: grpc.aio.Channel) -> None:
        outgoing: asyncio.Queue[dispatcher.AgentMessage] = asyncio.Queue(MAX_OUTGOING)
        async with asyncio.TaskGroup() as group:
            companions = [
                group.create_task(self._send(stream, outgoing)),
                group.create_task(self._beat(outgoing)),
                group.create_task(self._send_statuses(outgoing)),
                group.create_task(self._send_descriptions(outgoing)),
                group.create_task(self._send_farewell(outgoing)),
            ]
            relays: set[asyncio.Task[None]] = set()
            while isinstance(message := await stream.read(), dispatcher.ManagerMessage):
                self._obey(message.term)
                self._heard_at_s = asyncio.get_running_loop().time()
                match message.WhichOneof("message"):
                    case "assignments":
                        self._handler.assignments(message.assignments)
                    case "status_ack":
                        self._reporter.acknowledged(message.status_ack.batch)
                    case "heartbeat":
                        self._period_ms = message.heartbeat.period_ms or self._period_ms
                        self._handler.managers_changed(message.heartbeat.managers)
                    case "call":
                        group.create_task(self._answer(message.call, outgoing))
                    case "relay":
                        relay = group.create_task(self._handler.relay(message.relay.relay_id, channel))
                        relays.add(relay)
                        relay.add_done_callback(relays.discard)
                    case "node":
                        self._handler.node_changed(message.node)
                    case "end":
                        self._told_to_end(message.end)
            for task in (*companions, *relays):
                task.cancel()

    def _obey(self, term: int) -> None:
        if term < self.facts.highest_term:
            raise _SessionBroken(
                f"the manager speaks for term {term}, but term {self.facts.highest_term} has been obeyed"
            )
        self.facts.highest_term = term

    async def _send(self, stream: _Stream, outgoing: asyncio.Queue[dispatcher.AgentMessage]) -> None:
        while True:
            await stream.write(await outgoing.get())

    async def _beat(self, outgoing: asyncio.Queue[dispatcher.AgentMessage]) -> None:
        sequence = 0
        while True:
            jitter_ms = self._random.uniform(-defaults.HEARTBEAT_JITTER_MS, defaults.HEARTBEAT_JITTER_MS)
            await asyncio.sleep(max(self._period_ms + jitter_ms, 100) / 1000)
            silent_s = asyncio.get_running_loop().time() - self._heard_at_s
            if silent_s > SILENT_PERIODS * self._period_ms / 1000:
                raise _SessionBroken(f"the manager has said nothing for {silent_s:.1f} s")
            sequence += 1
            await outgoing.put(dispatcher.AgentMessage(heartbeat=dispatcher.Heartbeat(sequence=sequence)))

    async def _send_statuses(self, outgoing: asyncio.Queue[dispatcher.AgentMessage]) -> None:
        while True:
            await outgoing.put(dispatcher.AgentMessage(statuses=await self._reporter.next_batch()))

    async def _send_descriptions(self, outgoing: asyncio.Queue[dispatcher.AgentMessage]) -> None:
        last = self._describe()
        while True:
            try:
                async with asyncio.timeout(defaults.DESCRIPTION_REFRESH_MS / 1000):
                    await self._description_changed.wait()
            except TimeoutError:
                pass
            self._description_changed.clear()
            now = self._describe()
            if now != last:
                await outgoing.put(dispatcher.AgentMessage(description=now))
                last = now

    async def _send_farewell(self, outgoing: asyncio.Queue[dispatcher.AgentMessage]) -> None:
        await self._leaves.wait()
        await outgoing.put(dispatcher.AgentMessage(leaving=dispatcher.Leaving()))

    async def _answer(self, call: node_calls.NodeCall, outgoing: asyncio.Queue[dispatcher.AgentMessage]) -> None:
        await outgoing.put(dispatcher.AgentMessage(call_result=await self._handler.call(call)))


class _SessionBroken(Exception):  # noqa: N818 -- named for the condition
    """The session is over; the message says why, and `leader` who leads, when that was told."""

    def __init__(self, why: str, leader: str = "") -> None:
        super().__init__(why)
        self.leader = leader


def _leader(errors: BaseExceptionGroup) -> str:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup) and (leader := _leader(error)):
            return leader
        if isinstance(error, _SessionBroken) and error.leader:
            return error.leader
    return ""


def _reason(errors: BaseExceptionGroup) -> str:
    reasons = []
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            reasons.append(_reason(error))
        elif isinstance(error, grpc.aio.AioRpcError):
            reasons.append(error.details() or error.code().name)
        else:
            reasons.append(str(error))
    return "; ".join(dict.fromkeys(reasons))
