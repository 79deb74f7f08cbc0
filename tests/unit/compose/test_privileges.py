"""Privileges in stack files: read as they are meant, or told where they are wrong."""

from __future__ import annotations

import pytest

from orch_proto import privileges
from orch_proto.types_pb2 import DeviceMapping
from unit.compose.loading import container, service, service_problems


def test_privileges_are_carried() -> None:
    """Privileged, the node's network and devices reach the specification, and ask for what they say."""
    assert privileges.wanted(container("privileged: true")) == ("privileged",)
    assert privileges.wanted(container("network_mode: host")) == ("host-network",)
    assert list(service("network_mode: host").task.networks) == []
    found = container("devices: ['/dev/sda:/dev/disk:r', {source: /dev/fuse}]")
    assert list(found.devices) == [
        DeviceMapping(host_path="/dev/sda", container_path="/dev/disk", permissions="r"),
        DeviceMapping(host_path="/dev/fuse", container_path="/dev/fuse", permissions="rwm"),
    ]
    assert privileges.wanted(found) == ("device:/dev/sda", "device:/dev/fuse")


@pytest.mark.parametrize(
    "text",
    ["devices: [fuse]", "devices: ['/dev/a:/dev/b:x']", "devices: ['/a:/b:r:c']", "{network_mode: host, ports: [80]}"],
)
def test_wrong_privileges_are_told(text: str) -> None:
    """A device that is none, and ports beside the node's network, are told with their place."""
    assert len(service_problems(text)) == 1
