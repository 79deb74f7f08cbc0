"""Runs crun's Python test suite against orch-runtime and compares the outcome with what is expected.

    python tests/conformance/crun_suite.py CHECKOUT INIT [--runtime PATH] [--only FILE]

CHECKOUT is a checkout of crun whose tests/ are to be run, INIT its static test program, built beforehand. Each file of
tests runs in a mount namespace of its own. Ends with 0 when only expected tests fail, 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import own_mounts

TIMEOUT_S = 120
_RESULT = re.compile(r"^(ok|not ok) \d+ - (.*?)( *#SKIP.*)?$")

# File and test to the reason why it fails; a test that is not here has to pass.
EXPECTED_FAILURES: dict[tuple[str, str], str] = {
    ("test_delete.py", "test_multiple_containers_delete"): "delete --regex is crun's own",
    ("test_devices.py", "owner-device"): "no device can be made in a user namespace, and the host has none to bind",
    ("test_exec.py", "exec-root-netns-with-userns"): "/proc/1/ns/net cannot be opened on the test machine",
    ("test_exec.py", "exec_add_no_new_privileges"): "exec keeps the container's no_new_privileges",
    ("test_exec.py", "exec_write_pid_file"): "wants a pid of five digits; fails for crun too where numbers are lower",
    ("test_seccomp.py", "seccomp-listener"): "user notification is left out",
    ("test_start.py", "start"): "reads crun's own state file",
    ("test_uid_gid.py", "keep-groups"): "an annotation of crun's own",
}
# Needs criu, which is left out; the runtime refuses it.
LEFT_OUT = {"test_checkpoint_restore.py"}


def run_file(checkout: Path, name: str, environment: dict[str, str]) -> dict[str, str]:
    """Run one file of tests; returns test to "ok", "not ok" or "skip"."""
    try:
        done = subprocess.run(
            [sys.executable, f"tests/{name}"], cwd=checkout, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False, preexec_fn=own_mounts.enter,
        )  # fmt: skip
        output = done.stdout
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        print(f"{name}: did not end within {TIMEOUT_S} s")
    results = {}
    for line in output.splitlines():
        match = _RESULT.match(line)
        if match:
            results[match[2]] = "skip" if match[3] else match[1]
    return results


def main() -> int:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("init", type=Path)
    parser.add_argument("--runtime", default=shutil.which("orch-runtime") or "orch-runtime")
    parser.add_argument("--only", default="", help="one file, such as test_exec.py")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("the suite needs root")
    environment = {**os.environ, "OCI_RUNTIME": arguments.runtime, "INIT": str(arguments.init.resolve())}
    names = sorted(path.name for path in (arguments.checkout / "tests").glob("test_*.py"))
    if not names:
        parser.error(f"{arguments.checkout}/tests has no test_*.py: give a checkout of crun")
    counts = {"ok": 0, "not ok": 0, "skip": 0}
    unexpected = 0
    for name in names:
        if name in LEFT_OUT or (arguments.only and name != arguments.only):
            continue
        results = run_file(arguments.checkout, name, environment)
        if not results:
            print(f"{name}: no result: its Python modules may be missing")
        for test, result in results.items():
            counts[result] += 1
            reason = EXPECTED_FAILURES.get((name, test))
            if result == "not ok" and reason is None:
                unexpected += 1
                print(f"{name}: {test}: FAILED")
            elif result == "not ok":
                print(f"{name}: {test}: fails as expected: {reason}")
            elif result == "ok" and reason is not None:
                print(f"{name}: {test}: passes, though listed: {reason}")
    print(f"passed {counts['ok']}, skipped {counts['skip']}, failed {counts['not ok']}, unexpected {unexpected}")
    return 1 if unexpected else 0


if __name__ == "__main__":
    raise SystemExit(main())
