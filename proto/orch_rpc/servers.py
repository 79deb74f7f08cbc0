"""Starting and stopping gRPC servers, and the interceptor that turns raised `OrchError`s into statuses."""

from __future__ import annotations

import asyncio
import grp
import inspect
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import grpc.aio

from orch_proto import defaults
from orch_rpc import logs
from orch_rpc.addresses import Address
from orch_rpc.channels import COMMON_OPTIONS
from orch_rpc.errors import AlreadyExists, FailedPrecondition, Internal, OrchError

# The stubs make the class generic, the library does not.
if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor

_log = logs.get("rpc")
_SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),
    # Clients keep idle streams alive: their pings are wanted, not an attack.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

#: Called at the end of each call with the method, the name of its status code, and its duration in seconds.
CallObserver = Callable[[str, str, float], None]


def _ignore_call(_method: str, _code: str, _duration_s: float) -> None:
    """The observer of those who do not measure."""


class _Guard:
    """Runs one method's handler; what it raises becomes a status, and what became of it is observed."""

    def __init__(self, method: str, observer: CallObserver) -> None:
        self._method = method
        self._observer = observer

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
        """Ends the call with the status of `error`."""
        if not isinstance(error, OrchError):
            _log.exception("call failed", error, method=self._method)
            error = Internal(
                f"cannot answer {self._method}",
                f"{type(error).__name__}: {error}",
                "this is a defect of orch; its log has the details",
            )
        await context.abort(error.code, error.to_details())

    async def single(
        self, behaviour: Callable[[Any, Any], Awaitable[Any]], request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        """For handlers that are coroutines (unary answers, or streams that write through the context)."""
        started, code = time.monotonic(), "OK"
        try:
            return await behaviour(request, context)
        except grpc.aio.AbortError:
            code = "ABORTED"
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as error:
            code = error.code.name if isinstance(error, OrchError) else "INTERNAL"
            await self._abort(context, error)
        finally:
            self._observer(self._method, code, time.monotonic() - started)

    async def stream(
        self,
        behaviour: Callable[[Any, Any], AsyncIterator[Any]],
        request: Any,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[Any]:
        """For handlers that are asynchronous generators."""
        started, code = time.monotonic(), "OK"
        answers = behaviour(request, context)
        try:
            async for answer in answers:
                yield answer
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except Exception as error:
            code = error.code.name if isinstance(error, OrchError) else "INTERNAL"
            await self._abort(context, error)
        finally:
            if inspect.isasyncgen(answers):
                await answers.aclose()
            self._observer(self._method, code, time.monotonic() - started)


class ErrorInterceptor(_Interceptor):
    """Maps raised `OrchError`s to their statuses, for every method of a server."""

    def __init__(self, observer: CallObserver = _ignore_call) -> None:
        self._observer = observer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler that serves the call, if there is one."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        guard = _Guard(str(handler_call_details.method), self._observer)

        def wrap(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            # grpc.aio asks the function itself what it is: a partial would not tell.
            async def single(request: Any, context: Any) -> Any:
                return await guard.single(behaviour, request, context)

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                async for answer in guard.stream(behaviour, request, context):
                    yield answer

            return stream if inspect.isasyncgenfunction(behaviour) else single

        return with_behaviour(handler, wrap)


def with_behaviour(handler: Any, wrap: Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]) -> Any:
    """A method's handler with another behaviour: what interceptors return.

    Args:
        handler: what serves the method.
        wrap: makes the new behaviour of the present one; a coroutine or an asynchronous generator function, as that is.
    """
    if handler.request_streaming:
        behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(bool(handler.request_streaming), bool(handler.response_streaming))]
    return make(
        wrap(behaviour),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def new_server(
    observer: CallObserver = _ignore_call,
    *,
    interceptors: Sequence[_Interceptor] = (),
    most_calls: int | None = None,
) -> grpc.aio.Server:
    """A server with orch's options and error mapping; add servicers, then `start_on_unix_socket` or `start_on_tls`.

    Args:
        observer: told of each call.
        interceptors: what else stands before the servicers; their `OrchError`s are mapped too.
        most_calls: calls that it serves at once; more are refused.
    """
    return grpc.aio.server(
        interceptors=[ErrorInterceptor(observer), *interceptors],
        options=list(_SERVER_OPTIONS),
        maximum_concurrent_rpcs=most_calls,
    )


async def start_on_tls(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials) -> None:
    """Binds the server to a TLS port, besides what it is bound to already, and starts it.

    Args:
        server: from `new_server`, with its servicers.
        address: where to listen.
        credentials: from `tls.py`.

    Raises:
        FailedPrecondition: the address cannot be used.
    """
    bind_tls(server, address, credentials)
    await server.start()


def bind_tls(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials) -> int:
    """Binds a server that was not started to a TLS port; the port, which was chosen by the kernel if 0 was asked for.

    Raises:
        FailedPrecondition: the address cannot be used.
    """
    try:
        port = server.add_secure_port(str(address), credentials)
    except RuntimeError as error:
        port, why = 0, str(error)
    else:
        why = "the port is in use, or the address is none of this host"
    if not port:
        raise FailedPrecondition(
            f"cannot listen on {address}", why, "free the port, or name another with --listen-address"
        )
    return port


def _remove_stale_socket(path: Path) -> None:
    """Removes a socket that nobody listens on any more.

    Raises:
        AlreadyExists: somebody listens.
        FailedPrecondition: what is there is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(
            f"cannot listen on {path}", "a file that is no socket is in the way", "remove it, or name another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise AlreadyExists(
        f"cannot listen on {path}", "another process listens there", "stop it first, or name another path"
    )


async def start_on_unix_socket(server: grpc.aio.Server, path: Path, *, mode: int = 0o660, group: str = "") -> None:
    """Binds the server to a unix socket and starts it. The folder must exist.

    Args:
        server: from `new_server`, with its servicers.
        path: the socket's path, at most 107 bytes (the kernel's bound).
        mode: its permission bits.
        group: who owns it besides root; ignored when there is no such group on this host.

    Raises:
        AlreadyExists: another process listens there.
        FailedPrecondition: the path cannot be used.
    """
    if len(os.fsencode(path)) > 107:
        raise FailedPrecondition(
            f"cannot listen on {path}", "a unix socket's path has at most 107 bytes", "use a shorter folder name"
        )
    _remove_stale_socket(path)
    try:
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        _set_owner(path, mode, group)
    except (OSError, RuntimeError) as error:
        raise FailedPrecondition(f"cannot listen on {path}", str(error), "check the folder and its owner") from error


def _set_owner(path: Path, mode: int, group: str) -> None:
    path.chmod(mode)
    if not group:
        return
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return
    os.chown(path, -1, gid)


async def stop(server: grpc.aio.Server, *, grace_s: float = defaults.NODE_CALL_TIMEOUT_MS / 1000) -> None:
    """Takes no new calls, gives those under way `grace_s` seconds, then ends them."""
    await server.stop(grace_s)
