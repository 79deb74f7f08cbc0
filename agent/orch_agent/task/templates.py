"""Placeholders in hostnames, environment values and mounts: ``{{.Task.Slot}}`` and its kin.

The names are Swarm's (docker's documentation of ``service create``, "Create services using templates"). Anything else
in double braces is left as it is, since it may be meant for the program itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orch_proto import objects_pb2 as objects

_PLACEHOLDER = re.compile(r"\{\{\s*\.([A-Za-z.]+)\s*\}\}")
_LABEL = re.compile(r"""\{\{\s*index\s+\.Service\.Labels\s+["']([^"']+)["']\s*\}\}""")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a template may say about the node."""

    id: str
    hostname: str
    os: str = "linux"
    architecture: str = ""


def task_name(task: objects.Task) -> str:
    """The task's full name as Swarm builds it: ``shop_web.1.<id>``; the node's id for the slot of a global service."""
    return f"{task.service_name}.{task.slot or task.node_id}.{task.id}"


def expand(text: str, task: objects.Task, node: NodeFacts) -> str:
    """Replaces the placeholders in ``text`` with the facts of a task and its node."""
    if "{{" not in text:
        return text
    facts = {
        "Node.ID": node.id,
        "Node.Hostname": node.hostname,
        "Node.Platform.OS": node.os,
        "Node.Platform.Architecture": node.architecture,
        "Service.ID": task.service_id,
        "Service.Name": task.service_name,
        "Task.ID": task.id,
        "Task.Name": task_name(task),
        "Task.Slot": str(task.slot or task.node_id),
    }
    text = _LABEL.sub(lambda match: task.service_labels.get(match[1], ""), text)
    return _PLACEHOLDER.sub(lambda match: facts.get(match[1], match[0]), text)
