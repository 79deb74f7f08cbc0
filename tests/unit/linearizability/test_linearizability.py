"""The checker of histories: it accepts what an object can have done, and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linearizability.checker import Search, Verdict, check
from linearizability.explain import NotLinearizable, assert_linearizable, counter_example
from linearizability.history import NEVER_NS, Action, History, Operation, Outcome, cut, load
from linearizability.models import GrowingSet, Register
from unit.linearizability.generated import any_order_obeys, register_history, set_history

seeds = st.integers(0, 2**32).map(random.Random)


def op(text: str) -> Operation:
    """An operation from words: "asked-answered action [value] [@version] [base=N] [outcome]"; "0-?" has no answer."""
    times, action, *words = text.split()
    asked, _, answered = times.partition("-")
    value, version, base, outcome = "", 0, 0, Outcome.UNKNOWN if answered == "?" else Outcome.DONE
    for word in words:
        if word.startswith("@"):
            version = int(word[1:])
        elif word.startswith("base="):
            base = int(word[5:])
        elif word in {"exists", "missing", "out-of-date"}:
            outcome = Outcome(word.replace("-", " "))
        else:
            value = word
    return Operation(
        "c",
        Action(action),
        "k",
        int(asked),
        NEVER_NS if answered == "?" else int(answered),
        outcome,
        value=value,
        base=base,
        version=version,
    )


def listed(times: str, *elements: str) -> Operation:
    asked, _, answered = times.partition("-")
    return Operation("c", Action.LIST, "k", int(asked), int(answered), elements=frozenset(elements))


KNOWN = {
    "nothing happened": (True, []),
    "a write is read": (True, ["0-1 create a @1", "2-3 read a @1"]),
    "an acknowledged write is lost": (False, ["0-1 create a @1", "2-3 write b base=1 @2", "4-5 read a @1"]),
    "an acknowledged object is lost": (False, ["0-1 create a @1", "2-3 read missing"]),
    "a read beside a write sees either": (
        True,
        ["0-1 create a @1", "2-9 write b @2", "3-4 read a @1", "5-6 read b @2"],
    ),
    "a read goes back in time": (False, ["0-1 create a @1", "2-9 write b @2", "3-4 read b @2", "5-6 read a @1"]),
    "reads at once may differ": (True, ["0-1 create a @1", "2-9 write b @2", "3-6 read b @2", "4-7 read a @1"]),
    "a value nobody wrote": (False, ["0-1 create a @1", "2-3 read b @2"]),
    "an unknown write is seen late": (True, ["0-1 create a @1", "2-? write b", "3-4 read a @1", "90-91 read b @7"]),
    "an unknown write is never seen": (True, ["0-1 create a @1", "2-? write b", "3-4 read a @1"]),
    "an unknown write is undone": (False, ["0-1 create a @1", "2-? write b", "3-4 read b @7", "5-6 read a @1"]),
    "an unknown write has two versions": (
        False,
        ["0-1 create a @1", "2-? write b", "3-4 read b @7", "5-6 read b @8"],
    ),
    "an unknown write takes effect before it is asked": (False, ["0-1 create a @1", "2-3 read b @7", "4-? write b"]),
    "two writes on one version": (
        False,
        ["0-1 create a @1", "2-9 write b base=1 @2", "2-9 write c base=1 @3"],
    ),
    "one of two writes on one version is refused": (
        True,
        ["0-1 create a @1", "2-9 write b base=1 @2", "2-9 write c base=1 out-of-date"],
    ),
    "a write is refused though its base is the newest": (
        False,
        ["0-1 create a @1", "2-3 write b base=1 out-of-date", "4-5 read a @1"],
    ),
    "a write that somebody else's unknown write refuses": (
        True,
        ["0-1 create a @1", "2-? write b base=1", "3-4 write c base=1 out-of-date", "5-6 read b @2"],
    ),
    "a refusal by a write that was never made": (
        False,
        ["0-1 create a @1", "2-? write b base=1", "3-4 write c base=1 out-of-date", "5-6 read a @1"],
    ),
    "versions fall": (False, ["0-1 create a @5", "2-3 write b @4"]),
    "versions fall over a removal": (False, ["0-1 create a @5", "2-3 remove", "4-5 create b @5"]),
    "created twice": (False, ["0-1 create a @1", "2-3 create b @2"]),
    "created again after a removal": (True, ["0-1 create a @1", "2-3 remove", "4-5 create b @4"]),
    "removed twice": (False, ["0-1 create a @1", "2-3 remove", "4-5 remove"]),
    "removed by a removal of unknown outcome": (True, ["0-1 create a @1", "2-? remove", "4-5 remove missing"]),
    "a removed object is read": (False, ["0-1 create a @1", "2-3 remove", "4-5 read a @1"]),
    "an answer and a question of one moment overlap": (True, ["0-1 create a @1", "2-4 write b @2", "4-5 read a @1"]),
}


@pytest.mark.parametrize(("linearizable", "lines"), KNOWN.values(), ids=KNOWN.keys())
def test_small_histories(linearizable: bool, lines: list[str]) -> None:  # noqa: FBT001 - a column of the table
    """The verdict on each small history is the one that its name tells."""
    history = [op(line) for line in lines]
    assert check(Register(), history).verdict is (Verdict.LINEARIZABLE if linearizable else Verdict.NOT_LINEARIZABLE)
    assert any_order_obeys(Register(), history) is linearizable


@given(seeds, st.integers(1, 6), st.integers(0, 60))
@settings(deadline=None)
def test_what_a_register_did_is_accepted(chance: random.Random, clients: int, count: int) -> None:
    """Every history of a real register with real versions is linearizable, whatever was unknown of it."""
    history = register_history(chance, clients, count)
    assert check(Register(), history).verdict is Verdict.LINEARIZABLE


@given(seeds, st.integers(2, 5), st.integers(2, 40), st.sampled_from(["lost", "stale", "invented", "twice"]))
@settings(deadline=None)
def test_what_no_register_does_is_refused(chance: random.Random, clients: int, count: int, how: str) -> None:
    """A lost write, a stale read, an invented value, or two writes on one version: each is found in any history."""
    history = register_history(chance, clients, count, unknown=0)
    end_ns = max(one.answered_ns for one in history) if history else 0
    last = [
        Operation("c0", Action.REMOVE, "k", end_ns + 1, NEVER_NS, Outcome.UNKNOWN),
        Operation("c0", Action.CREATE, "k", end_ns + 2, NEVER_NS, Outcome.UNKNOWN, value="first"),
        Operation("c0", Action.READ, "k", end_ns + 3, end_ns + 4, value="first", version=10**9),
        Operation("c0", Action.WRITE, "k", end_ns + 5, end_ns + 6, value="second", base=10**9, version=10**9 + 1),
    ]
    wrong = {
        "lost": Operation("c1", Action.READ, "k", end_ns + 7, end_ns + 8, Outcome.MISSING),
        "stale": Operation("c1", Action.READ, "k", end_ns + 7, end_ns + 8, value="first", version=10**9),
        "invented": Operation("c1", Action.READ, "k", end_ns + 7, end_ns + 8, value="other", version=10**9 + 2),
        "twice": Operation("c1", Action.WRITE, "k", end_ns + 5, end_ns + 6, value="x", base=10**9, version=10**9 + 2),
    }[how]
    if how == "lost":  # a removal of unknown outcome may be what lost it, unless it was made before
        last[0] = Operation("c0", Action.REMOVE, "k", end_ns + 1, end_ns + 2, Outcome.DONE)
        if check(Register(), [*history, *last]).verdict is not Verdict.LINEARIZABLE:
            last = last[1:]
    assert check(Register(), [*history, *last]).verdict is Verdict.LINEARIZABLE
    assert check(Register(), [*history, *last, wrong]).verdict is Verdict.NOT_LINEARIZABLE


@given(seeds, st.integers(2, 3), st.integers(1, 6))
@settings(deadline=None)
def test_the_search_agrees_with_trying_every_order(chance: random.Random, clients: int, count: int) -> None:
    """On small histories, right and wrong ones, the verdict is that of trying all orders."""
    history = register_history(chance, clients, count, unknown=0.3)
    spoilt = []
    for one in history[:6]:
        fields = {}
        if chance.random() < 0.2 and one.outcome is Outcome.DONE:
            other = chance.choice(history)
            fields = {"value": other.value or one.value, "version": other.version or one.version}
        spoilt.append(replace(one, **fields))  # type: ignore[arg-type]
    expected = Verdict.LINEARIZABLE if any_order_obeys(Register(), spoilt) else Verdict.NOT_LINEARIZABLE
    assert check(Register(), spoilt).verdict is expected


@given(seeds, st.integers(1, 6), st.integers(0, 80))
@settings(deadline=None)
def test_what_a_set_did_is_accepted(chance: random.Random, clients: int, count: int) -> None:
    """Every history of a real set is linearizable, whatever was unknown of it."""
    history = set_history(chance, clients, count)
    assert check(GrowingSet(), history).verdict is Verdict.LINEARIZABLE


@given(seeds, st.integers(1, 3), st.integers(1, 6))
@settings(deadline=None)
def test_the_search_in_sets_agrees_with_trying_every_order(chance: random.Random, clients: int, count: int) -> None:
    """On small histories of a set, right and wrong ones, the verdict is that of trying all orders."""
    history = set_history(chance, clients, count, unknown=0.3)[:6]
    spoilt = [
        replace(one, elements=chance.choice(history).elements) if chance.random() < 0.3 else one for one in history
    ]
    expected = Verdict.LINEARIZABLE if any_order_obeys(GrowingSet(), spoilt) else Verdict.NOT_LINEARIZABLE
    assert check(GrowingSet(), spoilt).verdict is expected


def test_a_set_that_loses_an_element_is_refused() -> None:
    """An element whose addition was acknowledged is in every later list, and two lists never contradict each other."""
    added = [op("0-1 add a"), op("2-? add b"), op("3-5 add c")]
    assert check(GrowingSet(), [*added, listed("6-7", "a", "c")]).verdict is Verdict.LINEARIZABLE
    assert check(GrowingSet(), [*added, listed("6-7", "a")]).verdict is Verdict.NOT_LINEARIZABLE
    assert check(GrowingSet(), [*added, listed("2-4", "a", "b")]).verdict is Verdict.LINEARIZABLE
    crossed = [listed("2-4", "a", "b"), listed("2-4", "a", "c")]
    assert check(GrowingSet(), [*added, *crossed]).verdict is Verdict.NOT_LINEARIZABLE


def test_a_search_is_bounded() -> None:
    """A search that meets its bound says that it is undecided, and claims nothing."""
    at_once = [op(f"0-9 write v{number}") for number in range(12)]
    history = [op("0-0 create a"), *at_once, op("10-11 read never @1")]
    assert Search(Register(), history, max_configurations=500).run().verdict is Verdict.UNDECIDED
    assert Search(Register(), history).run().verdict is Verdict.NOT_LINEARIZABLE


def test_a_counter_example_is_small() -> None:
    """Of a long history with one stale read, what is shown is the writes around it and that read."""
    history = [op("0-1 create v0 @1")]
    for number in range(1, 200):
        begin = number * 10
        history.append(op(f"{begin}-{begin + 2} write v{number} base={number} @{number + 1}"))
        history.append(op(f"{begin + 3}-{begin + 5} read v{number} @{number + 1}"))
        if number == 150:
            history.append(op(f"{begin + 4}-{begin + 6} read v{number - 1} @{number}"))
    words = counter_example(Register(), history)
    assert "read k" in words
    assert "-> v149 at version 150" in words
    assert len(words.splitlines()) < 12, words


def test_a_history_is_checked_key_by_key() -> None:
    """What is wrong with one key is told of that key, and what is wrong between keys is not looked for."""
    right = [op("0-1 create a @1"), op("2-3 read a @1")]
    other = [replace(one, key="other") for one in right]
    assert assert_linearizable(Register(), [*right, *other]) > 0
    with pytest.raises(NotLinearizable, match="'other'"):
        assert_linearizable(Register(), [*right, *other, replace(op("4-5 read missing"), key="other")])


@given(seeds, st.integers(1, 4), st.integers(1, 20), st.integers(0, 400))
@settings(deadline=None)
def test_a_prefix_of_what_is_linearizable_is_so_too(
    chance: random.Random, clients: int, count: int, at_ns: int
) -> None:
    """A linearizable history that is cut at any moment is linearizable, with what was under way unknown."""
    history = register_history(chance, clients, count)
    assert check(Register(), cut(history, at_ns)).verdict is Verdict.LINEARIZABLE


def test_a_history_comes_back_from_its_file(tmp_path: Path) -> None:
    """What is saved of a failed run is what was recorded."""
    history = History()
    for one in [op("0-1 create a @1"), op("2-? write b base=1"), listed("3-4", "x", "y")]:
        history.add(one)
    history.save(tmp_path / "history")
    assert load(tmp_path / "history") == history.operations


def test_what_makes_no_sense_is_not_recorded() -> None:
    """An answer before its question, and an unknown outcome with an answer, are errors of the recorder."""
    with pytest.raises(ValueError, match="before it asked"):
        op("5-4 read a")
    with pytest.raises(ValueError, match="unknown outcome"):
        Operation("c", Action.WRITE, "k", 1, 2, Outcome.UNKNOWN)
    full = History(limit=1)
    full.add(op("0-1 create a"))
    with pytest.raises(OverflowError, match="at most 1"):
        full.add(op("2-3 read a"))
