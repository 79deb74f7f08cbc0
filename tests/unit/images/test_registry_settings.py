"""What a node's files say about registries: mirrors, authorities, logins."""

import base64
import json
from pathlib import Path

import pytest

from orch_agent.images.registry import credentials
from orch_agent.images.registry.credentials import Credentials
from orch_agent.images.registry.errors import SettingsInvalid
from orch_agent.images.registry.settings import Endpoint, read_settings


def test_the_file_names_mirrors_authorities_and_what_is_insecure(tmp_path: Path) -> None:
    """Mirrors come first; plain HTTP is for what is called insecure, and for this machine, alone."""
    path = tmp_path / "registries.yml"
    path.write_text(
        "docker.io: {mirrors: [https://mirror.example/hub/]}\n"
        "own.example:5000: {ca: /etc/own.pem}\nold.example: {insecure: true}\n"
    )
    found = read_settings(path)
    assert found.endpoints("docker.io") == (
        Endpoint("https://mirror.example/hub", registry="mirror.example"),
        Endpoint("https://registry-1.docker.io", registry="docker.io"),
    )
    assert found.endpoints("own.example:5000") == (
        Endpoint("https://own.example:5000", ca="/etc/own.pem", registry="own.example:5000"),
    )
    assert [one.url for one in found.endpoints("old.example")] == ["https://old.example", "http://old.example"]
    assert [one.url for one in found.endpoints("127.0.0.1:5000")] == ["https://127.0.0.1:5000", "http://127.0.0.1:5000"]
    assert [one.url for one in found.endpoints("10.0.0.1:5000")] == ["https://10.0.0.1:5000"]


def test_no_file_says_nothing(tmp_path: Path) -> None:
    """A node without the file asks each registry over TLS."""
    assert read_settings(tmp_path / "none.yml").endpoints("a.example") == (
        Endpoint("https://a.example", registry="a.example"),
    )


@pytest.mark.parametrize(
    "text",
    ["[]", "a: [", "a/b: {}", "a: {mirror: x}", "a: {mirrors: x}", "a: {mirrors: [ftp://x]}", "a: {insecure: maybe}"],
)
def test_a_file_with_a_mistake_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    """Nothing is guessed: a registry that was meant to be insecure, or mirrored, is not silently something else."""
    path = tmp_path / "registries.yml"
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match=r"registries\.yml"):
        read_settings(path)


def login_file(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document))
    return path


def test_logins_are_found_as_docker_wrote_them(tmp_path: Path) -> None:
    """By host; docker.io under its old address; a token in the place of a password; nothing for others."""
    pair = base64.b64encode(b"ann:se:cret").decode()
    path = login_file(
        tmp_path,
        {"auths": {"a.example": {"auth": pair}, "https://index.docker.io/v1/": {"auth": "", "identitytoken": "T"}}},
    )
    assert credentials.find("a.example", path) == Credentials("ann", "se:cret")
    assert credentials.find("docker.io", path) == Credentials(identity_token="T")
    assert credentials.find("b.example", path) is None
    assert credentials.find("b.example", tmp_path / "none.json") is None
    assert "cret" not in repr(credentials.find("a.example", path))


def test_a_credential_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program gets the registry on its standard input; what it does not know is no error."""
    helper = tmp_path / "docker-credential-test"
    script = """#!/bin/sh
read host
[ "$host" = a.example ] || exit 1
echo '{"Username":"ann","Secret":"s"}'
"""
    helper.write_text(script)
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = login_file(tmp_path, {"credsStore": "test"})
    assert credentials.find("a.example", path) == Credentials("ann", "s")
    assert credentials.find("b.example", path) is None
    with pytest.raises(SettingsInvalid, match="no name of a program"):
        credentials.find("a.example", login_file(tmp_path, {"credsStore": "../evil"}))
    with pytest.raises(SettingsInvalid, match="cannot run"):
        credentials.find("a.example", login_file(tmp_path, {"credsStore": "missing"}))


@pytest.mark.parametrize(
    "document", [[], {"auths": {"a.example": {"auth": "%%%"}}}, {"auths": {"a.example": {"auth": "YW5u"}}}]
)
def test_a_login_file_with_a_mistake_is_refused(tmp_path: Path, document: object) -> None:
    """A login that cannot be read is told, and not taken for none."""
    with pytest.raises(SettingsInvalid):
        credentials.find("a.example", login_file(tmp_path, document))
