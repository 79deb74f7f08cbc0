"""The joiner's side: asks to be a member until it is one; asks again when its address has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from orch_manager.members.view import own_member
from orch_proto import defaults
from orch_proto.raft_pb2 import RaftJoinRequest
from orch_proto.raft_pb2_grpc import RaftStub
from orch_raft.engine import Engine
from orch_rpc import logs
from orch_rpc.addresses import Address, parse_address
from orch_rpc.errors import OrchError, rpc_errors
from orch_rpc.tls import ManagerChannels

_log = logs.get("members")
_FIRST_PAUSE_S: Final = 0.1
_LAST_PAUSE_S: Final = 3.0
#: How long an accepted joiner waits for its leader's first word before it asks again.
_ADMITTED_S: Final = 3.0
_POLL_S: Final = 0.02
_CALL_TIMEOUT_S: Final = defaults.RPC_TIMEOUT_MS / 1000


class Joining:
    """See the module.

    Args:
        engine: of consensus, which runs.
        channels: to other managers.
        node_id: this node.
        address: where this manager is reached.
        first: managers that were named on the command line.
    """

    def __init__(
        self, engine: Engine, channels: ManagerChannels, *, node_id: str, address: Address, first: Sequence[Address]
    ) -> None:
        self._engine = engine
        self._channels = channels
        self._node_id = node_id
        self._address = address
        self._first = first

    def _is_done(self) -> bool:
        member = own_member(self._engine.status())
        return member is not None and member.address == str(self._address)

    def _managers(self) -> list[Address]:
        known = [parse_address(each.address) for each in self._engine.status().members if each.address]
        return [each for each in dict.fromkeys((*self._first, *known)) if each != self._address]

    async def run(self) -> None:
        """Returns when this manager is a member under its address, and for one that is alone."""
        pause_s = _FIRST_PAUSE_S
        turn = 0
        while not self._is_done():
            managers = self._managers()
            if not managers:
                return  # nobody to ask: a member that is alone keeps the address that it has
            address = managers[turn % len(managers)]
            turn += 1
            try:
                await self._ask(address)
            except OrchError as error:
                _log.warning("not admitted yet, asking again", manager=address, reason=error)
                self._channels.drop(address)
            else:
                if await self._settled():
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LAST_PAUSE_S)

    async def _ask(self, address: Address) -> None:
        request = RaftJoinRequest(
            node_id=self._node_id, address=str(self._address), raft_id=self._engine.status().member_id
        )
        with rpc_errors(f"join the managers through {address}"):
            answer = await RaftStub(self._channels.get(address)).Join(request, timeout=_CALL_TIMEOUT_S)
        _log.info("admitted to the managers", through=address, managers=len(answer.membership.members))
        if answer.advice:
            _log.warning("number of managers", advice=answer.advice)

    async def _settled(self) -> bool:
        deadline_s = asyncio.get_running_loop().time() + _ADMITTED_S
        while not self._is_done():
            if asyncio.get_running_loop().time() > deadline_s:
                return False
            await asyncio.sleep(_POLL_S)
        return True
