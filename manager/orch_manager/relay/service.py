"""What agents ask for by streams of their own: relays for others, and images for themselves."""
# ruff: noqa: N802 - methods bear the names of the contract

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from orch_manager.relay.broker import RelayBroker
from orch_manager.relay.delivery import ImageDelivery
from orch_manager.relay.wanted_images import wanted_images
from orch_manager.store.store import Store
from orch_proto.dispatcher_pb2 import FetchImagePart, FetchImageRequest, WantedImagesRequest, WantedImagesResponse
from orch_proto.dispatcher_pb2_grpc import RelayServicer


class RelayService(RelayServicer):
    """Serves the service `Relay`.

    Args:
        store: says which images are wanted.
        broker: serves `Open`.
        delivery: serves `FetchImage`.
    """

    def __init__(self, store: Store, broker: RelayBroker, delivery: ImageDelivery) -> None:
        self._store = store
        self._broker = broker
        self._delivery = delivery

    async def Open(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # grpc.aio serves coroutines too
        """See dispatcher.proto."""
        await self._broker.serve(request_iterator, context)

    async def FetchImage(self, request: FetchImageRequest, context: Any) -> AsyncIterator[FetchImagePart]:
        """See dispatcher.proto."""
        del context
        async for data in self._delivery.fetch(request):
            yield FetchImagePart(data=data)

    async def WantedImages(self, request: WantedImagesRequest, context: Any) -> WantedImagesResponse:
        """See dispatcher.proto."""
        del context
        return wanted_images(self._store, request)
