"""One service of the file as a ``ServiceSpec``, and what has to be built for it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from orch_cli.compose.container import read_container, read_log_options
from orch_cli.compose.networking import read_attachments, read_endpoint
from orch_cli.compose.nodes import ListNode, MapNode, ScalarNode
from orch_cli.compose.policies import read_placement, read_replicas, read_resources, read_restart, read_update
from orch_cli.compose.project import IMAGE_LABEL, Project
from orch_cli.compose.view import View, variable_hint
from orch_proto import defaults
from orch_proto.specs_pb2 import ReplicatedMode, ServiceMode, ServiceSpec, TaskSpec
from orch_proto.types_pb2 import (
    DEPENDENCY_CONDITION_COMPLETED_SUCCESSFULLY,
    DEPENDENCY_CONDITION_HEALTHY,
    DEPENDENCY_CONDITION_STARTED,
    Annotations,
    Dependency,
    LogDriver,
)

_SERVICE_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
_REFERENCE = re.compile(
    r"(?:[a-zA-Z0-9][a-zA-Z0-9.-]*(?::\d+)?/)?[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_URL = re.compile(r"(?:https?|git|ssh)://|git@|github\.com/")
_CONDITIONS: Final = {
    "service_started": DEPENDENCY_CONDITION_STARTED,
    "service_healthy": DEPENDENCY_CONDITION_HEALTHY,
    "service_completed_successfully": DEPENDENCY_CONDITION_COMPLETED_SUCCESSFULLY,
}
INLINE_DOCKERFILE: Final = ".orch.Dockerfile"


@dataclass(frozen=True, slots=True)
class Build:
    """An image that a service builds: a folder, and what its Dockerfile is given."""

    service: str
    image: str
    context: str
    dockerfile: str = ""
    inline: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    tags: tuple[str, ...] = ()
    always: bool = False
    inline_ignore: bytes | None = None
    """The .dockerignore that stands beside a Dockerfile outside of the context."""
    network: str = ""
    platform: str = ""
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """What RUN --mount=type=secret mounts, by id."""


def read_service(key: str, view: View, root: View, project: Project) -> tuple[ServiceSpec, Build | None]:
    """The service under ``key``; problems go to the report, and what is returned is then of no use."""
    _check_key(key, view, project)
    deploy = view.view("deploy")
    build, image = _image(key, view, project)
    container = read_container(view, image, project)
    aliases = _aliases(key, view, root)
    task = TaskSpec(
        container=container,
        resources=read_resources(view, deploy),
        restart=read_restart(view, deploy),
        placement=read_placement(view, deploy),
        networks=read_attachments(view, key, project, aliases),
        disconnect_grace_ms=view.view("x-orch").duration_ms("disconnect_grace") or 0,
    )
    log = read_log_options(view.view("logging"))
    if log is not None:
        task.log_driver.CopyFrom(LogDriver(name=log[0], options=log[1]))
    labels = {**deploy.label_pairs("labels"), IMAGE_LABEL: image}
    spec = ServiceSpec(
        annotations=Annotations(name=f"{project.stack}_{key}", labels=project.labels(labels)),
        task=task,
        mode=ServiceMode(replicated=ReplicatedMode(replicas=read_replicas(view, deploy))),
        update=read_update(deploy.view("update_config"), rollback=False),
        rollback=read_update(deploy.view("rollback_config"), rollback=True),
        endpoint=read_endpoint(view, deploy, project),
        depends_on=_dependencies(key, view, root, project),
    )
    return spec, build


def _check_key(key: str, view: View, project: Project) -> None:
    full = f"{project.stack}_{key}"
    if not _SERVICE_KEY.fullmatch(key):
        view.error(
            "",
            f"{key!r} cannot name a service",
            "letters, digits, - and _, beginning and ending with a letter or digit",
        )
    elif len(full) > defaults.SERVICE_NAME_LENGTH:
        view.error(
            "",
            f"the name {full!r} is too long",
            f"at most {defaults.SERVICE_NAME_LENGTH} characters together with the stack's name",
        )


# ---- image and build ---------------------------------------------------------------------------------


def check_reference(text: str) -> str:
    """Why ``text`` cannot name an image; empty when it can."""
    if _REFERENCE.fullmatch(text):
        return ""
    if text != text.lower() and _REFERENCE.fullmatch(text.lower()):
        return "names of images are in small letters"
    if text.endswith(":"):
        return "the tag behind the colon is missing"
    return "the form is [registry/]name[:tag][@digest]"


def _image(key: str, view: View, project: Project) -> tuple[Build | None, str]:
    image = view.text("image")
    node = view.get("build")
    if image is None and node is None:
        if not view.has("image"):
            view.error(
                "", "neither image nor build is given", "a service needs a program to run", "add image: name:tag"
            )
        return None, ""
    if image is not None and (problem := check_reference(image)):
        view.error("image", f"{image!r} is no name of an image", problem)
    if node is None:
        return None, image or ""
    name = image or f"{project.stack}_{key}:latest"
    return _build(key, name, node, view, project), name


def _build(key: str, image: str, node: object, view: View, project: Project) -> Build | None:
    always = view.text("pull_policy") == "build"
    if isinstance(node, ScalarNode):
        context = _context(view, "build", node, project)
        return Build(key, image, context, always=always) if context else None
    if not isinstance(node, MapNode):
        return None
    table = view.view("build")
    scalar = table.scalar("context")
    context = project.folder if scalar is None else _context(table, "context", scalar, project)
    dockerfile, inline = table.text("dockerfile") or "", table.text("dockerfile_inline") or ""
    if dockerfile and inline:
        table.error("dockerfile_inline", "dockerfile is given too", "there is one Dockerfile", "remove one of them")
    if dockerfile:
        dockerfile = os.path.relpath(os.path.join(context, dockerfile), context)
        if dockerfile.startswith(".."):
            table.error(
                "dockerfile", "it is outside the context", f"the context is {context}", "move it into the context"
            )
    args = {
        name: project.variables.get(name) if value is None else value for name, value in table.pairs("args").items()
    }
    tags = tuple(table.unique_words("tags"))
    for tag in tags:
        if problem := check_reference(tag):
            table.error("tags", f"{tag!r} is no name of an image", problem)
    return Build(
        service=key,
        image=image,
        context=context,
        dockerfile=INLINE_DOCKERFILE if inline else dockerfile,
        inline=inline,
        args={name: value for name, value in args.items() if value is not None},
        target=table.text("target") or "",
        labels=table.label_pairs("labels"),
        no_cache=table.boolean("no_cache") or False,
        tags=tags,
        always=always,
        network=_build_network(table),
        platform=_build_platform(table),
        secrets=_build_secrets(table, project),
    )


def _build_network(table: View) -> str:
    network = table.text("network") or ""
    if network not in ("", "default", "host", "none"):
        table.error(
            "network", f"{network!r} is not a network of builds", "steps run on the node", "use default, host or none"
        )
    return network


def _build_platform(table: View) -> str:
    platforms = table.unique_words("platforms")
    if len(platforms) > 1:
        table.error("platforms", "images are built for one platform", "that of the node", "leave one of them")
    return platforms[0] if platforms else ""


def _build_secrets(table: View, project: Project) -> dict[str, bytes]:
    """The contents that ``build.secrets`` names, by the id that the Dockerfile uses."""
    result = {}
    for node, path in table.items("secrets"):
        source = target = node.text if isinstance(node, ScalarNode) else ""
        if isinstance(node, MapNode):
            view = View(node, path, project.report)
            source = view.text("source") or ""
            target = view.text("target") or source
        data = project.secret_data.get(source)
        if data is None and source not in project.secrets:
            table.error(
                "secrets", f"{source!r} is not defined", "it is not in the top-level `secrets:`", "add it there"
            )
        elif data is None:
            table.error(
                "secrets",
                f"the content of {source!r} is not known here",
                "it is external",
                "give the secret file: or environment: instead",
            )
        else:
            result[target] = data
    return result


def _context(view: View, key: str, node: ScalarNode, project: Project) -> str:
    if not node.text:
        view.error(key, "the context is empty", "", variable_hint(node) or "write `.` for the folder of the file")
        return ""
    if _URL.match(node.text):
        view.error(key, f"{node.text!r} is no folder", "contexts are not fetched", "fetch it, and name the folder")
        return ""
    return project.path(node.text)


# ---- names and dependencies --------------------------------------------------------------------------


def _aliases(key: str, view: View, root: View) -> list[str]:
    """Further names on each network: ``container_name``, and the alias part of other services' ``links``."""
    aliases = []
    name = view.text("container_name")
    if name:
        aliases.append(name)
    for _, other in root.named("services"):
        for word in other.words("links"):
            target, colon, alias = word.partition(":")
            if colon and target == key and alias:
                aliases.append(alias)
    return aliases


def _dependencies(key: str, view: View, root: View, project: Project) -> list[Dependency]:
    services = root.view("services").node.entries
    result = []
    node = view.get("depends_on")
    for name, table in view.named("depends_on"):
        condition = table.choice("condition", tuple(_CONDITIONS)) or "service_started"
        required = table.boolean("required") is not False
        if name == key:
            table.error("", "a service cannot depend on itself", "", "remove it")
        elif name not in services and required:
            table.error(
                "",
                f"the service {name!r} is not there",
                "it is not in the file, or its profile is not active",
                "add it, or required: false",
            )
        elif condition == "service_healthy" and not _has_healthcheck(services.get(name)):
            view.report.warn(
                table.mark("condition"),
                table.path,
                f"{name} has no health check in the file",
                "the condition needs one of the image",
            )
        result.append(
            Dependency(
                service=f"{project.stack}_{name}",
                condition=_CONDITIONS[condition],
                required=required,
                restart=table.boolean("restart") or False,
            )
        )
    if isinstance(node, ListNode | MapNode) and result:
        view.warn(
            "depends_on",
            "start order is not yet enforced",
            "all services start at once",
            "let the program wait for what it needs",
        )
    return sorted(result, key=lambda dependency: dependency.service)


def _has_healthcheck(node: object) -> bool:
    return isinstance(node, MapNode) and isinstance(node.entries.get("healthcheck"), MapNode)
