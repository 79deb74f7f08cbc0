"""Serves the relayed calls about one running container."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from orch_agent import logs as container_logs
from orch_agent.containers.caller import Caller, Stream
from orch_agent.containers.command import Command
from orch_agent.containers.conversation import Conversation
from orch_agent.containers.copying import Copy, open_root
from orch_agent.containers.processes import read_processes
from orch_agent.errors import LinkLost, LinkRefused, RelayFailed
from orch_agent.task.controller import TaskController
from orch_proto import node_pb2 as calls
from orch_rpc import logs
from orch_runtime import names

log = logs.get("containers")
#: The kinds of RelayCall that are served here.
KINDS = frozenset({"exec", "copy_out", "copy_in", "processes", "pause", "attach"})
MAX_CALLS = 128
MAX_DETACHED = 64


class ContainerCalls:
    """See the module.

    Args:
        runtime_socket: the supervisor's.
        controllers: gives the node's tasks.
        log_path: where the output of a task is kept.
    """

    def __init__(
        self,
        runtime_socket: Path,
        controllers: Callable[[], dict[str, TaskController]],
        log_path: Callable[[str], Path],
    ) -> None:
        self._runtime_socket = runtime_socket
        self._controllers = controllers
        self._log_path = log_path
        self._detached: set[asyncio.Task[None]] = set()
        self._under_way = 0

    async def serve(self, call: calls.RelayCall, stream: Stream) -> None:
        """Serves one call to its end.

        Raises:
            RelayFailed: it cannot be served.
            LinkLost: the runtime went away.
        """
        kind = call.WhichOneof("call")
        assert kind is not None
        task_id = getattr(call, kind).task_id
        controller = self._controllers().get(task_id)
        if controller is None or controller.is_over:
            raise RelayFailed("NOT_FOUND", f"task {task_id} does not run on this node any more; look: orch ps -a")
        if self._under_way >= MAX_CALLS:
            raise RelayFailed("RESOURCE_EXHAUSTED", f"{MAX_CALLS} such calls are under way on this node; end some")
        self._under_way += 1
        try:
            await self._serve(kind, call, controller, Caller(stream))
        except LinkRefused as error:
            raise RelayFailed("FAILED_PRECONDITION", str(error)) from error
        finally:
            self._under_way -= 1

    async def _serve(self, kind: str, call: calls.RelayCall, controller: TaskController, caller: Caller) -> None:
        task_id = controller.task.id
        async with AsyncExitStack() as stack:
            conversation = await stack.enter_async_context(Conversation(self._runtime_socket))
            match kind:
                case "exec":
                    command = Command(call.exec, caller, conversation)
                    await command.run()
                    if command.detached:
                        self._leave_alone(command, stack.pop_all())
                case "copy_out":
                    wish = {"work": "out", "path": call.copy_out.path, "follow_link": call.copy_out.follow_link}
                    async with Copy(await open_root(task_id, conversation), wish) as copy:
                        await copy.send_out(caller)
                    await caller.say(calls.RelayOutput(result=calls.RelayResult()))
                case "copy_in":
                    await self._copy_in(call.copy_in, caller, conversation)
                case "processes":
                    answer = await conversation.call(names.OP_PROCESSES, {"id": task_id})
                    pid = controller.status.container.pid
                    found = await asyncio.to_thread(read_processes, answer["pids"], pid)
                    await caller.say(calls.RelayOutput(result=calls.RelayResult(processes=found)))
                case "pause":
                    operation = names.OP_PAUSE if call.pause.paused else names.OP_RESUME
                    await conversation.call(operation, {"id": task_id})
                    controller.note_pause(paused=call.pause.paused)
                    await caller.say(calls.RelayOutput(result=calls.RelayResult()))
                case _:
                    await self._attach(controller, caller, conversation)

    def _leave_alone(self, command: Command, kept: AsyncExitStack) -> None:
        """Lets a detached command run on; it ends with the agent at the latest."""

        async def stay() -> None:
            async with kept:
                await command.stay()

        task = asyncio.get_running_loop().create_task(stay())
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)
        if len(self._detached) > MAX_DETACHED:
            log.warning("exec.too_many_detached", limit=MAX_DETACHED)
            next(iter(self._detached)).cancel()

    @staticmethod
    async def _copy_in(call: calls.CopyInCall, caller: Caller, conversation: Conversation) -> None:
        wish: dict[str, object] = {
            "work": "in",
            "path": call.path,
            "source_name": call.source_name,
            "contents_only": call.contents_only,
            "source_is_directory": call.source_is_directory,
            "keep_owners": call.keep_owners,
        }
        async with Copy(await open_root(call.task_id, conversation), wish) as copy:
            await caller.say(calls.RelayOutput(ready=True))
            await copy.take_in(caller)
        await caller.say(calls.RelayOutput(result=calls.RelayResult()))

    async def _attach(self, controller: TaskController, caller: Caller, conversation: Conversation) -> None:
        """Output from now on; signals go to the container's first process; ends with the task, or with the caller."""
        loop = asyncio.get_running_loop()
        following = loop.create_task(self._follow(controller, caller))
        listening = loop.create_task(self._pass_signals(controller.task.id, caller, conversation))
        try:
            await caller.say(calls.RelayOutput(ready=True))
            await asyncio.wait({following, listening}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
                status = controller.status.container
                code = status.exit_code if status.HasField("exit_code") else None
                await caller.say(calls.RelayOutput(result=calls.RelayResult(exit_code=code)))
                await caller.finish(listening)
        finally:
            following.cancel()
            listening.cancel()

    async def _follow(self, controller: TaskController, caller: Caller) -> None:
        options = calls.LogsOptions(follow=True, tail_lines=0)
        path = self._log_path(controller.task.id)
        async for records in container_logs.stream_records(path, options, controller.output_over):
            for record in records:
                output = calls.ExecOutput()
                setattr(output, "stderr" if record.stream == "stderr" else "stdout", record.line)
                await caller.say(calls.RelayOutput(exec_output=output))

    @staticmethod
    async def _pass_signals(task_id: str, caller: Caller, conversation: Conversation) -> None:
        while (frame := await caller.next_input()) is not None:
            if frame.WhichOneof("input") == "signal":
                try:
                    await conversation.call(names.OP_KILL, {"id": task_id, "signal": frame.signal})
                except (LinkRefused, LinkLost) as error:
                    log.info("attach.signal_unsent", task=task_id, why=str(error))
