"""The stack around the services: its name, and its networks, volumes, secrets and configs."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from orch_cli.compose.nodes import MapNode, ScalarNode
from orch_cli.compose.report import Report
from orch_cli.compose.view import View
from orch_proto import defaults
from orch_proto.specs_pb2 import ConfigSpec, NetworkSpec, SecretSpec, VolumeSpec
from orch_proto.types_pb2 import Annotations, Ipam, IpamPool

NAMESPACE_LABEL: Final = "com.docker.stack.namespace"
IMAGE_LABEL: Final = "com.docker.stack.image"
DEFAULT_NETWORK: Final = "default"
MTU_OPTION: Final = "com.docker.network.driver.mtu"

_OBJECT_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")

#: Reads at most so many bytes and one more of a file; raises OSError.
ReadFile = Callable[[str, int], bytes]


@dataclass(frozen=True, slots=True)
class Item:
    """A network, volume, secret or config of the file: its full name, and whether the stack owns it."""

    name: str
    external: bool
    labels: Mapping[str, str] = field(default_factory=dict)
    has_subnet: bool = False


@dataclass(slots=True)
class Project:
    """What the services of one stack refer to. ``used_*`` grow while services are read."""

    stack: str
    folder: str
    variables: Mapping[str, str]
    read_file: ReadFile
    report: Report
    networks: dict[str, Item] = field(default_factory=dict)
    volumes: dict[str, Item] = field(default_factory=dict)
    secrets: dict[str, Item] = field(default_factory=dict)
    secret_data: dict[str, bytes] = field(default_factory=dict, repr=False)
    configs: dict[str, Item] = field(default_factory=dict)
    used_networks: set[str] = field(default_factory=set)
    used_volumes: set[str] = field(default_factory=set)

    def path(self, text: str) -> str:
        """A path of the file as an absolute one: beside the first file, ``~`` from HOME."""
        if text == "~" or text.startswith("~/"):
            text = self.variables.get("HOME", "~") + text[1:]
        return os.path.normpath(os.path.join(self.folder, text))

    def labels(self, own: Mapping[str, str]) -> dict[str, str]:
        """``own`` labels and the one that marks the stack."""
        return {**own, NAMESPACE_LABEL: self.stack}


def _item(view: View, key: str, stack: str) -> Item:
    """Name and ownership of one top-level object."""
    external = view.get("external")
    name = view.text("name")
    is_external = False
    if isinstance(external, MapNode):
        is_external = True
        old = view.view("external").text("name")
        if old is not None and name is not None and old != name:
            view.error("external", "external.name and name differ", "", "remove external.name")
        name = name or old
    elif isinstance(external, ScalarNode):
        is_external = view.boolean("external") or False
    full = name or (key if is_external else f"{stack}_{key}")
    mark_key = "name" if name else ""
    if not _OBJECT_NAME.fullmatch(full):
        view.error(
            mark_key,
            f"{full!r} cannot be a name",
            "a name holds letters, digits, -, _ and . and begins and ends with a letter or digit",
        )
    return Item(full, is_external, view.label_pairs("labels"))


def _reject_with_external(view: View, item: Item, keys: tuple[str, ...]) -> None:
    for key in keys:
        if item.external and view.has(key):
            view.error(
                key,
                "cannot be set together with external",
                "an external object is used as it is",
                f"remove {key} or external",
            )


# ---- networks ----------------------------------------------------------------------------------------


def read_networks(root: View, project: Project) -> dict[str, NetworkSpec]:
    """The networks of the file by key (external ones too, with their name alone)."""
    specs = {}
    tables = dict(root.named("networks"))
    if DEFAULT_NETWORK not in tables:
        tables[DEFAULT_NETWORK] = View(None, f"networks.{DEFAULT_NETWORK}", project.report)
    for key, view in tables.items():
        item = _item(view, key, project.stack)
        spec = _network_spec(view, item, project)
        if any(pool.subnet for pool in spec.ipam.pools):
            item = Item(item.name, item.external, item.labels, has_subnet=True)
        project.networks[key] = item
        specs[key] = spec
    return specs


def _network_spec(view: View, item: Item, project: Project) -> NetworkSpec:
    _reject_with_external(view, item, ("driver_opts", "ipam", "internal", "labels"))
    spec = NetworkSpec(
        annotations=Annotations(name=item.name, labels=project.labels(item.labels)),
        driver="overlay",
        internal=view.boolean("internal") or False,
        attachable=view.boolean("attachable") or False,
    )
    driver = view.text("driver")
    if driver in ("bridge", "default"):
        view.warn("driver", f"{driver} is read as overlay", "a stack's networks span nodes")
    elif driver in ("host", "none") and item.external:
        view.error(
            "driver",
            f"the network {driver} is not supported yet",
            "tasks have a network namespace of their own",
            "remove it",
        )
    elif driver not in (None, "overlay"):
        view.error(
            "driver",
            f"the driver {driver!r} is not supported",
            "orch has overlay networks",
            "write overlay, or leave it out",
        )
    _driver_options(view, spec)
    if view.boolean("enable_ipv6"):
        view.error("enable_ipv6", "not supported yet", "networks have IPv4 only", "remove it")
    if view.boolean("enable_ipv4") is False:
        view.error("enable_ipv4", "cannot be switched off", "networks have IPv4 only", "remove it")
    _ipam(view.view("ipam"), spec)
    return spec


def _driver_options(view: View, spec: NetworkSpec) -> None:
    options = view.view("driver_opts")
    for name in options.node.entries:
        if name in ("mtu", MTU_OPTION):
            spec.mtu = options.integer(name, 68, 65535) or 0
        elif name == "encrypted":
            value = options.scalar(name)
            if value is None or value.text.lower() not in ("false", "0"):
                options.error(
                    name,
                    "not supported yet",
                    "the network would carry plain traffic",
                    "remove it, or use another way to encrypt",
                )
        else:
            options.warn(name, "has no effect", "the only option is mtu")


def _ipam(view: View, spec: NetworkSpec) -> None:
    driver = view.text("driver")
    if driver not in (None, "default"):
        view.error(
            "driver",
            f"the driver {driver!r} is not supported",
            "addresses are given by orch itself",
            "write default, or leave it out",
        )
    pools = []
    for node, path in view.items("config"):
        pool = View(node, path, view.report)
        pools.append(
            IpamPool(
                subnet=_network_text(pool, "subnet"),
                gateway=_address_text(pool, "gateway"),
                ip_range=_network_text(pool, "ip_range"),
                auxiliary_addresses={
                    name: _address_text(pool.view("aux_addresses"), name)
                    for name in pool.view("aux_addresses").node.entries
                },
            )
        )
    if pools:
        spec.ipam.CopyFrom(Ipam(driver="default", pools=pools))


def _network_text(view: View, key: str) -> str:
    text = view.text(key)
    if text is None:
        return ""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        view.error(key, f"{text!r} is no network", str(error), "write it as 10.0.9.0/24")
        return ""
    if network.version == 6:
        view.error(key, "IPv6 is not supported yet", "networks have IPv4 only", "give an IPv4 network")
        return ""
    return str(network)


def _address_text(view: View, key: str) -> str:
    text = view.text(key)
    if text is None:
        return ""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        view.error(key, f"{text!r} is no IPv4 address", str(error))
        return ""


# ---- volumes -----------------------------------------------------------------------------------------


def read_volumes(root: View, project: Project) -> dict[str, VolumeSpec]:
    """The named volumes of the file by key."""
    specs = {}
    for key, view in root.named("volumes"):
        item = _item(view, key, project.stack)
        _reject_with_external(view, item, ("driver", "labels"))
        driver = view.text("driver")
        if driver not in (None, "local", "default"):
            view.error(
                "driver",
                f"the volume driver {driver!r} is not supported",
                "orch has local volumes",
                "write local, or leave it out",
            )
        project.volumes[key] = item
        specs[key] = VolumeSpec(
            annotations=Annotations(name=item.name, labels=project.labels(item.labels)), driver="local"
        )
    return specs


# ---- secrets and configs -----------------------------------------------------------------------------


def read_secrets(root: View, project: Project) -> list[SecretSpec]:
    """The secrets that the stack owns, with their data."""
    specs = []
    for key, view in root.named("secrets"):
        item, data = _stored(view, key, project, defaults.SECRET_BYTES, ("file", "environment"))
        project.secrets[key] = item
        if data is not None:
            project.secret_data[key] = data
            specs.append(
                SecretSpec(annotations=Annotations(name=item.name, labels=project.labels(item.labels)), data=data)
            )
    return specs


def read_configs(root: View, project: Project) -> list[ConfigSpec]:
    """The configs that the stack owns, with their data."""
    specs = []
    for key, view in root.named("configs"):
        item, data = _stored(view, key, project, defaults.CONFIG_BYTES, ("file", "environment", "content"))
        project.configs[key] = item
        if data is not None:
            specs.append(
                ConfigSpec(annotations=Annotations(name=item.name, labels=project.labels(item.labels)), data=data)
            )
    return specs


def _stored(view: View, key: str, project: Project, limit: int, sources: tuple[str, ...]) -> tuple[Item, bytes | None]:
    """One secret or config: its name, and its data unless it is external."""
    item = _item(view, key, project.stack)
    if len(item.name) > defaults.SECRET_NAME_LENGTH:
        view.error("name", f"the name {item.name!r} is too long", f"at most {defaults.SECRET_NAME_LENGTH} characters")
    _reject_with_external(view, item, (*sources, "labels"))
    if item.external:
        return item, None
    given = [source for source in sources if view.has(source)]
    if len(given) != 1:
        what = "more than one source is given" if given else "no source is given"
        view.error(given[1] if given else "", what, "", f"give one of {', '.join(sources)} or external: true")
        return item, None
    data = _read_source(view, given[0], project, limit)
    if data is not None and len(data) > limit:
        view.error(given[0], f"{len(data)} bytes are too many", f"the limit is {limit} bytes", "mount a volume instead")
        return item, None
    return item, data


def _read_source(view: View, source: str, project: Project, limit: int) -> bytes | None:
    text = view.text(source, empty=source == "content")
    if text is None:
        return None
    if source == "content":
        return text.encode()
    if source == "environment":
        value = project.variables.get(text)
        if value is None:
            view.error(
                source, f"the variable {text} is not set", "its value is the content", f"set {text} in the environment"
            )
            return None
        return value.encode()
    return read_file(view, source, project.path(text), project, limit)


def read_file(view: View, key: str, path: str, project: Project, limit: int) -> bytes | None:
    """The content of a file that the stack file names; what cannot be read is reported."""
    try:
        data = project.read_file(path, limit)
    except OSError as error:
        view.error(
            key,
            f"cannot read {path}",
            error.strerror or str(error),
            "paths are relative to the folder of the first file",
        )
        return None
    return data
