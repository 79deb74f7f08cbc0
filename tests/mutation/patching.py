"""Makes a copy of the consensus package with a bug in it, and runs tests against that."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import orch_raft
from mutation.variants import Variant

TESTS = Path(__file__).resolve().parent.parent
RULES = sorted(str(path) for path in (TESTS / "unit/raft/core").glob("test_rules_*.py"))
SIMULATION = [str(TESTS / "simulation/raft")]
_PACKAGE = Path(orch_raft.__path__[0])


class PatchError(Exception):
    """A variant does not fit the source any more."""


def patched_source(variant: Variant) -> dict[str, str]:
    """The files of a variant by their path in the package.

    Raises:
        PatchError: a fragment does not occur in its file exactly once.
    """
    files: dict[str, str] = {}
    for edit in variant.edits:
        text = files.get(edit.file) or (_PACKAGE / edit.file).read_text()
        if text.count(edit.old) != 1:
            raise PatchError(f"{variant.name}: {edit.old!r} occurs {text.count(edit.old)} times in {edit.file}")
        files[edit.file] = text.replace(edit.old, edit.new)
    return files


def first_failure(variant: Variant, folder: Path, tests: list[str], *, timeout_s: float) -> str | None:
    """Run tests against a variant; the first one that fails, None when all pass.

    Raises:
        PatchError: the variant does not fit, or the tests could not be run.
    """
    copy = folder / "orch_raft"
    shutil.copytree(_PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in patched_source(variant).items():
        (copy / name).write_text(text)
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"),
                *("-m", "not long", "--timeout", "60", *tests),
            ],
            cwd=TESTS.parent,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it never comes to an end"
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or found is None:
        raise PatchError(f"{variant.name}: the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found[1].rsplit("::", 1)[-1]
