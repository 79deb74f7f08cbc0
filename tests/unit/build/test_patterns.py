import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_agent.build.patterns import IgnoreRules, PatternError, component_regex


@pytest.mark.parametrize(
    ("lines", "ignored", "kept"),
    [
        (["*.md"], ["a.md"], ["d/a.md", "a.mdx"]),
        (["**/*.md"], ["a.md", "d/a.md", "d/e/a.md"], ["a.txt"]),
        (["d"], ["d", "d/a", "d/e/a"], ["dd", "e/d"]),
        (["/d/"], ["d/a"], ["e/d"]),
        (["*", "!keep", "!src/**/*.py"], ["a", "src/a.c"], ["keep", "keep/sub", "src/a.py", "src/x/y.py"]),
        (["d", "!d/a", "d/a/b"], ["d/c", "d/a/b"], ["d/a", "d/a/c"]),
        (["a?c", "[x-z]1", "[^a]2"], ["abc", "y1", "b2"], ["ac", "a1", "a2", "a/c"]),
        (["  spaced  ", "", "# comment"], ["spaced"], ["# comment"]),
        (["./a/../b"], ["b"], ["a"]),
        (["**"], ["a", "a/b"], []),
        (["a/**"], ["a/b", "a/b/c"], ["b"]),
        (["**/node_modules"], ["node_modules/x", "p/node_modules/x"], ["p/modules"]),
        ([r"a\*b"], ["a*b"], ["axb"]),
        (["a.b"], ["a.b"], ["axb"]),
    ],
)
def test_the_last_matching_line_decides(lines: list[str], ignored: list[str], kept: list[str]) -> None:
    """Lines of a .dockerignore match as docker's reference says, for files and all that is below a folder."""
    rules = IgnoreRules(lines)
    assert [path for path in ignored if not rules.ignores(path)] == []
    assert [path for path in kept if rules.ignores(path)] == []


@pytest.mark.parametrize("pattern", ["[", "[]", "a[b", "[z-a]", "[a-]", "[^"])
def test_malformed_patterns_are_refused(pattern: str) -> None:
    """An open or empty bracket is an error, not a name."""
    with pytest.raises(PatternError):
        component_regex(pattern)


@settings(max_examples=200, deadline=None)
@given(st.text("abc*?", max_size=8), st.text("abc", max_size=8))
def test_stars_and_question_marks_match_as_in_other_matchers(pattern: str, name: str) -> None:
    """For patterns of stars and question marks the answer is that of the standard library's matcher."""
    assert bool(component_regex(pattern).match(name)) == fnmatch.fnmatchcase(name, pattern)
