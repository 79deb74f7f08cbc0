"""How a manager gives up its part before its node leaves the cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orch_agent.node_state import Membership
from orch_proto import control_pb2 as control
from orch_proto import specs_pb2 as specs
from orch_proto import types_pb2 as types
from orch_proto.control_pb2_grpc import ControlStub
from orch_rpc import logs
from orch_rpc.channels import unix_channel
from orch_rpc.errors import FailedPrecondition, OrchError, Unavailable, rpc_errors

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub

log = logs.get("leaving")
_CALL_TIMEOUT_S: Final = 10.0
_WAIT_S: Final = 30.0
_POLL_S: Final = 0.1


async def step_down(socket: Path, membership: Membership, *, force: bool) -> list[str]:
    """Has the cluster take this manager out of its midst; waits until that is done.

    Args:
        socket: of this node's manager.
        membership: of this node.
        force: leave although the cluster is lost with it, or cannot be asked.

    Returns:
        notes for people.

    Raises:
        FailedPrecondition: the others could not go on without it, or it is the last.
        Unavailable: it was not done in time.
    """
    try:
        async with asyncio.timeout(_WAIT_S), unix_channel(socket) as channel:
            stub = ControlStub(channel)
            with rpc_errors("leave the cluster"):
                info = await stub.ClusterInfo(control.ClusterInfoRequest(), timeout=_CALL_TIMEOUT_S)
            if len(info.members) <= 1:
                if force:
                    return ["this was the last manager: stacks, secrets and configs are gone, volumes stay"]
                raise FailedPrecondition(
                    "cannot leave",
                    "this node is the last manager: all stacks, secrets and configs would be lost (volumes stay)",
                    "if that is wanted, repeat with --force",
                )
            await _demote(stub, membership.node_id)
            await _until_demoted(stub, membership.node_id)
    except (OrchError, TimeoutError) as error:
        if isinstance(error, FailedPrecondition) and not force:
            raise
        if not force:
            why = str(error) or f"the cluster did not do it within {_WAIT_S:g} s"
            raise Unavailable(
                "cannot leave", why, "look at orch cluster info; --force leaves without the others' consent"
            ) from error
        log.warning("leaving.forced", why=error)
        return [f"the other managers were not told ({error}): remove this node there with orch node rm --force"]
    return []


async def _demote(stub: ControlAsyncStub, node_id: str) -> None:
    with rpc_errors("leave the cluster"):
        found = await stub.Get(
            control.GetRequest(kind=types.OBJECT_KIND_NODE, reference=node_id), timeout=_CALL_TIMEOUT_S
        )
        node = found.object.node
        node.spec.desired_role = specs.NODE_ROLE_WORKER
        await stub.Update(
            control.UpdateRequest(
                kind=types.OBJECT_KIND_NODE,
                id=node.id,
                version_index=node.meta.version_index,
                spec=control.Spec(node=node.spec),
            ),
            timeout=_CALL_TIMEOUT_S,
        )


async def _until_demoted(stub: ControlAsyncStub, node_id: str) -> None:
    """Waits until the leader has taken this node out of the managers; what it says of it may end before that."""
    while True:
        try:
            with rpc_errors("leave the cluster"):
                found = await stub.Get(
                    control.GetRequest(kind=types.OBJECT_KIND_NODE, reference=node_id), timeout=_CALL_TIMEOUT_S
                )
        except Unavailable:
            return  # the manager has ended: it was told that it is no member any more
        if found.object.node.role == specs.NODE_ROLE_WORKER:
            return
        await asyncio.sleep(_POLL_S)
