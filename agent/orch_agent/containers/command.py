"""A command in a running container, with the caller's terminal or streams (`orch exec`)."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from orch_agent.containers.caller import Caller
from orch_agent.containers.conversation import Conversation
from orch_agent.containers.descriptors import read_some, receive_descriptor, write_all
from orch_agent.errors import LinkLost, LinkRefused
from orch_proto import node_pb2 as calls
from orch_runtime import names

LIMIT_MS = 24 * 3600 * 1000


class Command:
    """One command, from its start to its end.

    Args:
        call: what to run.
        caller: who asked.
        conversation: with the supervisor; the command ends with it.
    """

    def __init__(self, call: calls.ExecCall, caller: Caller, conversation: Conversation) -> None:
        self._call = call
        self._caller = caller
        self._conversation = conversation
        self._over = asyncio.Event()
        self._stdin = -1
        self._outputs: list[tuple[int, str]] = []
        self._sequence = 0
        self._pumps: list[asyncio.Task[None]] = []
        self.detached = False

    # ---- from start to end ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs the command until it ends, its caller leaves, or wants it to go on alone (``detached`` is set then).

        Raises:
            LinkLost: the runtime is away.
        """
        answer = await (self._begin_on_terminal() if self._call.tty else self._begin_on_pipes())
        loop = asyncio.get_running_loop()
        self._pumps = [loop.create_task(self._pump(fd, stream)) for fd, stream in self._outputs]
        telling = loop.create_task(self._tell_start())
        listening = loop.create_task(self._listen())
        try:
            waiting: set[asyncio.Future[Any]] = {answer, listening}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                await self._finish(answer)
                await self._caller.finish(listening)
            elif self.detached:
                await self._caller.say(calls.RelayOutput(result=calls.RelayResult()))
                self._caller.has_left = True
                self._close_stdin()
            else:
                listening.result()
        finally:
            telling.cancel()
            listening.cancel()
            if not self.detached:
                self.close()
        self._answer = answer

    async def stay(self) -> None:
        """After ``run`` left it detached: reads and drops its output until it ends."""
        try:
            await asyncio.wait({self._answer})
            self._over.set()
            await asyncio.wait(self._pumps)
        finally:
            self.close()

    def close(self) -> None:
        """Lets go of the command's streams; a terminal that goes away hangs its programs up."""
        self._over.set()
        for pump in self._pumps:
            pump.cancel()
        self._close_stdin(at_end=True)
        for descriptor, _ in self._outputs:
            os.close(descriptor)
        self._outputs = []

    # ---- beginning -----------------------------------------------------------------------------------

    def _fields(self) -> dict[str, Any]:
        call = self._call
        env = list(call.env)
        if call.tty and not any(entry.startswith("TERM=") for entry in env):
            env.append("TERM=xterm")
        return {
            "id": call.task_id,
            "args": list(call.command),
            "env": env,
            "user": call.user,
            "cwd": call.working_dir,
            "timeout_ms": LIMIT_MS,
            "terminal": call.tty,
            "rows": call.rows,
            "columns": call.columns,
        }

    async def _begin_on_pipes(self) -> asyncio.Future[dict[str, Any]]:
        theirs: list[int] = []
        try:
            for number, stream in ((0, ""), (1, "stdout"), (2, "stderr")):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                ours = writer if number == 0 else reader
                theirs.append(reader if number == 0 else writer)
                os.set_blocking(ours, False)
                if number == 0:
                    self._stdin = ours
                else:
                    self._outputs.append((ours, stream))
            self._sequence, answer = self._conversation.send(names.OP_EXEC, self._fields(), theirs)
        except BaseException:
            self.close()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        if not self._call.interactive:
            self._close_stdin()
        return answer

    async def _begin_on_terminal(self) -> asyncio.Future[dict[str, Any]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.setblocking(False)  # noqa: FBT003 -- the library's own
            self._sequence, answer = self._conversation.send(names.OP_EXEC, self._fields(), [theirs.fileno()])
            theirs.close()
            receiving = asyncio.get_running_loop().create_task(receive_descriptor(ours))
            try:
                waiting: set[asyncio.Future[Any]] = {answer, receiving}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                terminal = receiving.result() if receiving.done() else -1
            finally:
                receiving.cancel()
                await asyncio.wait({receiving})
        if terminal >= 0:
            os.set_blocking(terminal, False)
            self._stdin = terminal
            self._outputs = [(terminal, "stdout")]
        return answer

    # ---- while it runs -------------------------------------------------------------------------------

    async def _tell_start(self) -> None:
        await self._conversation.started.wait()
        await self._caller.say(calls.RelayOutput(ready=True))

    async def _pump(self, descriptor: int, stream: str) -> None:
        while data := await read_some(descriptor, self._over):
            output = calls.ExecOutput(stdout=data) if stream == "stdout" else calls.ExecOutput(stderr=data)
            await self._caller.say(calls.RelayOutput(exec_output=output))

    async def _listen(self) -> None:
        """Carries out what the caller says, until it leaves."""
        while (frame := await self._caller.next_input()) is not None:
            match frame.WhichOneof("input"):
                case "data":
                    if self._stdin >= 0 and not await write_all(self._stdin, frame.data, self._over):
                        self._close_stdin()
                case "end_of_data":
                    self._close_stdin()
                case "resize":
                    self._resize(frame.resize)
                case "signal":
                    await self._signal(frame.signal)
                case "detach":
                    self.detached = True
                    return

    def _resize(self, size: calls.TerminalSize) -> None:
        import fcntl  # noqa: PLC0415 -- a terminal is rare
        import struct  # noqa: PLC0415
        import termios  # noqa: PLC0415

        if self._call.tty and self._outputs and max(size.rows, size.columns) < 65536:
            window = struct.pack("HHHH", size.rows, size.columns, 0, 0)
            fcntl.ioctl(self._outputs[0][0], termios.TIOCSWINSZ, window)

    async def _signal(self, number: int) -> None:
        try:
            await self._conversation.call(names.OP_EXEC_SIGNAL, {"exec": self._sequence, "signal": number})
        except (LinkRefused, LinkLost):
            return  # it has ended meanwhile, which its answer tells

    def _close_stdin(self, *, at_end: bool = False) -> None:
        """Ends the command's input; a terminal is also its output, so it stays."""
        descriptor, self._stdin = self._stdin, -1
        if descriptor >= 0 and not self._call.tty:
            asyncio.get_running_loop().remove_writer(descriptor)
            os.close(descriptor)
        elif not at_end:
            self._stdin = descriptor

    # ---- its end -------------------------------------------------------------------------------------

    async def _finish(self, answer: asyncio.Future[dict[str, Any]]) -> None:
        """All that the command has written, then how it ended; a process it left behind may hold its streams on."""
        self._over.set()
        try:
            result = answer.result()
        except (LinkRefused, LinkLost) as error:
            # Said here, while the stream lasts: the caller's frames are no longer read after this.
            failure = calls.CallError(code="FAILED_PRECONDITION", message=str(error))
            await self._caller.say(calls.RelayOutput(error=failure))
            return
        if self._pumps:
            await asyncio.wait(self._pumps)
        why = str(result.get("output", ""))
        if why:
            message = calls.ExecOutput(stderr=f"orch: cannot run the command: {why}\n".encode())
            await self._caller.say(calls.RelayOutput(exec_output=message))
        if result.get("timed_out"):
            message = calls.ExecOutput(stderr=b"orch: the command was ended: it ran for 24 hours\n")
            await self._caller.say(calls.RelayOutput(exec_output=message))
        await self._caller.say(calls.RelayOutput(result=calls.RelayResult(exit_code=int(result["exit_code"]))))
