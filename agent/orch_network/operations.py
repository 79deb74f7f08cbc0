"""The operations of the control socket, from JSON to the engine and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from orch_network import limits, protocol
from orch_network.control import Answer, Operation
from orch_network.engine import Engine
from orch_network.fields import Fields
from orch_network.protocol import read_network, read_port, read_service, read_task, to_json
from orch_network.reconcile import reconcile
from orch_network.status import stats, status

_DONE = Answer({})


def make_operations(engine: Engine, shutdown: Callable[[bool], None]) -> dict[str, Operation]:
    """All operations by name. ``shutdown(remove)`` ends the process after its answer."""
    return _network_operations(engine) | _service_operations(engine) | _node_operations(engine, shutdown)


def _network_operations(engine: Engine) -> dict[str, Operation]:
    def network_set(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "network_set")
        network = fields.value("network", read_network)
        fields.done()
        engine.network_set(network)
        return _DONE

    def network_remove(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "network_remove")
        network_id = fields.identifier("id")
        fields.done()
        engine.network_remove(network_id)
        return _DONE

    def attach(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "attach")
        task = fields.value("task", read_task)
        send_netns = fields.boolean("send_netns", default=False)
        fields.done()
        attachment = engine.attach(task)
        return Answer(to_json(attachment), netns=attachment.netns if send_netns else "")

    def detach(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "detach")
        task_id = fields.identifier("task_id")
        fields.done()
        engine.detach(task_id)
        return _DONE

    return {
        protocol.OP_NETWORK_SET: network_set,
        protocol.OP_NETWORK_REMOVE: network_remove,
        protocol.OP_ATTACH: attach,
        protocol.OP_DETACH: detach,
    }


def _service_operations(engine: Engine) -> dict[str, Operation]:
    def services_set(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "services_set")
        network_id = fields.identifier("network_id")
        services = fields.objects("services", limits.MAX_SERVICES_PER_NETWORK, read_service)
        fields.done()
        engine.services_set(network_id, services)
        return _DONE

    def services_keep(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "services_keep")
        network_id = fields.identifier("network_id")
        ids = fields.objects("ids", limits.MAX_SERVICES_PER_NETWORK, _read_id)
        fields.done()
        engine.services_keep(network_id, ids)
        return _DONE

    def service_patch(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "service_patch")
        network_id, service = fields.identifier("network_id"), fields.value("service", read_service)
        fields.done()
        engine.service_patch(network_id, service)
        return _DONE

    def service_remove(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "service_remove")
        network_id, service_id = fields.identifier("network_id"), fields.identifier("service_id")
        fields.done()
        engine.service_remove(network_id, service_id)
        return _DONE

    def ports_set(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "ports_set")
        ports = fields.objects("ports", limits.MAX_PORTS, read_port)
        fields.done()
        engine.ports_set(ports)
        return _DONE

    def port_patch(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "port_patch")
        port = fields.value("port", read_port)
        fields.done()
        engine.port_patch(port)
        return _DONE

    def port_remove(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "port_remove")
        host_ip, proto = fields.text("host_ip", ""), fields.text("protocol")
        published = fields.integer("published", 1, 65535)
        fields.done()
        engine.port_remove(host_ip, proto, published)
        return _DONE

    return {
        protocol.OP_SERVICES_SET: services_set,
        protocol.OP_SERVICES_KEEP: services_keep,
        protocol.OP_SERVICE_PATCH: service_patch,
        protocol.OP_SERVICE_REMOVE: service_remove,
        protocol.OP_PORTS_SET: ports_set,
        protocol.OP_PORT_PATCH: port_patch,
        protocol.OP_PORT_REMOVE: port_remove,
    }


def _read_id(value: object, where: str) -> str:
    return Fields({"id": value}, where).identifier("id")


def _node_operations(engine: Engine, shutdown: Callable[[bool], None]) -> dict[str, Operation]:
    def get_status(message: dict[str, Any]) -> Answer:
        Fields(message, "status").done()
        return Answer(status(engine))

    def get_stats(message: dict[str, Any]) -> Answer:
        Fields(message, "stats").done()
        return Answer(stats(engine))

    def run_reconcile(message: dict[str, Any]) -> Answer:
        Fields(message, "reconcile").done()
        return Answer({"repairs": [asdict(repair) for repair in reconcile(engine)]})

    def run_shutdown(message: dict[str, Any]) -> Answer:
        fields = Fields(message, "shutdown")
        remove = fields.boolean("remove", default=False)
        fields.done()
        shutdown(remove)
        return _DONE

    return {
        protocol.OP_STATUS: get_status,
        protocol.OP_STATS: get_stats,
        protocol.OP_RECONCILE: run_reconcile,
        protocol.OP_SHUTDOWN: run_shutdown,
    }
