"""Images from node to node: the manager finds a node that has one, and passes its archive on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from orch_manager import tasks as states
from orch_manager.dispatcher.calls import NodeCalls
from orch_manager.relay.broker import RelayBroker
from orch_manager.store.store import Store
from orch_proto import defaults
from orch_proto.dispatcher_pb2 import FetchImageRequest
from orch_proto.node_pb2 import ImageInspectCall, ImageSaveCall, NodeCall, RelayCall
from orch_proto.objects_pb2 import Task
from orch_rpc import logs
from orch_rpc.authorization import current_call
from orch_rpc.errors import InvalidArgument, NotFound, OrchError, PermissionDenied, Unavailable, from_call_error

_log = logs.get("images")
#: A name of 255 and a digest.
_REFERENCE_CHARACTERS: Final = 512
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class ImageDelivery:
    """Serves `Relay.FetchImage`.

    Args:
        store: says which images a node's tasks need.
        broker: reaches the node that has the image.
        calls: asks who has it.
    """

    def __init__(self, store: Store, broker: RelayBroker, calls: NodeCalls) -> None:
        self._store = store
        self._broker = broker
        self._calls = calls
        self._told: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def told(self, node_id: str, image_id: str) -> Iterator[None]:
        """While the block lasts, the node may fetch the image, whether or not a task of it needs it."""
        self._told[node_id, image_id] += 1
        try:
            yield
        finally:
            self._told[node_id, image_id] -= 1
            if not self._told[node_id, image_id]:
                del self._told[node_id, image_id]

    async def fetch(self, request: FetchImageRequest) -> AsyncIterator[bytes]:
        """The archive of an image, in pieces, from the first node that gives it.

        Raises:
            PermissionDenied: the node has nothing to do with the image.
            NotFound: no other node has it, or none can give it.
            Unavailable: the node that gave it broke off.
        """
        what = f"cannot fetch the image {request.reference[:255]}"
        current_call().require_node(request.node_id)
        self._check(what, request)
        reasons: list[OrchError] = []
        for node_id, hostname in await self._holders(request):
            passed_on = 0
            call = ImageSaveCall(references=[request.image_id], chains_here=request.chains_here, made_here=True)
            try:
                async with self._broker.open(node_id, RelayCall(image_save=call)) as relay:
                    async for output in relay.outputs():
                        kind = output.WhichOneof("output")
                        if kind == "data":
                            passed_on += len(output.data)
                            yield output.data
                        elif kind == "error":
                            raise from_call_error(output.error.code, output.error.message)
                        elif kind == "result":
                            _log.info("image.passed", image=request.reference, bytes=passed_on, node=request.node_id)
                            return
                raise Unavailable(what, f"node {hostname} broke off")
            except OrchError as error:
                if passed_on:
                    raise Unavailable(what, f"node {hostname} broke off: {error}", "it is tried again") from error
                reasons.append(error)
        why = "; ".join(dict.fromkeys(str(reason).replace("\n", ": ") for reason in reasons))
        raise NotFound(what, why or "no other node has it", "build or load it, or push it to a registry")

    def _check(self, what: str, request: FetchImageRequest) -> None:
        if not _DIGEST.fullmatch(request.image_id):
            raise InvalidArgument(what, f"{request.image_id[:80]!r} is no id of an image")
        if len(request.reference) > _REFERENCE_CHARACTERS:
            raise InvalidArgument(what, f"its name is longer than {_REFERENCE_CHARACTERS} characters")
        if len(request.chains_here) > defaults.FETCH_CHAINS_MAX:
            raise InvalidArgument(what, f"more than {defaults.FETCH_CHAINS_MAX} layers were named")
        if (request.node_id, request.image_id) in self._told:
            return
        for task in self._store.find(Task, node_id=request.node_id):
            if task.spec.container.image_digest == request.image_id and states.is_wanted(task):
                return
        raise PermissionDenied(what, f"no task on node {request.node_id} runs it")

    async def _holders(self, request: FetchImageRequest) -> list[tuple[str, str]]:
        nodes = [node for node in self._calls.ready_nodes() if node.id != request.node_id]
        question = NodeCall(image_inspect=ImageInspectCall(reference=request.image_id))
        answers = await self._calls.ask_all(nodes, question)
        return [
            (answer.node_id, answer.node_hostname)
            for answer in answers
            if answer.result.image_inspect.image.id == request.image_id
        ]
