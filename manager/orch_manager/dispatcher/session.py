"""One agent's stream: what waits to be sent down it, what it was told, the questions put to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final

from orch_manager.dispatcher.assignments import NodeAssignments
from orch_proto.dispatcher_pb2 import ManagerMessage, SessionEnd
from orch_proto.node_pb2 import NodeCall, NodeCallResult
from orch_rpc.errors import Cancelled, ResourceExhausted, Unavailable

#: Messages that may wait for an agent that does not read; then the session is ended.
_OUTBOX_MESSAGES: Final = 1_000
#: Questions under way to one node.
_OPEN_CALLS: Final = 100


class Session:
    """One attached agent.

    Args:
        session_id: a fresh one for each stream.
        node_id: whose.
        assignments: what it was told.
    """

    def __init__(self, session_id: str, node_id: str, assignments: NodeAssignments) -> None:
        self.session_id = session_id
        self.node_id = node_id
        self.assignments = assignments
        self.wake = asyncio.Event()
        # The complete set is due from the start, also when nothing changes.
        self.wake.set()
        self.assignments_dirty = True
        self.end_reason: SessionEnd | None = None
        self._outbox: deque[ManagerMessage] = deque()
        self._calls: dict[str, asyncio.Future[NodeCallResult]] = {}

    def send(self, message: ManagerMessage) -> None:
        """Queues a message; ends the session when the agent has not read for too long."""
        if len(self._outbox) >= _OUTBOX_MESSAGES:
            self.end("the agent does not read its messages", reconnect=True)
            return
        self._outbox.append(message)
        self.wake.set()

    def end(self, reason: str, *, reconnect: bool) -> None:
        """Asks the stream to tell the agent why, and to close."""
        if self.end_reason is None:
            self.end_reason = SessionEnd(reason=reason, reconnect=reconnect)
        self.wake.set()

    def mark_assignments(self) -> None:
        """The assignments may have changed."""
        self.assignments_dirty = True
        self.wake.set()

    def refuse_tasks(self, task_ids: Iterable[str]) -> None:
        """The agent made these tasks by itself, and they cannot stay: it is told to give them up."""
        for task_id in task_ids:
            self.assignments.refuse(task_id)
            self.mark_assignments()

    def take_outbox(self) -> list[ManagerMessage]:
        """What waits to be sent."""
        messages = list(self._outbox)
        self._outbox.clear()
        return messages

    async def call(self, call: NodeCall, timeout_s: float) -> NodeCallResult:
        """Puts a question to the agent.

        Raises:
            Unavailable: no answer in `timeout_s` seconds, or the agent went away.
            ResourceExhausted: too many questions are under way.
        """
        if len(self._calls) >= _OPEN_CALLS:
            raise ResourceExhausted(
                f"cannot ask node {self.node_id}", f"{_OPEN_CALLS} questions are under way", "try again"
            )
        answer: asyncio.Future[NodeCallResult] = asyncio.get_running_loop().create_future()
        self._calls[call.call_id] = answer
        try:
            self.send(ManagerMessage(call=call))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            why = f"no answer in {timeout_s:g} s"
            raise Unavailable(f"cannot ask node {self.node_id}", why, "check the node, then repeat") from error
        finally:
            self._calls.pop(call.call_id, None)

    def answered(self, result: NodeCallResult) -> None:
        """The agent answered; late answers are dropped."""
        answer = self._calls.get(result.call_id)
        if answer is not None and not answer.done():
            answer.set_result(result)

    def closed(self) -> None:
        """The stream is gone: whoever waits for an answer learns it."""
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"cannot ask node {self.node_id}", "its agent went away", "repeat"))
        self._calls.clear()


def ended_error(session: Session) -> Cancelled:
    """Raised inside a stream's workers to end it."""
    reason = session.end_reason.reason if session.end_reason is not None else "closed"
    return Cancelled(f"session of node {session.node_id} ended", reason)
