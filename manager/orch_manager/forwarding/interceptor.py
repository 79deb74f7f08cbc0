"""Puts the forwarder in front of the servicers: they are reached only where their answer counts.

It stands before the interceptor that authorises, so that whoever answers has asked the table, for the original caller
and with the request before it: the leader for what is carried to it, this manager for the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from orch_manager.faults import NotLeading
from orch_manager.forwarding.forwarder import NOT_LEADING, Forwarder
from orch_manager.forwarding.leader import Leader
from orch_manager.forwarding.methods import METHODS, Method, Place
from orch_manager.forwarding.vouching import Voucher
from orch_rpc.callers import FORWARDED_CALLER_KEY
from orch_rpc.servers import with_behaviour

# The stubs make the class generic, the library does not.
if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor
_Context = Any


class ForwardingInterceptor(_Interceptor):
    """Answers here what is to be answered here; carries the rest to the leader.

    Args:
        leader: knows who leads.
        forwarder: carries.
        voucher: looks after what is answered here as leader.
    """

    def __init__(self, leader: Leader, forwarder: Forwarder, voucher: Voucher) -> None:
        self._leader = leader
        self._forwarder = forwarder
        self._voucher = voucher

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler that serves the call."""
        local = await continuation(handler_call_details)
        method = METHODS.get(str(handler_call_details.method))
        if local is None or method is None or method.place is Place.HERE:
            return local
        if method.vouched:
            local = with_behaviour(local, lambda behaviour: self._voucher.vouched(method, behaviour))
        if any(key == FORWARDED_CALLER_KEY for key, _ in handler_call_details.invocation_metadata or ()):
            # Carried here as to the leader: it is not carried on, or two managers could play ball with it.
            return local if method.streams and self._leader.acts_here else _refusing(local, method, self._leader)
        if method.streams:
            return local if self._leader.acts_here else self._carried_stream(method)
        return self._unary(local, method) if self._leader.acts_here else self._carried_unary(local, method)

    def _unary(self, local: Any, method: Method) -> Any:
        """Answered here; carried on when it turns out that this manager leads no longer, and nothing was done."""

        async def behave(request: Any, context: _Context) -> Any:
            try:
                return await local.unary_unary(request, context)
            except NotLeading:
                answer = await self._forwarder.unary(
                    method, request.SerializeToString(), context, local=_as_bytes(local)
                )
                return method.answer_type.FromString(answer)

        return grpc.unary_unary_rpc_method_handler(
            behave,
            request_deserializer=local.request_deserializer,
            response_serializer=local.response_serializer,
        )

    def _carried_unary(self, local: Any, method: Method) -> Any:
        async def behave(request: bytes, context: _Context) -> bytes:
            return await self._forwarder.unary(method, request, context, local=_as_bytes(local))

        return grpc.unary_unary_rpc_method_handler(behave)

    def _carried_stream(self, method: Method) -> Any:
        async def behave(requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
            async for answer in self._forwarder.stream(method, requests, context):
                yield answer

        return grpc.stream_stream_rpc_method_handler(behave)


def _as_bytes(local: Any) -> Callable[[bytes, _Context], Awaitable[bytes]]:
    async def answer(request: bytes, context: _Context) -> bytes:
        reply = await local.unary_unary(local.request_deserializer(request), context)
        serialised: bytes = local.response_serializer(reply)
        return serialised

    return answer


def _refusing(local: Any, method: Method, leader: Leader) -> Any:
    """A forwarded call: answered when this manager leads, else refused in a way that says that nothing was done."""

    async def refuse(context: _Context) -> None:
        context.set_trailing_metadata(((NOT_LEADING, "1"),))
        raise NotLeading(f"cannot answer {method.path.rpartition('/')[2]}")

    async def behave(request: Any, context: _Context) -> Any:
        if not leader.acts_here:
            await refuse(context)
        try:
            return await local.unary_unary(request, context)
        except NotLeading:
            context.set_trailing_metadata(((NOT_LEADING, "1"),))
            raise

    async def behave_streaming(_requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        await refuse(context)
        yield b""

    if method.streams:
        return grpc.stream_stream_rpc_method_handler(behave_streaming)
    return grpc.unary_unary_rpc_method_handler(
        behave, request_deserializer=local.request_deserializer, response_serializer=local.response_serializer
    )
