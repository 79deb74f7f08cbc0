"""Variables in values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_cli.compose.interpolation import InterpolationError, Variables, substitute
from unit.compose.loading import container, load, service, service_problems

VALUES = {"SET": "v", "EMPTY": "", "W": "w"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$SET ${SET}", "v v"),
        ("$UNSET|${UNSET}", "|"),
        ("${UNSET:-d} ${EMPTY:-d} ${SET:-d}", "d d v"),
        ("${UNSET-d} ${EMPTY-d}|", "d |"),
        ("${SET:+a} ${UNSET:+a} ${EMPTY:+a}|", "a  |"),
        ("${EMPTY+a}", "a"),
        ("${SET:?m} ${EMPTY?m}", "v "),
        ("${UNSET:-${W}}", "w"),
        ("${UNSET:-${NO:-x}}", "x"),
        ("${UNSET:-a ${W} b}", "a w b"),
        ("$$", "$"),
        ("$$SET", "$SET"),
        ("${UNSET:-$$x}", "$x"),
        ("$", "$"),
        ("a$", "a$"),
        ("$1", "$1"),
        ("$(cmd)", "$(cmd)"),
        ("$SET_x", ""),
        ("${SET}_x", "v_x"),
        ("${SET:-${NO:?unused}}", "v"),
    ],
)
def test_forms(text: str, result: str) -> None:
    """Each form of the Compose Specification gives what Compose gives."""
    assert substitute(text, Variables(VALUES)) == result


@pytest.mark.parametrize(
    "text", ["${1}", "${}", "${V", "${V:3}", "${V/x/y}", "${V.x}", "${UNSET:?m}", "${EMPTY:?m}", "${UNSET?m}"]
)
def test_wrong_forms_and_required_variables_fail(text: str) -> None:
    """A form that Compose does not know, and a required variable without a value, are errors."""
    with pytest.raises(InterpolationError):
        substitute(text, Variables(VALUES))


@given(st.text(alphabet=st.characters(exclude_characters="$"), max_size=40))
def test_text_without_dollar_is_itself(text: str) -> None:
    """Text without a dollar sign is not changed, and escaping dollars brings any text through."""
    assert substitute(text, Variables({})) == text


@given(st.text(max_size=40))
def test_escaped_text_comes_through(text: str) -> None:
    """Doubling its dollar signs brings any text through unchanged."""
    assert substitute(text.replace("$", "$$"), Variables({"a": "b"})) == text


def test_required_variable_names_file_line_and_message() -> None:
    """``${V:?message}`` without a value tells file, line, attribute and message."""
    assert service_problems("hostname: ${HOST:?give a host}") == [
        (
            "a.yml:4: services.web.hostname: the variable HOST is not set; give a host; "
            "set it in the environment or in .env: HOST=…"
        )
    ]


def test_an_unset_variable_is_warned_about_once() -> None:
    """A variable without a value is replaced by nothing, with one warning however often it is used."""
    loaded = load("services: {a: {image: x, environment: {A: $V, B: $V}}, b: {image: x, labels: {l: $V}}}")
    assert [str(item).split(";")[0] for item in loaded.warnings] == [
        "a.yml:1: services.a.environment.A: the variable V is not set"
    ]


def test_typed_places_take_variables() -> None:
    """Numbers, truth values, octal modes and ports may come from variables."""
    spec = service("read_only: $T\nports: ['${P}:80']\ndeploy: {replicas: $N}", env={"T": "yes", "P": "8080", "N": "4"})
    assert spec.task.container.read_only_root
    assert spec.endpoint.ports[0].published_port == 8080
    assert spec.mode.replicated.replicas == 4


def test_an_empty_variable_is_named_where_a_value_is_missing() -> None:
    """When a value is wrong because a variable is empty, the message names the variable."""
    assert "variable DATA is not set" in service_problems("volumes: ['$DATA:/data']")[0]
    assert "variable N is not set" in service_problems("deploy: {replicas: $N}")[0]


def test_dotenv_is_below_the_environment() -> None:
    """Values come from the environment, and from .env where it has none."""
    env = container(
        "environment: {A: $A, B: $B, C: }", files={".env": "A=file\nB=file\nC=file\n"}, env={"A": "shell"}
    ).env
    assert list(env) == ["A=shell", "B=file", "C=file"]
