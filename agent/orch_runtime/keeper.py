"""The keeper: parent of every container, store of descriptors, and the one that must not die.

It does three things. It starts its wards (the supervisor, and any given with --ward) and starts them again when they
die. It keeps
descriptors for them (`fdstore`). And it writes each exit to ROOT/exits.journal, as "pid starttime status unix_ms"
with status >= 0 for
an exit code and -N for signal N, before it reaps: so an exit code is in the journal, or still to be had from the
kernel.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

from orch_runtime import fdstore
from orch_runtime.kernel import mounts, process

SUPERVISOR = "supervisor"
JOURNAL = "exits.journal"
# Consumed journals are emptied beyond the first size; beyond the second the older half goes, read or not.
JOURNAL_EMPTY_BYTES = 64 << 10
JOURNAL_MAX_BYTES = 4 << 20
BACKOFF_FIRST_S, BACKOFF_LAST_S, BACKOFF_RESET_S = 0.05, 5.0, 10.0
MAX_STORED = 16384


class Ward:
    """A child that is always to run, with what it stored."""

    def __init__(self, name: str, argv: list[str]) -> None:
        self.name = name
        self.argv = argv
        self.pid = 0
        self.channel: socket.socket | None = None
        self.stored: dict[str, list[int]] = {}
        self.outbox: list[str | None] = []
        self.started_at = 0.0
        self.delay_s = 0.0
        self.start_at = 0.0


class Keeper:
    """State and loop of the keeper."""

    def __init__(self, root: str, wards: list[Ward]) -> None:
        self.root = root
        self.wards = wards
        self.stopping = False
        self.journal_path = f"{root}/{JOURNAL}"
        self.journal = os.open(self.journal_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.poller = select.epoll()
        self.poller.register(self.wakeup, select.EPOLLIN)
        process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)

    def _terminate(self, *_: object) -> None:
        self.stopping = True

    def run(self) -> None:
        """Serve until told to stop."""
        while not self.stopping:
            now = time.monotonic()
            waits = [ward.start_at - now for ward in self.wards if not ward.pid]
            for ward in self.wards:
                if not ward.pid and ward.start_at <= now:
                    self._start(ward)
                    waits.append(0.0)
            for fd, events in self.poller.poll(max(min(waits), 0.0) if waits else -1):
                if fd == self.wakeup:
                    os.read(self.wakeup, 4096)
                    continue
                for ward in self.wards:
                    if ward.channel is not None and ward.channel.fileno() == fd:
                        self._serve(ward, events)
            self._collect()
        self._stop_wards()

    def _start(self, ward: Ward) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                self._become(ward, theirs.fileno())
            finally:
                os._exit(127)
        theirs.close()
        ours.setblocking(False)
        ward.pid, ward.channel, ward.started_at = pid, ours, time.monotonic()
        # What is stored goes out as the ward reads it: the socket's buffer may be smaller than the store.
        ward.outbox = [*ward.stored, None]
        self.poller.register(ours.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _become(self, ward: Ward, channel: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(channel, fdstore.CHANNEL_FD, inheritable=True)
        if channel == fdstore.CHANNEL_FD:
            os.set_inheritable(channel, True)
        process.close_range(fdstore.CHANNEL_FD + 1)
        environment = {**os.environ, fdstore.CHANNEL_VARIABLE: str(fdstore.CHANNEL_FD)}
        os.execve(sealed_program(ward.argv[0]), ward.argv, environment)

    def _serve(self, ward: Ward, events: int) -> None:
        channel = ward.channel
        assert channel is not None
        try:
            if events & select.EPOLLIN:
                while True:
                    message, descriptors = fdstore.receive(channel, socket.MSG_DONTWAIT)
                    if message is None:
                        self.poller.unregister(channel.fileno())
                        channel.close()
                        ward.channel = None
                        return
                    self._obey(ward, message, descriptors)
            while events & select.EPOLLOUT and ward.outbox:
                name = ward.outbox[0]
                if name is None:
                    fdstore.send(channel, {"end": True})
                elif name in ward.stored:
                    fdstore.send(channel, {"name": name}, ward.stored[name])
                ward.outbox.pop(0)
        except BlockingIOError:
            pass
        except OSError:
            self.poller.unregister(channel.fileno())
            channel.close()
            ward.channel = None
            return
        wanted = select.EPOLLIN | (select.EPOLLOUT if ward.outbox else 0)
        self.poller.modify(channel.fileno(), wanted)

    def _obey(self, ward: Ward, message: dict[str, object], descriptors: list[int]) -> None:
        operation, name = message.get("op"), str(message.get("name", ""))
        if operation == "put" and descriptors and (name in ward.stored or len(ward.stored) < MAX_STORED):
            for fd in ward.stored.pop(name, []):
                os.close(fd)
            ward.stored[name] = descriptors
            return
        for fd in descriptors:
            os.close(fd)
        if operation == "drop":
            for fd in ward.stored.pop(name, []):
                os.close(fd)
        elif ward.name == SUPERVISOR and operation == "consumed":
            size = os.fstat(self.journal).st_size
            if size >= JOURNAL_EMPTY_BYTES and message.get("offset") == size:
                self._renew_journal(b"")
        elif ward.name == SUPERVISOR and operation == "shutdown":
            self.stopping = True

    def _collect(self) -> None:
        """Journal, then reap, every child that has ended; then wake the supervisor."""
        journaled = False
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            pid = ended.si_pid
            ward = next((entry for entry in self.wards if entry.pid == pid), None)
            if ward is None:
                status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
                line = f"{pid} {start_time(pid)} {status} {time.time_ns() // 1_000_000}\n"
                try:
                    os.write(self.journal, line.encode())
                except OSError as error:
                    say(f"exit of process {pid} ({status}) could not be journaled: {error}")
                journaled = True
            os.waitpid(pid, 0)
            if ward is not None:
                self._ward_ended(ward, ended.si_status)
        if journaled:
            self._bound_journal()
            self._wake_supervisor()

    def _wake_supervisor(self) -> None:
        for ward in self.wards:
            if ward.name == SUPERVISOR and ward.channel is not None and not ward.outbox:
                try:
                    fdstore.send(ward.channel, {"op": "exits"}, flags=socket.MSG_DONTWAIT)
                except OSError:
                    # Full: it has wake-ups waiting already. Gone: the next one reads the journal first.
                    continue

    def _bound_journal(self) -> None:
        if os.fstat(self.journal).st_size > JOURNAL_MAX_BYTES:
            with open(self.journal_path, "rb") as file:
                self._renew_journal(file.read()[JOURNAL_MAX_BYTES // 2 :].partition(b"\n")[2])
            say("exit journal was not consumed and has been halved: exit codes may be lost")

    def _renew_journal(self, content: bytes) -> None:
        """Begin a new file (a new inode tells the reader so) with the given content."""
        fd = os.open(
            f"{self.journal_path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        os.write(fd, content)
        os.rename(f"{self.journal_path}.new", self.journal_path)
        os.close(self.journal)
        self.journal = fd

    def _ward_ended(self, ward: Ward, status: int) -> None:
        now = time.monotonic()
        ward.pid = 0
        if ward.channel is not None:
            self.poller.unregister(ward.channel.fileno())
            ward.channel.close()
            ward.channel = None
        if now - ward.started_at >= BACKOFF_RESET_S:
            ward.delay_s = 0.0
        ward.start_at = now + ward.delay_s
        say(f"ward {ward.name} ended (status {status}); starting it again in {ward.delay_s:.2f} s")
        ward.delay_s = min(max(ward.delay_s * 2, BACKOFF_FIRST_S), BACKOFF_LAST_S)

    def _stop_wards(self) -> None:
        deadline = time.monotonic() + 3.0
        for ward in self.wards:
            if ward.pid:
                os.kill(ward.pid, signal.SIGTERM)
        while any(ward.pid for ward in self.wards):
            pid, _ = os.waitpid(-1, os.WNOHANG)
            for ward in self.wards:
                if ward.pid == pid:
                    ward.pid = 0
                elif ward.pid and time.monotonic() > deadline:
                    os.kill(ward.pid, signal.SIGKILL)
            if pid == 0:
                time.sleep(0.005)


def sealed_program(path: str) -> str:
    """Return a path that executes `path` through a read-only mount of its own.

    A process of a container that got hold of /proc/PID/exe of a process entering it could otherwise write to the
    host's interpreter.
    The mount is detached: nothing of it appears in the mount table. Where the kernel cannot do it the path itself is
    returned.
    """
    try:
        tree = mounts.open_tree(mounts.AT_FDCWD, os.path.realpath(path), mounts.OPEN_TREE_CLONE)
        mounts.set_mount_attributes(tree, mounts.MOUNT_ATTR_RDONLY)
    except Exception as error:
        say(f"cannot seal {path}: {error}")
        return path
    return f"/proc/self/fd/{tree}"


def start_time(pid: int) -> int:
    """Return field 22 of /proc/PID/stat, which with the pid names a process for good; 0 if it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0
    finally:
        os.close(fd)


def say(text: str) -> None:
    """Write a line to the keeper's log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} keeper: {text}\n")
    sys.stderr.flush()


def parse_arguments(arguments: list[str]) -> tuple[str, list[str], list[Ward]]:
    """Return (root, supervisor arguments, extra wards); argparse would cost this process a megabyte."""
    root = ""
    supervisor: list[str] = []
    extra: list[Ward] = []
    position = 0
    while position < len(arguments):
        if position + 1 == len(arguments):
            raise SystemExit(f"keeper: {arguments[position]} needs a value")
        option, value = arguments[position], arguments[position + 1]
        if option == "--ward":
            name, _, argv = value.partition("=")
            extra.append(Ward(name, [str(word) for word in json.loads(argv)]))
        elif option in ("--root", "--cgroup-parent", "--pool"):
            root = value if option == "--root" else root
            supervisor += [option, value]
        else:
            raise SystemExit(f"keeper: unknown option {option}")
        position += 2
    if not root.startswith("/"):
        raise SystemExit("keeper: --root must be an absolute path")
    return root, supervisor, extra


def main(arguments: list[str]) -> int:
    """Run the keeper: --root ROOT --cgroup-parent PARENT [--pool N] [--ward NAME=JSON_ARGV ...]."""
    root, supervisor, extra = parse_arguments(arguments)
    os.makedirs(root, 0o700, exist_ok=True)
    lock = os.open(f"{root}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"already running for {root}")
        return 0
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    argv = [sys.executable, "-I", "-m", "orch_runtime.supervisor.main", *supervisor]
    keeper = Keeper(root, [Ward(SUPERVISOR, argv), *extra])
    keeper.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
