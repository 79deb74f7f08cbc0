"""Stories told in scripts with golden text: `scenarios/*.txt`.

ORCH_REWRITE=1 writes the text anew, for a person to judge.
"""

import os
from pathlib import Path

import pytest

from unit.raft.core.script import Block, Script, parse, render

_FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_what_happens_is_what_the_scenario_tells(path: Path) -> None:
    """Each command of a scenario brings about exactly the messages, writes and changes that stand below it."""
    text = path.read_text()
    script = Script()
    happened = [Block(block.comment, block.command, script.run(block.command)) for block in parse(text)]
    if os.environ.get("ORCH_REWRITE"):
        path.write_text(render(happened))
        return
    assert render(happened) == text
