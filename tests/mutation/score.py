"""Prints which test catches which variant: `python tests/mutation/score.py [--simulation]`, run from the top."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mutation.patching import RULES, SIMULATION, first_failure
from mutation.variants import ALL


def main() -> None:
    """Print a table in markdown."""
    with_simulation = "--simulation" in sys.argv[1:]
    print("| variant | rule | simulation |\n| --- | --- | --- |")
    for number, variant in enumerate(ALL, start=1):
        found = []
        for tests in (RULES, SIMULATION) if with_simulation else (RULES,):
            with tempfile.TemporaryDirectory() as folder:
                found.append(first_failure(variant, Path(folder), tests, timeout_s=300) or "missed")
        rule, *simulation = found
        simulated = "" if not simulation else "missed" if simulation == ["missed"] else "caught"
        print(f"| {number}. {variant.name} | `{rule}` | {simulated} |", flush=True)


if __name__ == "__main__":
    main()
