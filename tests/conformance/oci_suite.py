"""Runs the Open Container Initiative's validation programs (runtime-tools) against orch-runtime.

    python tests/conformance/oci_suite.py CHECKOUT [--runtime PATH] [--only NAME]

CHECKOUT is a checkout of runtime-tools with `runtimetest` and the programs of validation/ built beforehand. Each
program runs in a mount namespace of its own. Ends with 0 when only expected programs fail, 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import own_mounts

TIMEOUT_S = 60
_RESULT = re.compile(r"^\s*(ok|not ok) \d+( - )?(.*?)( *# ?SKIP.*)?$", re.IGNORECASE)

# Program to the reason why it does not pass; one that is not here has to.
_NO_CONTROLLER = "the test machine has no such controller, or its files are gone from the kernel"
_CAPABILITY = "the test machine's root lacks CAP_SYS_RESOURCE"
EXPECTED_FAILURES: dict[str, str] = {
    "delete": "wants delete of a created container refused; engines rely on its being done, as runc and crun do",
    "linux_cgroups_blkio": _NO_CONTROLLER,
    "linux_cgroups_hugetlb": _NO_CONTROLLER,
    "linux_cgroups_memory": "kernel memory limits are gone from the kernel",
    "linux_cgroups_network": _NO_CONTROLLER,
    "linux_cgroups_relative_blkio": _NO_CONTROLLER,
    "linux_cgroups_relative_hugetlb": _NO_CONTROLLER,
    "linux_cgroups_relative_memory": "kernel memory limits are gone from the kernel",
    "linux_cgroups_relative_network": _NO_CONTROLLER,
    "linux_ns_itype": "a container without a mount namespace is refused: its files are put together there",
    "linux_ns_path": "joining another mount namespace is refused, for the same reason",
    "linux_process_apparmor_profile": "the test machine's kernel has no AppArmor",
    "misc_props": "runs its program in a bundle that does not hold it; fails for runc and crun too",
    "pidfile": "kills a program that has ended, which the specification makes an error",
    "process_capabilities": _CAPABILITY,
    "process_capabilities_fail": _CAPABILITY,
    "process_rlimits": _CAPABILITY,
    "start": "wants a container made whose config has no process; fails for runc and crun too",
}


@dataclass
class Outcome:
    """What a program said: assertions by result, and what failed."""

    passed: int
    skipped: int
    failed: list[str]

    @property
    def is_clean(self) -> bool:
        """Whether nothing failed."""
        return not self.failed


def run_program(checkout: Path, program: Path, runtime: str) -> Outcome:
    """Run one program."""
    environment = {**os.environ, "RUNTIME": runtime}
    try:
        done = subprocess.run(
            [str(program)], cwd=checkout, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=TIMEOUT_S, check=False, preexec_fn=own_mounts.enter,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(0, 0, [f"did not end within {TIMEOUT_S} s"])
    outcome = Outcome(0, 0, [])
    for line in done.stdout.splitlines():
        match = _RESULT.match(line)
        if match is None:
            continue
        if match[4]:
            outcome.skipped += 1
        elif match[1] == "ok":
            outcome.passed += 1
        else:
            outcome.failed.append(match[3])
    if done.returncode and outcome.is_clean:
        said = (done.stderr or done.stdout).strip().splitlines()
        outcome.failed.append(f"ended with {done.returncode}: {said[-1] if said else ''}")
    return outcome


def main() -> int:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--runtime", default=shutil.which("orch-runtime") or "orch-runtime")
    parser.add_argument("--only", default="", help="one program, such as hooks")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("the suite needs root")
    checkout = arguments.checkout.resolve()
    programs = sorted(checkout.glob("validation/*/*.t"))
    if not programs or not (checkout / "runtimetest").exists():
        parser.error(f"{checkout} has no runtimetest or no validation/*/*.t: build them first, as its Makefile does")
    total = Outcome(0, 0, [])
    clean = unexpected = 0
    for program in programs:
        name = program.stem
        if arguments.only and name != arguments.only:
            continue
        outcome = run_program(checkout, program, arguments.runtime)
        total.passed += outcome.passed
        total.skipped += outcome.skipped
        total.failed += outcome.failed
        clean += outcome.is_clean
        reason = EXPECTED_FAILURES.get(name)
        if outcome.is_clean:
            if reason is not None:
                print(f"{name}: passes, though listed: {reason}")
            continue
        unexpected += reason is None
        print(f"{name}: " + (f"fails as expected: {reason}" if reason else "FAILED"))
        if reason is None or arguments.only:
            for failure in outcome.failed[:5]:
                print(f"    {failure}")
    print(
        f"programs clean {clean} of {len(programs)}, unexpected {unexpected}; "
        f"assertions passed {total.passed}, skipped {total.skipped}, failed {len(total.failed)}"
    )
    return 1 if unexpected else 0


if __name__ == "__main__":
    raise SystemExit(main())
