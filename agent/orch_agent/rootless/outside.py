"""The half of an ordinary user's orchd that stays outside of the namespaces, and makes them.

It holds no state of the cluster. It maps users, starts slirp4netns, passes signals on, and ends with orchd; should it
be killed, the kernel ends orchd, and with it every container.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from orch_agent.rootless import id_maps, inside, slirp
from orch_agent.rootless.errors import RootlessError
from orch_runtime.errors import KernelError
from orch_runtime.kernel import process

NAMESPACES = (
    process.CLONE_NEWUSER
    | process.CLONE_NEWNS
    | process.CLONE_NEWNET
    | process.CLONE_NEWIPC
    | process.CLONE_NEWUTS
    | process.CLONE_NEWPID
)


def command(state_dir: Path, run_dir: Path, arguments: Sequence[str]) -> list[str]:
    """Command line of this half; `arguments` are orchd's own."""
    places = ["--state-dir", str(state_dir.absolute()), "--run-dir", str(run_dir.absolute())]
    return [sys.executable, "-I", "-m", "orch_agent.rootless.outside", str(run_dir.absolute()), *arguments, *places]


class Outside:
    """The namespaces of one orchd, from their making to their end.

    Args:
        run_dir: its folder of sockets.
        arguments: orchd's command line.
    """

    def __init__(self, run_dir: Path, arguments: Sequence[str]) -> None:
        self._run_dir = run_dir
        self._api = run_dir / "slirp.sock"
        self._orchd = [sys.executable, "-I", "-m", "orch_agent.orchd", *arguments, "--slirp-socket", str(self._api)]
        self._first = 0

    def run(self) -> int:
        """Serve until orchd ends; returns its exit status.

        Raises:
            RootlessError: something is missing here, or another orchd runs.
        """
        users, groups = id_maps.check()
        slirp.check()
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._lock()
        go_reader, go_writer = os.pipe2(os.O_CLOEXEC)
        signal.pthread_sigmask(signal.SIG_BLOCK, inside.STOPPING)
        try:
            self._first, pidfd = process.clone3(NAMESPACES)
        except KernelError as error:
            raise RootlessError(
                f"cannot make namespaces: {error}; the kernel may keep users from it: see the sysctls "
                "kernel.unprivileged_userns_clone, user.max_user_namespaces and "
                "kernel.apparmor_restrict_unprivileged_userns"
            ) from error
        if self._first == 0:
            os.close(go_writer)
            if os.read(go_reader, 1):
                inside.main(self._run_dir, self._orchd, go_reader)
            os._exit(1)
        for number in inside.STOPPING:
            signal.signal(number, self._pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, inside.STOPPING)
        os.close(go_reader)
        os.close(pidfd)
        network: subprocess.Popen[bytes] | None = None
        try:
            id_maps.write(self._first, users, groups)
            network, network_end = slirp.start(self._first, self._api)
            os.write(go_writer, b"1")
            return self._wait(network)
        finally:
            if self._first:
                os.kill(self._first, signal.SIGKILL)
            if network is not None:
                os.close(network_end)
                network.wait()
            for left in (self._api, self._run_dir / "resolv.conf"):
                left.unlink(missing_ok=True)
            os.close(lock)

    def _lock(self) -> int:
        lock = os.open(self._run_dir / "rootless.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RootlessError(
                f"another orchd uses {self._run_dir}; stop it first, or name another --run-dir"
            ) from None
        return lock

    def _pass_on(self, *_: object) -> None:
        if self._first:
            os.kill(self._first, signal.SIGTERM)

    def _wait(self, network: subprocess.Popen[bytes]) -> int:
        """Wait for orchd's end. Without its network it is of no use: then it is ended, to be started again."""
        result = 0
        while True:
            pid, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            if pid == network.pid:
                network.returncode = code
                sys.stderr.write(f"orchd: slirp4netns ended (status {code}), so orchd ends; start it again\n")
                result = 1
                self._pass_on()
            elif pid == self._first:
                self._first = 0
                return result or (code if code >= 0 else 128 - code)


def main() -> None:
    """The entry point: RUN-DIR, then orchd's arguments."""
    try:
        sys.exit(Outside(Path(sys.argv[1]), sys.argv[2:]).run())
    except RootlessError as error:
        sys.exit(f"orchd: {error}")


if __name__ == "__main__":
    main()
