import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_agent.images import reference
from orch_agent.images.errors import InvalidReference

HEX = "a" * 64


@pytest.mark.parametrize(
    "text", ["web", "web:latest", "library/web", "docker.io/web", "docker.io/library/web:latest", "index.docker.io/web"]
)
def test_one_image_has_one_canonical_name(text: str) -> None:
    """All the forms in which people write a name of the default registry are the same name."""
    parsed = reference.parse(text)
    assert parsed.canonical == "docker.io/library/web:latest"
    assert parsed.familiar == "web:latest"


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("me/web:1.0", "docker.io/me/web:1.0", "me/web:1.0"),
        ("localhost/web", "localhost/web:latest", "localhost/web:latest"),
        ("host:5000/a/b/c:x", "host:5000/a/b/c:x", "host:5000/a/b/c:x"),
        ("[::1]:5000/web", "[::1]:5000/web:latest", "[::1]:5000/web:latest"),
        (f"web@sha256:{HEX}", f"docker.io/library/web@sha256:{HEX}", f"web@sha256:{HEX}"),
        (f"web:1@sha256:{HEX}", f"docker.io/library/web:1@sha256:{HEX}", f"web:1@sha256:{HEX}"),
        ("a.b/c", "a.b/c:latest", "a.b/c:latest"),
        ("a__b/c-d.e", "docker.io/a__b/c-d.e:latest", "a__b/c-d.e:latest"),
    ],
)
def test_names_are_completed_and_shortened_as_docker_does(text: str, canonical: str, familiar: str) -> None:
    """Registry, namespace and tag are completed by docker's rules, and the short form leads back."""
    parsed = reference.parse(text)
    assert (parsed.canonical, parsed.familiar) == (canonical, familiar)
    assert reference.parse(familiar) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "Web",
        "web:",
        "web:-x",
        "a//b",
        "/web",
        "web/",
        "web@sha256:12",
        "a_-b",
        "..",
        "a/../b",
        "x" * 300,
        "we b",
    ],
)
def test_what_is_no_name_is_refused_with_a_remedy(text: str) -> None:
    """A malformed name is refused, naming it and saying what to write."""
    with pytest.raises(InvalidReference, match=r"invalid image reference .*;"):
        reference.parse(text)


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    """Parsing never fails in another way, and a name survives being written and read."""
    try:
        parsed = reference.parse(text)
    except InvalidReference:
        return
    assert reference.parse(parsed.canonical) == parsed
    assert reference.parse(parsed.familiar) == parsed
