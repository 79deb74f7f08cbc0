"""A leader that was replaced and has not heard of it must not answer from its old state.

What it writes is safe: it finds no majority. But a refusal (there is no such thing, it exists already) or "nothing to
change" needs no write. So an answer that wrote nothing is given only after a majority has confirmed that this manager
still led, in the same term, when the answer was found: the rule of ReadIndex (Raft thesis, section 6.4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from orch_manager.faults import NotLeading, told_as
from orch_manager.forwarding.methods import Method
from orch_manager.store.writes import observed_writes
from orch_proto import defaults
from orch_raft.engine import EngineStatus, Role
from orch_rpc.errors import OrchError, OutcomeUnknown, Unauthenticated, Unavailable

_LIMIT_S: Final = defaults.LEADER_WAIT_MS / 1000
_Behaviour = Callable[[Any, Any], Awaitable[Any]]
#: They tell nothing of the state.
_SAY_NOTHING: Final = (Unavailable, OutcomeUnknown, Unauthenticated)


class Voucher:
    """See the module.

    Args:
        status: the consensus engine's.
        read_barrier: returns once a majority has confirmed that this manager's state is not old.
    """

    def __init__(self, status: Callable[[], EngineStatus], read_barrier: Callable[[], Awaitable[int]]) -> None:
        self._status = status
        self._read_barrier = read_barrier

    def vouched(self, method: Method, behaviour: _Behaviour) -> _Behaviour:
        """What answers a method, with this care."""

        async def answer(request: Any, context: Any) -> Any:
            term = self._status().term
            with observed_writes() as writes:
                try:
                    reply = await behaviour(request, context)
                except _SAY_NOTHING:
                    raise
                except OrchError:
                    if not writes.any:
                        await self._confirm(method, term)
                    raise
            if not writes.any:
                await self._confirm(method, term)
            return reply

        return answer

    async def _confirm(self, method: Method, term: int) -> None:
        """Returns when this manager still leads in a term.

        Raises:
            NotLeading: it does not; nothing was done.
            Unavailable: nobody confirms it; nothing was done.
        """
        what = f"cannot answer {method.path.rpartition('/')[2]}"
        try:
            async with asyncio.timeout(_LIMIT_S):
                with told_as(what):
                    await self._read_barrier()
        except TimeoutError as error:
            why = "no majority of the managers confirmed that this one still leads; nothing was changed"
            raise Unavailable(what, why, "try again soon, and look at the managers with orch cluster info") from error
        status = self._status()
        if status.role is not Role.LEADER or status.term != term:
            raise NotLeading(what)
