"""YAML as stack files mean it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_cli.compose.nodes import MapNode, ScalarNode, to_plain
from orch_cli.compose.report import Report
from orch_cli.compose.yaml_reader import read_yaml, resolve_scalar


def read(text: str) -> tuple[MapNode | None, list[str]]:
    report = Report()
    return read_yaml(text, "f.yml", report), [str(problem) for problem in report.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("22:22", "22:22"),
        ("2222:22", "2222:22"),
        ("0440", 288),
        ("0o440", 288),
        ("1_000", 1000),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("089", "089"),
        ("2001-01-01", "2001-01-01"),
        ("~", None),
        ("", None),
        ("null", None),
        ("1.10", 1.1),
        ("-5", -5),
        ("+", "+"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    """An unquoted word is a truth value, number or nothing by YAML 1.2's rules only; ports and yes/no stay text."""
    assert resolve_scalar(text) == value
    assert type(resolve_scalar(text)) is type(value)


def test_a_key_given_twice_names_both_lines() -> None:
    """A duplicate key is refused with the lines of both."""
    _, problems = read("a: 1\nb: 2\na: 3\n")
    assert problems == ["f.yml:3: a: the key is given twice; the first is in line 1; remove one of them"]


def test_merge_keys_fill_in_and_own_keys_win() -> None:
    """``<<`` takes keys from mappings, earlier ones first, and never overrides a mapping's own."""
    node, problems = read("x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz: {<<: [*x, *y], c: 3}\n")
    assert not problems
    assert node is not None
    assert to_plain(node.entries["z"]) == {"c": 3, "a": 1, "b": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a: {<<: {b: 1}, <<: {c: 1}}",
        "1: x",
        "[a]: x",
        "a: &a [*a]",
        "a:\n\tb: 1",
        "- a",
        "",
        "a: .inf",
        "a: !python/object:os.system x",
        "a: [",
    ],
)
def test_what_is_no_stack_file_is_refused_with_its_line(text: str) -> None:
    """Doubled merge keys, keys that are no text, endless aliases, tabs, lists and unknown tags are problems."""
    _, problems = read(text)
    assert problems
    assert all(problem.startswith("f.yml:") for problem in problems)


def test_aliases_that_multiply_are_cut_off() -> None:
    """A file whose aliases expand to more than the limit is refused instead of filling the memory."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    _, problems = read("\n".join(lines))
    assert "too large once it is expanded" in problems[0]


def test_places_and_texts_are_kept() -> None:
    """Every value knows its line, and a number the text that it was written as."""
    node, _ = read("\ufeffa:\r\n  b: 1.10\r\n")
    assert node is not None
    inner = node.entries["a"]
    assert isinstance(inner, MapNode)
    value = inner.entries["b"]
    assert isinstance(value, ScalarNode)
    assert (value.mark.line, value.text, value.value) == (2, "1.10", 1.1)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Reading never raises: it gives a mapping, or a problem."""
    report = Report()
    node = read_yaml(text, "f", report)
    assert (node is None) == bool(report.problems) or (node is not None and bool(report.problems))
