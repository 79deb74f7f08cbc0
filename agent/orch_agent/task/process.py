"""What a task's program is started with: its arguments and its environment. Pure.

The rules are Docker's: an entrypoint of the service drops the image's CMD; the service's variables win over the
image's.
"""

from __future__ import annotations

from orch_agent.images.model import ImageConfig
from orch_agent.task.templates import NodeFacts, expand
from orch_proto import objects_pb2 as objects
from orch_proto import specs_pb2 as specs

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def arguments(spec: specs.ContainerSpec, image: ImageConfig) -> tuple[str, ...]:
    """The argument list; empty when neither the service nor the image names a program."""
    entrypoint = tuple(spec.entrypoint) if spec.entrypoint_set else (image.entrypoint or ())
    inherited = () if spec.entrypoint_set else (image.cmd or ())
    return (*entrypoint, *(spec.args if spec.args_set else inherited))


def hostname(task: objects.Task, node: NodeFacts) -> str:
    """The task's host name: the service's, else the first twelve characters of the task's id as in Docker."""
    return expand(task.spec.container.hostname, task, node) or task.id[:12]


def environment(task: objects.Task, image: ImageConfig, node: NodeFacts) -> list[str]:
    """The variables, ``NAME=value``, later ones winning; HOME is left to the runtime, which knows the user."""
    spec = task.spec.container
    variables = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname(task, node)}
    if spec.tty:
        variables["TERM"] = "xterm"
    for entry in (*image.env, *(expand(entry, task, node) for entry in spec.env)):
        name, separator, value = entry.partition("=")
        if separator:
            variables[name] = value
        else:
            variables.pop(name, None)  # a bare name unsets, as in Docker
    return [f"{name}={value}" for name, value in variables.items()]
