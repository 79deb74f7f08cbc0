"""Small questions to nodes, over their sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orch_manager.dispatcher.hub import Hub
from orch_proto import defaults
from orch_proto.control_pb2 import NodeAnswer
from orch_proto.node_pb2 import CallError, NodeCall, NodeCallResult
from orch_proto.objects_pb2 import Node, NodeState
from orch_rpc.errors import OrchError, Unavailable


class NodeCalls:
    """Asks one node or all ready ones.

    Args:
        hub: has the sessions.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def ready_nodes(self) -> list[Node]:
        """The nodes that can be asked."""
        nodes = (node for node in self._hub.store.all(Node) if node.status.state == NodeState.NODE_STATE_READY)
        return [node for node in nodes if node.id in self._hub.sessions]

    def awaited_nodes(self) -> list[Node]:
        """The nodes that are thought to be up, and have not attached to this leader yet."""
        nodes = (node for node in self._hub.store.all(Node) if node.status.state == NodeState.NODE_STATE_READY)
        return [node for node in nodes if node.id not in self._hub.sessions]

    async def ask(
        self, node_id: str, call: NodeCall, *, timeout_s: float = defaults.NODE_CALL_TIMEOUT_MS / 1000
    ) -> NodeCallResult:
        """Puts a question to a node.

        Raises:
            Unavailable: the node is not attached, or does not answer in time.
        """
        session = self._hub.sessions.get(node_id)
        if session is None:
            todo = "check that orchd runs there: orch node ls"
            raise Unavailable(f"cannot ask node {node_id}", "its agent is not attached", todo)
        question = NodeCall()
        question.CopyFrom(call)
        question.call_id = self._hub.ids.new()
        return await session.call(question, timeout_s)

    async def ask_all(self, nodes: Sequence[Node], call: NodeCall) -> list[NodeAnswer]:
        """Asks several nodes at once. A node that does not answer has an error in its place."""
        return list(await asyncio.gather(*(self._answer(node, call) for node in nodes)))

    async def _answer(self, node: Node, call: NodeCall) -> NodeAnswer:
        try:
            result = await self.ask(node.id, call)
        except OrchError as error:
            result = NodeCallResult(error=CallError(code=error.code.name, message=error.to_details()))
        return NodeAnswer(node_id=node.id, node_hostname=node.description.hostname, result=result)
