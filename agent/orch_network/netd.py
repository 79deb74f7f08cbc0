"""The network process: ``python -I -m orch_network.netd --root ROOT --node NAME [--resolv-conf PATH]``.

Single-threaded, as it enters namespaces. The network namespace in which it is started is the node. It may be killed at
any moment: the next start takes over from ROOT/wanted and the kernel.
"""

# pathlib is not loaded in this small process
# ruff: noqa: PTH100, PTH103, PTH108, PTH110

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from orch_network.control import ControlServer, bind_control_socket
from orch_network.counters import Counters
from orch_network.dns.resolver import Resolver
from orch_network.dns.upstream import Upstream
from orch_network.engine import Engine, Places
from orch_network.errors import Conflict, InvalidRequest, NetworkFailure
from orch_network.keeper_store import KeeperStore
from orch_network.loop import Loop
from orch_network.operations import make_operations
from orch_network.reconcile import Patrol, Repair, reconcile, remove_everything, restore
from orch_network.store import WantedStore

_LISTENER = "listener"
_LOCK_NAME = "\0orch-netd"
_USAGE = "usage: python -I -m orch_network.netd --root ROOT --node NAME [--resolv-conf PATH]"


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    root: str
    node: str
    resolv_conf: str = "/etc/resolv.conf"


def parse_options(arguments: Sequence[str]) -> Options:
    """Read the command line (by hand: argparse would cost more memory than the DNS codec)."""
    values = {"--root": "", "--node": "", "--resolv-conf": "/etc/resolv.conf"}
    rest = list(arguments)
    while rest:
        key = rest.pop(0)
        if key not in values or not rest:
            raise InvalidRequest(f"{key}: unknown option, or its value is missing; {_USAGE}")
        values[key] = rest.pop(0)
    if not values["--root"] or not values["--node"]:
        raise InvalidRequest(f"--root and --node are needed; {_USAGE}")
    return Options(os.path.abspath(values["--root"]), values["--node"], values["--resolv-conf"])


class Netd:
    """The process: puts the parts together and runs the loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._counters = Counters()
        self._remove = False
        self.loop = Loop(self._on_error)
        os.makedirs(options.root, mode=0o700, exist_ok=True)
        self._locks = take_locks(options.root)
        self._keeper = KeeperStore.from_environment(self._on_error)
        kept = self._keeper.receive_all()
        store = WantedStore(f"{options.root}/wanted", self._on_bad_file)
        resolver = Resolver(self.loop, Upstream(self.loop, options.resolv_conf), self._counters)
        self.engine = Engine(
            places=Places(options.root),
            loop=self.loop,
            store=store,
            keeper=self._keeper,
            resolver=resolver,
            counters=self._counters,
        )
        listener = self._listener(kept)
        restore(self.engine, kept)
        for name, fd in kept.items():
            os.close(fd)
            self._keeper.drop(name)
        self._prepare_node()
        for repair in reconcile(self.engine):
            self._log_repair(repair)
        Patrol(self.engine, self._log_repair).start()
        operations = make_operations(self.engine, self._shutdown)
        self._control = ControlServer(self.loop, listener, operations, self._counters)
        self.engine.refill_pool()

    def _prepare_node(self) -> None:
        """On a node's first start nothing has drifted: what is made then is not counted as repaired."""
        if not self.engine.routers:
            self.engine.node.repair_table()
            self.engine.node.repair_uplinks(())

    def _listener(self, kept: dict[str, int]) -> socket.socket:
        path = f"{self._options.root}/network.sock"
        fd = kept.pop(_LISTENER, None)
        if fd is not None:
            if os.path.exists(path):
                return socket.socket(fileno=fd)
            os.close(fd)
        listener = bind_control_socket(path)
        self._keeper.put(_LISTENER, listener.fileno())
        return listener

    def run(self) -> None:
        """Serve until told to stop."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self.loop.stop())
        self.loop.watch(wake_read, lambda _events: _swallow(wake_read))
        if self._keeper.fileno() >= 0:
            self.loop.watch(self._keeper.fileno(), self._on_keeper_gone)
        self.log("started", networks=len(self.engine.routers), tasks=len(self.engine.tasks))
        gc.collect()
        gc.freeze()
        self.loop.run()
        if self._remove:
            remove_everything(self.engine)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._options.root}/network.sock")
            self._keeper.drop(_LISTENER)
        self._control.close()
        self.log("stopped", removed=self._remove)

    def _on_keeper_gone(self, _events: int) -> None:
        """The keeper, which says nothing after its greeting, has died; the next one starts another of us."""
        self.log("keeper_gone")
        self.loop.stop()

    def _shutdown(self, remove: bool) -> None:  # noqa: FBT001 - the one argument of a callback
        self._remove = remove
        self.loop.stop()

    def _log_repair(self, repair: Repair) -> None:
        self.log("repaired", kind=repair.kind, detail=repair.detail)

    def _on_bad_file(self, path: str, failure: Exception) -> None:
        self._counters.failed("bad_file")
        self.log("bad_file", path=path, why=failure)

    def _on_error(self, failure: Exception) -> None:
        self._counters.failed("internal")
        self.log("error", why=f"{type(failure).__name__}: {failure}", where=_innermost(failure))

    def log(self, event: str, **values: object) -> None:
        """One structured line on stderr; a full pipe loses it rather than stopping us."""
        record = {"time": round(time.time(), 3), "event": event, "node": self._options.node}
        line = json.dumps(record | {key: str(value) for key, value in values.items()})
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())


def take_locks(root: str) -> tuple[int, socket.socket]:
    """Be the only network process of this folder and of this network namespace, until the process ends."""
    folder = os.open(f"{root}/netd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as failure:
        os.close(folder)
        raise Conflict(f"another network process runs with --root {root}: stop it first") from failure
    # Abstract socket names belong to the network namespace: table "orch" and the uplinks of a node have one owner.
    node = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        node.bind(_LOCK_NAME)
    except OSError as failure:
        node.close()
        os.close(folder)
        raise Conflict("another network process runs in this network namespace: one node has one; stop it") from failure
    return folder, node


def _swallow(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 64)


def _innermost(failure: Exception) -> str:
    trace = failure.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        Netd(parse_options(sys.argv[1:] if arguments is None else arguments)).run()
    except NetworkFailure as failure:
        os.write(2, f"orch-netd: {failure}\n".encode())
        return 2 if isinstance(failure, InvalidRequest) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
