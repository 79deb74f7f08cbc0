"""The devices of a service: ``/dev/fuse``, ``/dev/sda:/dev/disk:r``, or a mapping."""

from __future__ import annotations

from orch_cli.compose.nodes import MapNode, ScalarNode
from orch_cli.compose.view import View
from orch_proto.types_pb2 import DeviceMapping


def read_devices(service: View) -> list[DeviceMapping]:
    """The devices that a service asks for; sorted by their path in the container."""
    result = []
    for node, path in service.items("devices"):
        if isinstance(node, MapNode):
            view = View(node, path, service.report)
            source = view.text("source") or ""
            words = [source, view.text("target") or source, view.text("permissions") or "rwm"]
        elif isinstance(node, ScalarNode):
            words = node.text.split(":")
        else:
            continue
        host = words[0]
        container = words[1] if len(words) > 1 else host
        permissions = words[2] if len(words) > 2 else "rwm"
        if len(words) > 3 or not host.startswith("/") or not container.startswith("/"):
            why = "it is HOST[:CONTAINER[:rwm]] with absolute paths"
            service.report.error(node.mark, path, f"{':'.join(words)!r} is no device", why, "write /dev/fuse")
        elif not permissions or set(permissions) - set("rwm"):
            why = "they are r, w and m"
            service.report.error(node.mark, path, f"{permissions!r} are no permissions", why, "write rwm")
        else:
            result.append(DeviceMapping(host_path=host, container_path=container, permissions=permissions))
    return sorted(result, key=lambda device: device.container_path)
