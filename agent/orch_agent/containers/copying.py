"""Files out of a running container and into it (`orch cp`): the work of a process of its own, beneath its root."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from typing import Self

from orch_agent.containers.caller import Caller
from orch_agent.containers.conversation import Conversation
from orch_agent.errors import RelayFailed
from orch_proto import node_pb2 as calls
from orch_runtime import names
from orch_runtime.protocol import STATUS_PAUSED, STATUS_RUNNING

FRAME_BYTES = 128 * 1024
END_WAIT_S = 5.0
MAX_COMPLAINT_BYTES = 65536


async def open_root(container_id: str, conversation: Conversation) -> int:
    """A descriptor of the container's root folder, in its own view of mounts.

    Raises:
        RelayFailed: the container does not run.
    """
    pid = await _pid_of(container_id, conversation)
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RelayFailed("FAILED_PRECONDITION", "the container has just ended; look at it: orch ps -a") from error
    same = False
    try:
        # Asked again, as the pid might have been another process's by the time it was opened.
        same = await _pid_of(container_id, conversation) == pid
    finally:
        if not same:
            os.close(root)
    if not same:
        raise RelayFailed("FAILED_PRECONDITION", "the container has just ended; look at it: orch ps -a")
    return root


async def _pid_of(container_id: str, conversation: Conversation) -> int:
    state = await conversation.call(names.OP_STATE, {"id": container_id})
    if state["status"] not in (STATUS_RUNNING, STATUS_PAUSED):
        raise RelayFailed(
            "FAILED_PRECONDITION", f"the container is {state['status']}; files are copied while it runs only"
        )
    return int(state["pid"])


class Copy:
    """One copy by a worker process, which is ended with it.

    Args:
        root: descriptor of the container's root folder; taken over.
        wish: what `orch_agent.containers.copy_worker` is to do.
    """

    def __init__(self, root: int, wish: dict[str, object]) -> None:
        self._root = root
        self._wish = wish
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-m",
                "orch_agent.containers.copy_worker",
                json.dumps({**self._wish, "root": self._root}),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(self._root,),
                start_new_session=True,
            )
        finally:
            os.close(self._root)
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            async with asyncio.timeout(END_WAIT_S):
                await process.wait()

    async def send_out(self, caller: Caller) -> None:
        """Passes the tar on to the caller.

        Raises:
            RelayFailed: the worker could not make it.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(FRAME_BYTES):
            await caller.say(calls.RelayOutput(data=data))
        await self._check()

    async def take_in(self, caller: Caller) -> None:
        """Feeds the worker with the caller's tar.

        Raises:
            RelayFailed: the caller went away, or the worker could not place the files.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            while (frame := await caller.next_input()) is not None:
                kind = frame.WhichOneof("input")
                if kind == "data":
                    self._process.stdin.write(frame.data)
                    await self._process.stdin.drain()
                elif kind == "end_of_data":
                    self._process.stdin.close()
                    await self._check()
                    return
        except (BrokenPipeError, ConnectionResetError):
            await self._check()
            return
        raise RelayFailed("CANCELLED", "the caller went away while files were copied; what had arrived is there")

    async def _check(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        complaint = await self._process.stderr.read(MAX_COMPLAINT_BYTES)
        code = await self._process.wait()
        if code == 0:
            return
        try:
            said = json.loads(complaint)
        except ValueError as error:
            text = complaint.decode(errors="replace")[-500:]
            raise RelayFailed("INTERNAL", f"the copying process ended with status {code}: {text}") from error
        raise RelayFailed(str(said["code"]), str(said["error"]))
