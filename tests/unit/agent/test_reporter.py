"""Task statuses on their way to the leader."""

from __future__ import annotations

import asyncio

from orch_agent.worker.reporter import StatusReporter
from orch_proto import types_pb2 as types


def status(state: types.TaskState.ValueType) -> types.TaskStatus:
    return types.TaskStatus(state=state)


def test_only_the_newest_status_of_a_task_is_sent() -> None:
    """Statuses that gather while none is on its way collapse to the newest of each task."""

    async def scenario() -> None:
        reporter = StatusReporter()
        reporter.report("a", status(types.TASK_STATE_ACCEPTED))
        reporter.report("a", status(types.TASK_STATE_PREPARING))
        reporter.report("b", status(types.TASK_STATE_ACCEPTED))
        batch = await reporter.next_batch()
        assert {update.task_id: update.status.state for update in batch.updates} == {
            "a": types.TASK_STATE_PREPARING,
            "b": types.TASK_STATE_ACCEPTED,
        }

    asyncio.run(scenario())


def test_nothing_is_sent_while_a_batch_is_on_its_way() -> None:
    """The next batch waits for the acknowledgement of the last, and then holds what came meanwhile."""

    async def scenario() -> None:
        reporter = StatusReporter()
        reporter.report("a", status(types.TASK_STATE_ACCEPTED))
        first = await reporter.next_batch()
        reporter.report("a", status(types.TASK_STATE_RUNNING))
        waiting = asyncio.create_task(reporter.next_batch())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        assert not reporter.is_acknowledged("a")
        reporter.acknowledged(first.batch)
        second = await asyncio.wait_for(waiting, 1)
        assert second.updates[0].status.state == types.TASK_STATE_RUNNING
        reporter.acknowledged(second.batch)
        assert reporter.is_acknowledged("a")

    asyncio.run(scenario())


def test_a_lost_session_loses_no_status() -> None:
    """What was on its way when the session ended is sent again, unless something newer is there."""

    async def scenario() -> None:
        reporter = StatusReporter()
        reporter.report("a", status(types.TASK_STATE_ACCEPTED))
        reporter.report("b", status(types.TASK_STATE_ACCEPTED))
        await reporter.next_batch()
        reporter.report("b", status(types.TASK_STATE_FAILED))
        reporter.session_ended()
        again = await asyncio.wait_for(reporter.next_batch(), 1)
        assert {update.task_id: update.status.state for update in again.updates} == {
            "a": types.TASK_STATE_ACCEPTED,
            "b": types.TASK_STATE_FAILED,
        }

    asyncio.run(scenario())
