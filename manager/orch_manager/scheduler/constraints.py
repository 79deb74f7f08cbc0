"""Placement constraints: `node.labels.zone == eu-1`.

Semantics are Swarm's (SwarmKit: manager/constraint/constraint.go): only == and !=, values compare without case, all
must hold; a label that a node lacks is the empty string, so != holds for it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from orch_proto.objects_pb2 import Node
from orch_proto.specs_pb2 import NodeRole

_SYNTAX = re.compile(r"^\s*(?P<key>[A-Za-z0-9_.\-/]+)\s*(?P<operator>==|!=)\s*(?P<value>.+?)\s*$")
_VALUE = re.compile(r"^[A-Za-z0-9:\-_\s.*()?+\[\]\\^$|/]+$")
_PLAIN_KEYS = ("node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch")
_LABEL_PREFIXES = ("node.labels.", "engine.labels.")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "i386": "386"}


class ConstraintSyntaxError(ValueError):
    """A constraint that cannot be understood; the text says why and what is possible."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One condition on a node."""

    key: str
    equal: bool
    value: str

    def __str__(self) -> str:
        return f"{self.key} {'==' if self.equal else '!='} {self.value}"

    def holds(self, node: Node) -> bool:
        """True when the node meets the condition."""
        return self._matches(node) is self.equal

    def _matches(self, node: Node) -> bool:
        if self.key == "node.ip":
            return _address_in(node.status.address, self.value)
        return _value_of(node, self.key).casefold() == _normal(self.key, self.value).casefold()


def normal_architecture(name: str) -> str:
    """An architecture under OCI's name: x86_64 is amd64."""
    return _ARCHITECTURES.get(name.lower(), name.lower())


def _normal(key: str, value: str) -> str:
    return normal_architecture(value) if key == "node.platform.arch" else value


def _address_in(address: str, wanted: str) -> bool:
    try:
        network = ipaddress.ip_network(wanted, strict=False)
        return ipaddress.ip_address(address) in network
    except ValueError:
        return False


def _value_of(node: Node, key: str) -> str:  # noqa: PLR0911 - one answer a key
    description = node.description
    if key.startswith("node.labels."):
        return node.spec.annotations.labels.get(key.removeprefix("node.labels."), "")
    if key.startswith("engine.labels."):
        return description.engine.labels.get(key.removeprefix("engine.labels."), "")
    if key == "node.role":
        return "manager" if node.role == NodeRole.NODE_ROLE_MANAGER else "worker"
    if key == "node.id":
        return node.id
    if key == "node.hostname":
        return description.hostname
    if key == "node.platform.os":
        return description.platform.os
    return normal_architecture(description.platform.architecture)


@lru_cache(maxsize=1024)
def parse(text: str) -> Constraint:
    """One constraint from its text.

    Raises:
        ConstraintSyntaxError: it has no ==/!=, an unknown key, or a value with characters that are not allowed.
    """
    match = _SYNTAX.match(text)
    if match is None:
        raise ConstraintSyntaxError(
            f"'{text}' is no constraint: write KEY==VALUE or KEY!=VALUE, for example node.role==manager"
        )
    key, value = match["key"], match["value"]
    lowered = key.lower()
    if lowered in _PLAIN_KEYS:
        key = lowered
    elif not any(lowered.startswith(prefix) and len(key) > len(prefix) for prefix in _LABEL_PREFIXES):
        known = ", ".join((*_PLAIN_KEYS, *(f"{prefix}NAME" for prefix in _LABEL_PREFIXES)))
        raise ConstraintSyntaxError(f"'{text}': there is no key '{key}': the keys are {known}")
    else:
        prefix = next(prefix for prefix in _LABEL_PREFIXES if lowered.startswith(prefix))
        key = prefix + key[len(prefix) :]
    if not _VALUE.match(value):
        raise ConstraintSyntaxError(f"'{text}': the value '{value}' has a character that is not allowed")
    if key == "node.ip":
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError as error:
            raise ConstraintSyntaxError(f"'{text}': {value} is neither an address nor a CIDR block") from error
    if key == "node.role" and value.lower() not in ("manager", "worker"):
        raise ConstraintSyntaxError(f"'{text}': a role is manager or worker")
    return Constraint(key, match["operator"] == "==", value)


def first_broken(texts: tuple[str, ...], node: Node) -> str:
    """The first constraint that the node does not meet; empty when it meets all."""
    for text in texts:
        try:
            constraint = parse(text)
        except ConstraintSyntaxError:
            return text
        if not constraint.holds(node):
            return text
    return ""


def check_preference(descriptor: str) -> str:
    """Why a spread preference cannot be understood; empty when it can."""
    if descriptor.startswith(_LABEL_PREFIXES) and len(descriptor.split(".", 2)[2]) > 0:
        return ""
    return f"'{descriptor}' is no preference: spread goes over node.labels.NAME or engine.labels.NAME"


def preference_value(node: Node, descriptor: str) -> str:
    """The branch that a node belongs to under a spread preference; nodes without the label form the branch ''."""
    return _value_of(node, descriptor)
