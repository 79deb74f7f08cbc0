"""Several files as one."""

from __future__ import annotations

from orch_proto.specs_pb2 import ServiceSpec
from unit.compose.loading import load, problems


def merged(first: str, second: str) -> ServiceSpec:
    return load(f"services: {{web: {{image: x, {first}}}}}", f"services: {{web: {{{second}}}}}").spec.services[0]


def test_scalars_are_replaced_also_by_false() -> None:
    """A later false overrides an earlier true."""
    assert not merged("read_only: true", "read_only: false").task.container.read_only_root


def test_null_keeps_what_was_there() -> None:
    """A later null changes nothing."""
    assert merged("hostname: h", "hostname: ").task.container.hostname == "h"


def test_commands_and_tests_are_replaced() -> None:
    """Commands and health checks are not joined."""
    spec = merged(
        "command: [a, b], healthcheck: {test: [CMD, a], interval: 1s}", "command: [c], healthcheck: {test: [CMD, z]}"
    )
    assert list(spec.task.container.args) == ["c"]
    assert list(spec.task.container.healthcheck.test) == ["CMD", "z"]
    assert spec.task.container.healthcheck.interval_ms == 1000


def test_environment_merges_by_name_in_any_form() -> None:
    """Lists and mappings of variables merge by name."""
    assert list(merged("environment: [A=1, B=1]", "environment: {B: 2, C: 3}").task.container.env) == [
        "A=1",
        "B=2",
        "C=3",
    ]


def test_ports_merge_by_address_port_and_protocol() -> None:
    """The same port twice stays one; different ports are kept."""
    spec = merged(
        "ports: ['8080:80', '53:53/udp']", "ports: ['8080:80', '9090:80', {target: 53, published: 53, protocol: udp}]"
    )
    assert [(port.published_port, port.target_port) for port in spec.endpoint.ports] == [
        (8080, 80),
        (53, 53),
        (9090, 80),
    ]


def test_volumes_merge_by_target() -> None:
    """A later mount at the same place replaces the earlier."""
    spec = merged("volumes: ['/a:/x', '/b:/y']", "volumes: ['/c:/x:ro']")
    assert [(mount.source, mount.target) for mount in spec.task.container.mounts] == [("/c", "/x"), ("/b", "/y")]


def test_lists_join_without_doubles() -> None:
    """Lists are joined, doubles dropped."""
    assert list(merged("cap_add: [NET_ADMIN, KILL]", "cap_add: [KILL, CHOWN]").task.container.cap_add) == [
        "NET_ADMIN",
        "KILL",
        "CHOWN",
    ]


def test_networks_merge_by_name() -> None:
    """A list and a mapping of networks merge by name, aliases join."""
    loaded = load(
        "services: {web: {image: x, networks: [a]}}\nnetworks: {a: , b: }",
        "services: {web: {networks: {a: {aliases: [n]}, b: }}}",
    )
    assert [(item.target, list(item.aliases)) for item in loaded.spec.services[0].task.networks] == [
        ("shop_a", ["web", "n"]),
        ("shop_b", ["web"]),
    ]


def test_logging_merges_while_the_driver_is_the_same() -> None:
    """Options of one driver join; another driver replaces all."""
    assert dict(
        merged(
            "logging: {driver: json-file, options: {max-file: 2}}", "logging: {options: {max-size: 1k}}"
        ).task.log_driver.options
    ) == {
        "max-file": "2",
        "max-size": "1024",
    }
    assert not merged(
        "logging: {driver: json-file, options: {max-file: 2}}", "logging: {driver: none}"
    ).task.log_driver.options


def test_reset_and_override() -> None:
    """``!reset`` removes a value, ``!override`` replaces all that came before."""
    spec = merged("ports: ['80:80'], cap_add: [KILL]", "ports: !reset [], cap_add: !override [CHOWN]")
    assert not spec.endpoint.ports
    assert list(spec.task.container.cap_add) == ["CHOWN"]


def test_problems_name_the_file_they_are_in() -> None:
    """A problem in the second file names the second file, and one in a value that was overridden is told too."""
    found = problems("services:\n  web: {image: x, tty: [1]}", "services:\n  web: {tty: false, foo: 1}")
    assert [item.split(":")[0] for item in found] == ["a.yml", "b.yml"]
