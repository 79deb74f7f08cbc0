"""What a service mounts: volumes, tmpfs, and the files of secrets and configs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Final

from orch_cli.compose.nodes import MapNode, Node, ScalarNode
from orch_cli.compose.project import Item, Project
from orch_cli.compose.report import nearest
from orch_cli.compose.short_forms import PROPAGATIONS, parse_volume
from orch_cli.compose.units import parse_size_bytes
from orch_cli.compose.view import View, variable_hint
from orch_proto.types_pb2 import (
    MOUNT_TYPE_BIND,
    MOUNT_TYPE_TMPFS,
    MOUNT_TYPE_VOLUME,
    BindOptions,
    ConfigReference,
    FileTarget,
    Mount,
    SecretReference,
    TmpfsOptions,
    VolumeOptions,
)

_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TMPFS_FLAGS: Final = frozenset(
    [
        "ro",
        "rw",
        "noexec",
        "exec",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "sync",
        "async",
        "dirsync",
        "noatime",
        "atime",
        "nodiratime",
        "diratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ]
)
_TMPFS_VALUES: Final = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge"})


def read_mounts(service: View, project: Project) -> list[Mount]:
    """The mounts of a service, checked for targets that are used twice."""
    mounts: list[Mount] = []
    seen: dict[str, str] = {}
    for node, path in service.items("volumes"):
        mount = (
            _short(node, path, project)
            if isinstance(node, ScalarNode)
            else _long(View(node, path, project.report), project)
        )
        if mount is not None:
            _add(mounts, mount, node, path, seen=seen, project=project)
    for node, path in service.items("tmpfs"):
        if isinstance(node, ScalarNode):
            mount = _tmpfs(node, path, project)
            if mount is not None:
                _add(mounts, mount, node, path, seen=seen, project=project)
    return mounts


def _add(mounts: list[Mount], mount: Mount, node: Node, path: str, *, seen: dict[str, str], project: Project) -> None:
    target = posixpath.normpath(mount.target)
    if not mount.target.startswith("/") or target in ("/", "//"):
        project.report.error(
            node.mark,
            path,
            f"the target {mount.target!r} cannot be mounted",
            "it has to be an absolute path other than /",
        )
        return
    if target in seen:
        project.report.error(
            node.mark, path, f"the target {target} is used twice", f"{seen[target]} has it too", "remove one"
        )
        return
    seen[target] = path
    mount.target = target
    mounts.append(mount)


def _short(node: ScalarNode, path: str, project: Project) -> Mount | None:
    try:
        form = parse_volume(node.text)
    except ValueError as error:
        project.report.error(node.mark, path, f"{node.text!r} is no volume", str(error), variable_hint(node))
        return None
    for word in form.unknown:
        project.report.warn(
            node.mark, path, f"the option {word!r} has no effect", "known: ro, rw, nocopy and propagation words"
        )
    if not form.source:
        return Mount(
            type=MOUNT_TYPE_VOLUME,
            target=form.target,
            read_only=form.read_only,
            volume=VolumeOptions(labels=project.labels({})),
        )
    if form.source[0] in "/.~":
        return Mount(
            type=MOUNT_TYPE_BIND,
            source=project.path(form.source),
            target=form.target,
            read_only=form.read_only,
            bind=BindOptions(propagation=form.propagation),
        )
    return _named_volume(node, path, form.source, form.target, project, read_only=form.read_only, no_copy=form.no_copy)


def _named_volume(
    node: Node, path: str, source: str, target: str, project: Project, *, read_only: bool, no_copy: bool
) -> Mount | None:
    item = project.volumes.get(source)
    if item is None:
        if "/" in source:
            why, hint = "a name of a volume holds no /", f"write ./{source} for a folder beside the stack file"
        elif not _VOLUME_NAME.fullmatch(source):
            why, hint = "that is no name of a volume", "a path begins with /, ./ or ~/"
        else:
            why = "it is not in the top-level `volumes:`"
            hint = nearest(source, project.volumes) or f"add `volumes: {{{source}: }}` at the top level"
        project.report.error(node.mark, path, f"the volume {source!r} is not defined", why, hint)
        return None
    project.used_volumes.add(source)
    labels = item.labels if item.external else project.labels(item.labels)
    options = VolumeOptions(no_copy=no_copy, labels=labels)
    return Mount(type=MOUNT_TYPE_VOLUME, source=item.name, target=target, read_only=read_only, volume=options)


def _long(view: View, project: Project) -> Mount | None:
    kind = view.choice("type", ("volume", "bind", "tmpfs"), " or not supported yet as a type of mount")
    target = view.text("target")
    source = view.text("source")
    if kind is None or target is None:
        for key in ("type", "target"):
            if not view.has(key):
                view.error(key, f"{key} is missing", "a long mount needs type and target", f"add {key}:")
        return None
    for other in ("bind", "volume", "tmpfs"):
        if other != kind and view.has(other):
            view.error(other, f"does not go with type {kind}", "the options belong to another type", "remove them")
    read_only = view.boolean("read_only") or False
    if kind == "tmpfs":
        if source is not None:
            view.error("source", "a tmpfs has no source", "it begins empty", "remove it")
        options = view.view("tmpfs")
        tmpfs = TmpfsOptions(size_bytes=options.size_bytes("size") or 0, mode=options.octal("mode") or 0)
        return Mount(type=MOUNT_TYPE_TMPFS, target=target, read_only=read_only, tmpfs=tmpfs)
    if kind == "bind":
        if source is None:
            view.error("source", "source is missing", "a bind mount needs a path of the host", "add source:")
            return None
        return _long_bind(view, source, target, project, read_only=read_only)
    options = view.view("volume")
    if source is None:
        labels = project.labels(options.label_pairs("labels"))
        volume = VolumeOptions(no_copy=options.boolean("nocopy") or False, labels=labels)
        return Mount(type=MOUNT_TYPE_VOLUME, target=target, read_only=read_only, volume=volume)
    mount = _named_volume(
        view.node, view.path, source, target, project, read_only=read_only, no_copy=options.boolean("nocopy") or False
    )
    if mount is not None:
        mount.volume.labels.update(options.label_pairs("labels"))
    return mount


def _long_bind(view: View, source: str, target: str, project: Project, *, read_only: bool) -> Mount:
    bind = view.view("bind")
    recursive = bind.choice("recursive", ("enabled", "disabled"), " or not supported yet")
    options = BindOptions(
        propagation=bind.choice("propagation", PROPAGATIONS) or "",
        non_recursive=recursive == "disabled",
        create_host_path=bind.boolean("create_host_path") or False,
    )
    return Mount(type=MOUNT_TYPE_BIND, source=project.path(source), target=target, read_only=read_only, bind=options)


def _tmpfs(node: ScalarNode, path: str, project: Project) -> Mount | None:
    """``/path[:options]`` of the ``tmpfs`` attribute."""
    target, _, words = node.text.partition(":")
    options = TmpfsOptions()
    read_only = False
    for word in filter(None, words.split(",")):
        name, equals, value = word.partition("=")
        try:
            if name == "size" and equals:
                options.size_bytes = parse_size_bytes(value)
            elif name == "mode" and equals:
                options.mode = int(value, 8)
            elif word in ("ro", "rw"):
                read_only = word == "ro"
            elif word in _TMPFS_FLAGS or (equals and name in _TMPFS_VALUES):
                options.options.append(word)
            else:
                hint = nearest(name, _TMPFS_FLAGS | _TMPFS_VALUES)
                project.report.error(
                    node.mark, path, f"the option {word!r} is unknown", "tmpfs has no such option", hint
                )
        except ValueError as error:
            project.report.error(node.mark, path, f"the option {word!r} cannot be read", str(error))
    return Mount(type=MOUNT_TYPE_TMPFS, target=target, read_only=read_only, tmpfs=options)


# ---- secrets and configs -----------------------------------------------------------------------------


def read_secret_references(service: View, project: Project) -> list[SecretReference]:
    """The secrets of a service."""
    return [
        SecretReference(secret_name=item.name, file=file)
        for item, file in _references(service, "secrets", project.secrets, "/run/secrets", project)
    ]


def read_config_references(service: View, project: Project) -> list[ConfigReference]:
    """The configs of a service."""
    return [
        ConfigReference(config_name=item.name, file=file)
        for item, file in _references(service, "configs", project.configs, "/", project)
    ]


def _references(
    service: View, key: str, defined: Mapping[str, Item], base: str, project: Project
) -> list[tuple[Item, FileTarget]]:
    result = []
    seen: dict[str, str] = {}
    for node, path in service.items(key):
        if isinstance(node, MapNode):
            view = View(node, path, project.report)
            source = view.text("source")
            if source is None:
                if not view.has("source"):
                    view.error("source", "source is missing", f"it names one of the stack's {key}", "add source:")
                continue
            target, mode = view.text("target") or source, view.octal("mode")
            uid, gid = view.text("uid") or "", view.text("gid") or ""
        elif isinstance(node, ScalarNode):
            source = target = node.text
            uid = gid = ""
            mode = None
        else:
            continue
        item = defined.get(source)
        if item is None:
            hint = nearest(source, defined) or f"add it to the top-level `{key}:`"
            project.report.error(
                node.mark, path, f"{source!r} is not defined", f"it is not in the top-level `{key}:`", hint
            )
            continue
        full = posixpath.normpath(posixpath.join(base, target))
        if full in seen:
            project.report.error(
                node.mark,
                path,
                f"the target {full} is used twice",
                f"{seen[full]} has it too",
                "give one of them another target",
            )
            continue
        seen[full] = path
        file = FileTarget(path=target, uid=uid, gid=gid)
        if mode is not None:
            file.mode = mode
        result.append((item, file))
    return result
