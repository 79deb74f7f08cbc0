"""The real process over its real socket: deploys survive a kill, errors come in three parts, streams are piped."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orch_proto import control_pb2 as control
from orch_proto.node_pb2 import RelayInput
from orch_proto.types_pb2 import ObjectKind
from orch_rpc.errors import FailedPrecondition, InvalidArgument, NotFound, rpc_errors
from simulation.wire_agent import ManagerProcess, WireAgent, web_stack


@asynccontextmanager
async def attached(manager: ManagerProcess) -> AsyncIterator[WireAgent]:
    agent = WireAgent(manager.socket)
    serving = asyncio.create_task(agent.serve())
    try:
        yield agent
    finally:
        serving.cancel()
        for outcome in await asyncio.gather(serving, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        await agent.close()


def with_manager(folder: Path, story: Callable[[ManagerProcess], Awaitable[None]]) -> None:
    async def run() -> None:
        manager = ManagerProcess(folder)
        await manager.start()
        try:
            await story(manager)
        finally:
            await manager.stop(signal.SIGKILL)

    asyncio.run(run())


def test_a_deploy_survives_a_kill_of_the_manager(tmp_path: Path) -> None:
    """After kill -9 the same tasks are assigned in a higher term; a clean stop ends with status 0."""

    async def story(manager: ManagerProcess) -> None:
        async with attached(manager) as agent:
            await agent.control.ApplyStack(control.ApplyStackRequest(spec=web_stack(3)))
            before = {task.id for task in await agent.until(3)}
            term = agent.terms[-1]
        await manager.stop(signal.SIGKILL)
        await manager.start()
        async with attached(manager) as agent:
            assert {task.id for task in await agent.until(3)} == before
            assert agent.terms[-1] > term
            again = await agent.control.ApplyStack(control.ApplyStackRequest(spec=web_stack(3)))
            assert (again.version, again.applied_index) == (1, 0), "the same stack again changes nothing"
        assert await manager.stop() == 0

    with_manager(tmp_path, story)


def test_a_failed_task_is_replaced_and_a_removed_stack_is_gone(tmp_path: Path) -> None:
    """A failure brings another task of the slot; a removal ends with nothing left to assign."""

    async def story(manager: ManagerProcess) -> None:
        async with attached(manager) as agent:
            await agent.control.ApplyStack(control.ApplyStackRequest(spec=web_stack(2)))
            victim = (await agent.until(2))[0]
            await agent.say((victim.id, 704))
            while victim.id in {task.id for task in await agent.until(2)}:
                agent.told.clear()
                await agent.told.wait()
            watch = agent.control.Watch(control.WatchRequest(kinds=[ObjectKind.OBJECT_KIND_STACK]))
            await agent.control.RemoveStack(control.RemoveStackRequest(name="shop"))
            async for event in watch:
                if event.action == control.WATCH_ACTION_REMOVED:
                    break
            watch.cancel()
            await agent.until(0)

    with_manager(tmp_path, story)


def test_refusals_change_nothing_and_say_why(tmp_path: Path) -> None:
    """An unknown image, a taken port, a bad constraint and an unknown name are refused in three parts."""

    async def story(manager: ManagerProcess) -> None:
        async with attached(manager) as agent:
            spec = web_stack(1)
            spec.services[0].task.container.image = "absent:1"
            with (
                pytest.raises(
                    FailedPrecondition,
                    match=r"the registry of image absent:1 did not give it: .*build it",
                ) as caught,
                rpc_errors(),
            ):
                await agent.control.ApplyStack(control.ApplyStackRequest(spec=spec))
            assert caught.value.what == "cannot deploy stack shop"
            await agent.control.ApplyStack(control.ApplyStackRequest(spec=web_stack(1)))
            other = web_stack(1)
            other.name = other.services[0].annotations.name = "blog"
            other.networks[0].annotations.name = other.services[0].task.networks[0].target = "blog_default"
            with (
                pytest.raises(FailedPrecondition, match=r"8080/tcp is published by service shop_web"),
                rpc_errors(),
            ):
                await agent.control.ApplyStack(control.ApplyStackRequest(spec=other))
            other.services[0].task.placement.constraints.append("zone == a")
            with pytest.raises(InvalidArgument, match="there is no key 'zone'"), rpc_errors():
                await agent.control.ApplyStack(control.ApplyStackRequest(spec=other))
            with pytest.raises(NotFound, match="no service has this name or id"), rpc_errors():
                await agent.control.Get(control.GetRequest(kind=ObjectKind.OBJECT_KIND_SERVICE, reference="nothing"))
            stacks = await agent.control.List(control.ListRequest(kind=ObjectKind.OBJECT_KIND_STACK))
            assert [each.stack.annotations.name for each in stacks.objects] == ["shop"]

    with_manager(tmp_path, story)


def test_a_secret_never_leaves_through_the_control_api(tmp_path: Path) -> None:
    """Its content is in no answer: not in Create, Get, List, Watch, nor in the stack's history."""

    async def story(manager: ManagerProcess) -> None:
        async with attached(manager) as agent:
            spec = web_stack(1)
            spec.secrets.add(data=b"hunter2").annotations.name = "shop_key"
            spec.services[0].task.container.secrets.add(secret_name="shop_key")
            answers = [await agent.control.ApplyStack(control.ApplyStackRequest(spec=spec))]
            create = control.CreateRequest()
            create.spec.secret.annotations.name = "other"
            create.spec.secret.data = b"hunter2"
            answers.append(await agent.control.Create(create))
            answers += [await agent.control.List(control.ListRequest(kind=kind)) for kind in ObjectKind.values()[1:]]
            watch = agent.control.Watch(control.WatchRequest())
            async for event in watch:
                answers.append(event)
                if event.action == control.WATCH_ACTION_SNAPSHOT_END:
                    break
            watch.cancel()
            assert not [each for each in answers if b"hunter2" in each.SerializeToString()]
            remove = control.RemoveRequest(kind=ObjectKind.OBJECT_KIND_SECRET, reference="shop_key")
            with pytest.raises(FailedPrecondition, match="it is used by service shop_web"), rpc_errors():
                await agent.control.Remove(remove)
            remove.reference = "other"
            await agent.control.Remove(remove)

    with_manager(tmp_path, story)


def test_logs_and_exec_are_piped_through_the_manager(tmp_path: Path) -> None:
    """Lines of all tasks come in order of time; input and output pass both ways; the exit code is the last word."""

    async def story(manager: ManagerProcess) -> None:
        async with attached(manager) as agent:
            await agent.control.ApplyStack(control.ApplyStackRequest(spec=web_stack(2)))
            await agent.until(2)
            lines = []
            async for batch in agent.control.Logs(control.LogsRequest(targets=["shop_web"])):
                lines += [line.line for line in batch.lines]
            assert lines == [b"line 0", b"line 0", b"line 1", b"line 1"]
            while True:
                info = await agent.control.ClusterInfo(control.ClusterInfoRequest())
                if info.tasks_by_state["running"] == 2:
                    break
                await asyncio.sleep(0.01)
            call = agent.control.Exec()
            await call.write(control.ExecRequest(start=control.ExecStart(target="shop_web.2")))
            await call.write(control.ExecRequest(input=RelayInput(data=b"hello")))
            assert (await call.read()).exec_output.stdout == b"HELLO"
            await call.write(control.ExecRequest(input=RelayInput(end_of_data=True)))
            assert (await call.read()).result.exit_code == 7
            await call.done_writing()

    with_manager(tmp_path, story)


def test_a_second_manager_on_the_same_state_is_refused(tmp_path: Path) -> None:
    """The state folder belongs to one process; the other ends with the status that says a restart does not help."""

    async def story(manager: ManagerProcess) -> None:
        del manager
        other = ["--state-dir", tmp_path / "state", "--run-dir", tmp_path, "--node-id", "x", "--metrics-address", ""]
        command = [sys.executable, "-m", "orch_manager", *map(str, other)]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, errors = await process.communicate()
        assert process.returncode == 3
        assert b"another process has it locked" in errors

    with_manager(tmp_path, story)
