"""Changes of the members of Raft, one at a time, and handing leadership over."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from orch_manager.members.view import leads, members_of
from orch_proto import defaults
from orch_raft.core.ready import RefusalReason
from orch_raft.engine import Engine, Member, MembershipAction, MembershipChange
from orch_raft.errors import MembershipError
from orch_rpc import logs

_log = logs.get("members")
_TIMEOUT_S: Final = defaults.PROPOSAL_TIMEOUT_MS / 1000
#: How long a change waits for the one before it, and for a new leader's first entry.
_TURN_S: Final = 5.0
_PAUSE_S: Final = 0.02
_HAND_OVER_S: Final = 2.0
#: What passes by itself.
_PASSING: Final = (RefusalReason.CHANGE_IN_FLIGHT, RefusalReason.TERM_NOT_COMMITTED)


class Changes:
    """See the module.

    Args:
        engine: of consensus.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Held while somebody decides upon the members as they are, and changes them.
        self.lock = asyncio.Lock()

    async def make(self, action: MembershipAction, member: Member) -> None:
        """Makes one change; to be called with the lock held.

        Raises:
            MembershipError: it is refused; nothing was changed.
            ProposalError: this manager leads no longer, or the outcome is unknown.
        """
        until_s = asyncio.get_running_loop().time() + _TURN_S
        while True:
            try:
                await self._engine.change_membership(MembershipChange(action, member), timeout_s=_TIMEOUT_S)
            except MembershipError as error:
                passing = any(reason.value in str(error) for reason in _PASSING)
                if not passing or asyncio.get_running_loop().time() >= until_s:
                    raise
                await asyncio.sleep(_PAUSE_S)
            else:
                _log.info("members changed", action=action.value, node=member.node_id, address=member.address)
                return

    async def hand_over(self, *, unwanted: Collection[str] = ()) -> bool:
        """Hands leadership to the voter that is furthest; False when there is nobody, or this manager does not lead.

        Args:
            unwanted: ids of nodes that should not get it.

        Raises:
            MembershipError: it was not taken over in time.
        """
        status = self._engine.status()
        able = [
            each
            for each in members_of(self._engine)
            if each.votes
            and each.reachable
            and each.member.raft_id != status.member_id
            and each.member.node_id not in unwanted
        ]
        if not leads(status) or not able:
            return False
        best = max(able, key=lambda each: each.match)
        await self._engine.transfer_leadership(best.member.raft_id, timeout_s=_HAND_OVER_S)
        _log.info("leadership handed over", node=best.member.node_id)
        return True
