"""Every service of the contract, answered with empty messages: what reaches a handler was admitted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from orch_proto import ca_pb2, control_pb2, daemon_pb2, dispatcher_pb2, raft_pb2

_FILES = (ca_pb2, control_pb2, daemon_pb2, dispatcher_pb2, raft_pb2)


def methods() -> dict[str, MethodDescriptor]:
    """Every method of every service of orch.v1, by the path that gRPC calls it by."""
    return {
        f"/{service.full_name}/{method.name}": method
        for file in _FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


class EmptyAnswers(grpc.GenericRpcHandler):
    """Serves all of them."""

    def __init__(self) -> None:
        self._methods = methods()

    def service(self, handler_call_details: Any) -> Any:
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        request = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)

        async def single(_request: Any, _context: Any) -> Any:
            return answer()

        async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
            yield answer()

        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[(method.client_streaming, method.server_streaming)]
        return make(
            stream if method.server_streaming else single,
            request_deserializer=request.FromString,
            response_serializer=answer.SerializeToString,
        )


async def call(channel: grpc.aio.Channel, path: str, request: Any = None, metadata: Any = ()) -> Any:
    """Calls a method with one request; its first answer.

    Raises:
        grpc.aio.AioRpcError: the call was refused.
    """
    method = methods()[path]
    options: dict[str, Any] = {
        "request_serializer": message_factory.GetMessageClass(method.input_type).SerializeToString,
        "response_deserializer": message_factory.GetMessageClass(method.output_type).FromString,
    }
    message = request if request is not None else message_factory.GetMessageClass(method.input_type)()

    async def requests() -> AsyncIterator[Any]:
        yield message

    kind = (method.client_streaming, method.server_streaming)
    if kind == (False, False):
        return await channel.unary_unary(path, **options)(message, timeout=10, metadata=metadata)
    if kind == (True, False):
        return await channel.stream_unary(path, **options)(requests(), timeout=10, metadata=metadata)
    make: Any = channel.stream_stream if method.client_streaming else channel.unary_stream
    stream = make(path, **options)(requests() if method.client_streaming else message, timeout=10, metadata=metadata)
    try:
        async for answer in stream:
            return answer
    finally:
        stream.cancel()
    return None
