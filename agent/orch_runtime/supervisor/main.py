"""The supervisor's process: started by the keeper, with the fd store on descriptor 3."""

from __future__ import annotations

import gc
import os
import select
import socket
import sys

from orch_runtime import fdstore
from orch_runtime.cgroups import open_backend
from orch_runtime.kernel import process
from orch_runtime.supervisor.children import ChildPool
from orch_runtime.supervisor.engine import Engine
from orch_runtime.supervisor.execs import Execs
from orch_runtime.supervisor.loop import Loop
from orch_runtime.supervisor.operations import Operations
from orch_runtime.supervisor.recovery import recover
from orch_runtime.supervisor.server import Server

_SOCKET_NAME = "runtime.sock"


def _listen(root: str, store: fdstore.FdStore) -> socket.socket:
    """Return the listening socket: the one the keeper held, so that callers wait during a restart, or a new one."""
    restored = store.restored.pop("listen", None)
    if restored is not None:
        return socket.socket(fileno=restored[0])
    path = f"{root}/{_SOCKET_NAME}"
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(128)
    store.put("listen", [listener.fileno()])
    return listener


def _on_keeper(engine: Engine, channel: socket.socket) -> None:
    message, descriptors = fdstore.receive(channel)
    for fd in descriptors:
        os.close(fd)
    if message is None:
        # The keeper is dead. Containers live on; its successor starts ours, which finds them by their state files.
        os._exit(0)
    engine.read_exits()


def main(arguments: list[str]) -> int:
    """Run as a ward of the keeper: --root ROOT --cgroup-parent PARENT [--pool N]."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    root = options["--root"]
    store = fdstore.FdStore.inherited()
    if store is None:
        sys.stderr.write("supervisor: it is started by the keeper, which gives it descriptor 3\n")
        return 2
    process.prctl(process.PR_SET_DUMPABLE, 0)
    base = f"{root}/stage"
    os.makedirs(base, 0o700, exist_ok=True)
    loop = Loop()
    cgroups = open_backend(options["--cgroup-parent"])
    pool = ChildPool(loop, cgroups, base, int(options.get("--pool", "4")))
    engine = Engine(root, loop, cgroups, pool, store)
    listener = _listen(root, store)
    execs = Execs(engine)
    operations = Operations(engine, execs)
    recover(engine)
    server = Server(loop, listener, operations.handlers)
    operations.server = server
    engine.publish = server.publish
    loop.on_idle = pool.refill
    loop.watch(store.channel.fileno(), lambda _events: _on_keeper(engine, store.channel), select.EPOLLIN)
    # Forks share this memory: a collection would write to every object and unshare it.
    gc.collect()
    gc.disable()
    gc.freeze()
    loop.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
