"""Clients of a cluster's managers that write down what they asked and what they were told.

Registers are configs: their content cannot change, so what is written is a label. The elements of the set are secrets,
as a list shows all objects of a kind. Each client talks to one manager, through the socket of its node.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from linearizability.explain import assert_linearizable
from linearizability.history import NEVER_NS, Action, History, Operation, Outcome
from linearizability.models import GrowingSet, Register
from orch_proto import control_pb2 as control
from orch_proto import types_pb2
from orch_proto.control_pb2_grpc import ControlStub
from orch_proto.specs_pb2 import ConfigSpec, SecretSpec

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub

CALL_LIMIT_S = 5.0
LABEL = "value"
KEYS = ("a", "b", "c", "d")
_PAUSE_S = (0.002, 0.03)
_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]
_INFORMATIVE = {
    grpc.StatusCode.ALREADY_EXISTS: Outcome.EXISTS,
    grpc.StatusCode.NOT_FOUND: Outcome.MISSING,
    grpc.StatusCode.ABORTED: Outcome.OUT_OF_DATE,
}
#: What orch says when it did nothing; without its three-part message the same may come from a broken connection.
_NOT_DONE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


def judged(error: grpc.aio.AioRpcError) -> Outcome | None:
    """What a failed call tells of the state; None when it was certainly not done, and tells nothing.

    Raises:
        AssertionError: an answer that no correct server gives, as a defect would.
    """
    code, details = error.code(), error.details() or ""
    from_orch = "\n" in details
    if from_orch and code in _INFORMATIVE:
        return _INFORMATIVE[code]
    if from_orch and code in _NOT_DONE:
        return None
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith("failed to connect"):
        return None  # nothing was sent
    if code in _LOST:
        return Outcome.UNKNOWN
    raise AssertionError(f"the manager answered {code.name}: {details}") from error


@dataclass
class Client:
    """One client: one call at a time.

    Args:
        name: for the history.
        socket: of its manager.
        history: where it writes.
        chance: what it does next.
        run: of which run it is; registers and elements bear its name, as those of other runs may still be there.
        stale: whether it is content with reads that are not linearizable.
        known: versions that it saw last, by key.
    """

    name: str
    socket: Path
    history: History
    chance: random.Random
    run: str
    stale: bool = False
    known: dict[str, int] = field(default_factory=dict)
    #: Updates whose answer showed a later write in place of their own.
    overtaken: int = 0
    _number: int = 0

    async def work(self, stop: asyncio.Event) -> None:
        """Asks until told to stop."""
        async with self.connected() as channel:
            stub: ControlAsyncStub = ControlStub(channel)
            while not stop.is_set():
                await self._one(stub)
                await asyncio.sleep(self.chance.uniform(*_PAUSE_S))

    @property
    def keys(self) -> list[str]:
        """The registers of the run."""
        return [f"reg-{self.run}-{key}" for key in KEYS]

    def connected(self) -> grpc.aio.Channel:
        """A channel to the client's manager."""
        return grpc.aio.insecure_channel(f"unix:{self.socket}", options=_CHANNEL_OPTIONS)

    async def _one(self, stub: ControlAsyncStub) -> None:
        key = self.chance.choice(self.keys)
        dice = self.chance.random()
        if dice < 0.35:
            await self.read(stub, key)
        elif dice < 0.65:
            await self.write(stub, key, base=self.known.get(key, 0))
        elif dice < 0.70:
            await self.write(stub, key, base=0)
        elif dice < 0.80:
            await self.create(stub, key)
        elif dice < 0.83:
            await self.remove(stub, key)
        elif dice < 0.94:
            await self.add(stub)
        else:
            await self.list(stub)

    # ---- registers -------------------------------------------------------------------------------

    async def read(self, stub: ControlAsyncStub, key: str) -> None:
        """Reads a register."""
        request = control.GetRequest(kind=types_pb2.OBJECT_KIND_CONFIG, reference=key, stale=self.stale)
        answer = await self._ask(Action.READ, key, stub.Get, request, shown=_config)
        if answer is not None:
            self.known[key] = answer["version"]

    async def create(self, stub: ControlAsyncStub, key: str) -> None:
        """Makes a register."""
        spec = self._spec(key)
        request = control.CreateRequest(spec=control.Spec(config=spec))
        await self._write(Action.CREATE, key, stub.Create, request, value=spec.annotations.labels[LABEL])

    async def write(self, stub: ControlAsyncStub, key: str, *, base: int) -> None:
        """Changes a register, if it is still at the version ``base``; 0: in any case."""
        spec = self._spec(key)
        request = control.UpdateRequest(
            kind=types_pb2.OBJECT_KIND_CONFIG, id=key, version_index=base, spec=control.Spec(config=spec)
        )
        await self._write(Action.WRITE, key, stub.Update, request, value=spec.annotations.labels[LABEL], base=base)

    async def remove(self, stub: ControlAsyncStub, key: str) -> None:
        """Removes a register."""
        request = control.RemoveRequest(kind=types_pb2.OBJECT_KIND_CONFIG, reference=key)
        await self._ask(Action.REMOVE, key, stub.Remove, request, shown=lambda _: {})

    def _spec(self, key: str) -> ConfigSpec:
        spec = ConfigSpec(data=b"x")
        spec.annotations.name = key
        spec.annotations.labels[LABEL] = self._unique()
        return spec

    def _unique(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"

    async def _write(
        self,
        action: Action,
        key: str,
        call: Callable[..., Awaitable[Any]],
        request: Any,
        *,
        value: str,
        base: int = 0,
    ) -> None:
        def shown(answer: Any) -> dict[str, Any]:
            found = _config(answer)
            if found["value"] != value:
                self.overtaken += 1
                return {"version": 0}
            return {"version": found["version"]}

        answer = await self._ask(action, key, call, request, shown=shown, value=value, base=base)
        if answer is not None and answer["version"]:
            self.known[key] = answer["version"]

    # ---- the set ---------------------------------------------------------------------------------

    async def add(self, stub: ControlAsyncStub) -> None:
        """Adds an element that nobody else adds."""
        spec = SecretSpec(data=b"x")
        spec.annotations.name = f"set-{self.run}-{self._unique()}"
        request = control.CreateRequest(spec=control.Spec(secret=spec))
        await self._ask(Action.ADD, "", stub.Create, request, shown=lambda _: {}, value=spec.annotations.name)

    async def list(self, stub: ControlAsyncStub) -> None:
        """Reads the whole set."""
        request = control.ListRequest(kind=types_pb2.OBJECT_KIND_SECRET, stale=self.stale)
        await self._ask(Action.LIST, "", stub.List, request, shown=self._elements)

    def _elements(self, answer: control.ListResponse) -> dict[str, Any]:
        names = (one.secret.spec.annotations.name for one in answer.objects)
        return {"elements": frozenset(name for name in names if name.startswith(f"set-{self.run}-"))}

    # ---- any call --------------------------------------------------------------------------------

    async def _ask(
        self,
        action: Action,
        key: str,
        call: Callable[..., Awaitable[Any]],
        request: Any,
        *,
        shown: Callable[[Any], dict[str, Any]],
        **asked: Any,
    ) -> dict[str, Any] | None:
        """Makes a call and records it; what the answer shows, or None when the call was not done."""
        invoked_ns = self.history.now_ns()
        outcome, answer = Outcome.DONE, {}
        try:
            metadata = (("orch-stale", "1"),) if self.stale else ()
            answer = shown(await call(request, timeout=CALL_LIMIT_S, metadata=metadata))
        except grpc.aio.AioRpcError as error:
            judgement = judged(error)
            if judgement is None:
                why = (error.details() or "").split("\n")
                self.history.refuse(why[1] if len(why) > 1 else "nobody listens")
                return None
            outcome = judgement
        answered_ns = NEVER_NS if outcome is Outcome.UNKNOWN else self.history.now_ns()
        fields = {**asked, **answer}
        self.history.add(Operation(self.name, action, key, invoked_ns, answered_ns, outcome, **fields))
        return answer if outcome is Outcome.DONE else None


def _config(answer: Any) -> dict[str, Any]:
    found = answer.object.config
    return {"value": found.spec.annotations.labels[LABEL], "version": found.meta.version_index}


@dataclass(frozen=True)
class Ran:
    """What is left of a run.

    Attributes:
        history: what the clients saw, the last reads included.
        clients: who they were.
        last_reads_failed: how many of the reads at the end had no answer.
    """

    history: History
    clients: list[Client]
    last_reads_failed: int = 0

    def assert_linearizable(self) -> None:
        """Checks every register and the set.

        Raises:
            NotLinearizable: no order explains what the clients saw.
        """
        in_set = {Action.ADD, Action.LIST}
        operations = self.history.operations
        assert_linearizable(Register(), [one for one in operations if one.action not in in_set])
        assert_linearizable(GrowingSet(), [one for one in operations if one.action in in_set])


def acknowledged(history: History) -> int:
    """How many writes were acknowledged."""
    writes = {Action.CREATE, Action.WRITE, Action.ADD, Action.REMOVE}
    return sum(one.action in writes and one.outcome is Outcome.DONE for one in history.operations)


async def run_clients(
    sockets: Sequence[Path],
    disturb: Callable[[], None],
    *,
    seed: str,
    clients_each: int = 2,
    history: History | None = None,
    quiesce: Callable[[], None] = lambda: None,
) -> Ran:
    """Runs clients at every manager while ``disturb`` works in a thread; at its end everybody reads everything.

    Args:
        sockets: of the managers.
        disturb: breaks things, and takes as long as the run shall take.
        seed: of the clients' choices, and the run's name; used once in a cluster.
        clients_each: clients at each manager.
        history: to write to; else one of the run's own.
        quiesce: called before the last reads; waits until every manager answers.
    """
    history = history if history is not None else History()
    clients = [
        Client(f"n{node}c{number}", socket, history, random.Random(f"{seed} {node} {number}"), seed)
        for node, socket in enumerate(sockets, 1)
        for number in range(1, clients_each + 1)
    ]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.work(stop))
        try:
            await asyncio.to_thread(disturb)
        finally:
            stop.set()
    await asyncio.to_thread(quiesce)
    before, asked = len(history.operations), 0
    for client in clients[::clients_each]:
        async with client.connected() as channel:
            stub: ControlAsyncStub = ControlStub(channel)
            for key in client.keys:
                await client.read(stub, key)
            await client.list(stub)
            asked += len(client.keys) + 1
    return Ran(history, clients, before + asked - len(history.operations))
