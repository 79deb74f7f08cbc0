"""nftables over netlink: atomic batches that change tables, and dumps that read them.

Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h. All objects are of family ip.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orch_network.errors import KernelError
from orch_network.kernel.netlink import (
    NETLINK_NETFILTER,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NetlinkSocket,
    Request,
    attribute,
    iterate_attributes,
    nested,
    parse_attributes,
    text,
)

_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFPROTO_UNSPEC, NFPROTO_INET, NFPROTO_IPV4 = 0, 1, 2
(
    _NEWTABLE,
    _GETTABLE,
    _DELTABLE,
    _NEWCHAIN,
    _GETCHAIN,
    _DELCHAIN,
    _NEWRULE,
    _GETRULE,
    _DELRULE,
    _NEWSET,
    _GETSET,
    _DELSET,
    _NEWSETELEM,
    _GETSETELEM,
    _DELSETELEM,
) = (_SUBSYSTEM << 8 | number for number in range(15))

HOOK_PREROUTING, HOOK_INPUT, HOOK_FORWARD, HOOK_OUTPUT, HOOK_POSTROUTING = range(5)
PRIORITY_MANGLE, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_SRCNAT = -150, -100, 0, 100
_SET_IS_MAP = 8
_ELEMENTS_PER_MESSAGE = 512
"""Keeps each list attribute far below the 65,535 bytes that its length field can say."""

TYPE_IPV4_ADDR, TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_MARK = 7, 12, 13, 19
"""The numbers that the nft program gives to data types; the kernel only stores them for it."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; a base chain if ``hook`` is not None."""

    name: str
    kind: str = ""
    hook: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ElementSet:
    """A set, or a map if it has data types. Every field takes one or more whole 32-bit words."""

    name: str
    key_types: tuple[int, ...]
    data_types: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its expressions and a tag that the kernel keeps with it, by which we know it again."""

    expressions: bytes
    tag: bytes


def concatenated_type(types: Sequence[int]) -> int:
    """The nft program's number of a concatenation: six bits per field."""
    number = 0
    for kind in types:
        number = number << 6 | kind
    return number


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _body(*attributes: bytes, family: int = NFPROTO_IPV4) -> bytes:
    return struct.pack(">BBH", family, 0, 0) + b"".join(attributes)


class Batch:
    """Changes that the kernel makes all together or not at all."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.requests: list[Request] = []

    def _add(self, kind: int, flags: int, body: bytes) -> None:
        self.requests.append(Request(self.what, kind, flags, body))

    def add_table(self, table: str) -> None:
        """Make the table unless it is there."""
        self._add(_NEWTABLE, NLM_F_CREATE, _body(text(1, table)))

    def delete_table(self, table: str) -> None:
        """Remove the table with all that is in it; it must exist."""
        self._add(_DELTABLE, 0, _body(text(1, table)))

    def add_chain(self, table: str, chain: Chain) -> None:
        """Make the chain unless it is there."""
        parts = [text(1, table), text(3, chain.name)]
        if chain.hook is not None:
            priority = attribute(2, struct.pack(">i", chain.priority))
            parts += [nested(4, _u32(1, chain.hook), priority), _u32(5, 1), text(7, chain.kind)]
        self._add(_NEWCHAIN, NLM_F_CREATE, _body(*parts))

    def delete_chain(self, table: str, chain: str) -> None:
        """Remove an empty chain; it must exist."""
        self._add(_DELCHAIN, 0, _body(text(1, table), text(3, chain)))

    def flush_chain(self, table: str, chain: str) -> None:
        """Remove all rules of a chain, which must exist."""
        self._add(_DELRULE, 0, _body(text(1, table), text(2, chain)))

    def add_rule(self, table: str, chain: str, rule: Rule) -> None:
        """Append a rule."""
        parts = (text(1, table), text(2, chain), nested(4, rule.expressions), attribute(7, rule.tag))
        self._add(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, _body(*parts))

    def add_set(self, table: str, element_set: ElementSet, set_id: int) -> None:
        """Make a set or map unless it is there. ``set_id`` is unique in the batch."""
        keys, data = element_set.key_types, element_set.data_types
        parts = [text(1, table), text(2, element_set.name), _u32(3, _SET_IS_MAP if data else 0)]
        parts += [_u32(4, concatenated_type(keys)), _u32(5, 4 * len(keys))]
        if data:
            parts += [_u32(6, concatenated_type(data)), _u32(7, 4 * len(data))]
        parts.append(_u32(10, set_id))
        self._add(_NEWSET, NLM_F_CREATE, _body(*parts))

    def delete_set(self, table: str, name: str) -> None:
        """Remove a set that no rule uses; it must exist."""
        self._add(_DELSET, 0, _body(text(1, table), text(2, name)))

    def add_elements(self, table: str, name: str, elements: Mapping[bytes, bytes]) -> None:
        """Add elements (key: data, empty for a set); none of the keys may be there."""
        encoded = [
            nested(1, _value(1, key), _value(2, data)) if data else nested(1, _value(1, key))
            for key, data in elements.items()
        ]
        self._elements(_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, table, name, encoded)

    def delete_elements(self, table: str, name: str, keys: Iterable[bytes]) -> None:
        """Remove elements; all must be there."""
        self._elements(_DELSETELEM, 0, table, name, [nested(1, _value(1, key)) for key in keys])

    def _elements(self, kind: int, flags: int, table: str, name: str, encoded: list[bytes]) -> None:
        for start in range(0, len(encoded), _ELEMENTS_PER_MESSAGE):
            parts = (text(1, table), text(2, name), nested(3, *encoded[start : start + _ELEMENTS_PER_MESSAGE]))
            self._add(kind, flags, _body(*parts))


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(1, value))


class Nftables:
    """The packet filter of the namespace in which this object was made."""

    def __init__(self) -> None:
        self.netlink = NetlinkSocket(NETLINK_NETFILTER)

    def close(self) -> None:
        """Release the socket."""
        self.netlink.close()

    def commit(self, batch: Batch) -> None:
        """Carry out a batch.

        The last request asks for an acknowledgement (kernels before 6.10 give none for the end of a batch);
        errors of others come unasked. No answer at all is an error.
        """
        if not batch.requests:
            return
        netlink, what = self.netlink, batch.what
        netlink.drain()
        framed = [
            netlink.frame(Request(what, _BATCH_BEGIN, 0, struct.pack(">BBH", 0, 0, _SUBSYSTEM)), acknowledge=False)
        ]
        framed += [netlink.frame(request, acknowledge=False) for request in batch.requests[:-1]]
        last_sequence, last = netlink.frame(batch.requests[-1])
        framed.append((last_sequence, last))
        framed.append(
            netlink.frame(Request(what, _BATCH_END, 0, struct.pack(">BBH", 0, 0, _SUBSYSTEM)), acknowledge=False)
        )
        netlink.send(b"".join(data for _, data in framed), what)
        acknowledged = False
        while not acknowledged:
            for sequence, number, detail in netlink.read_acknowledgements(what):
                if number:
                    netlink.drain()
                    raise KernelError(what, number, detail)
                acknowledged = acknowledged or sequence == last_sequence

    # ---- readings --------------------------------------------------------------------------------------------------
    def tables(self) -> list[str]:
        """Names of the tables of family ip."""
        bodies = self.netlink.dump(Request("list nftables tables", _GETTABLE, 0, _body()))
        return [_text(parse_attributes(body, 4).get(1, b"")) for body in bodies]

    def chains(self, table: str) -> dict[str, Chain]:
        """The chains of a table by name."""
        return {chain.name: chain for family, name, chain, _ in self.all_chains() if (family, name) == (2, table)}

    def all_chains(self) -> list[tuple[int, str, Chain, int]]:
        """All chains of the families ip and inet as (family, table, chain, policy; 1 accepts, 0 drops)."""
        found = []
        for family in (NFPROTO_IPV4, NFPROTO_INET):
            request = Request("list nftables chains", _GETCHAIN, 0, _body(family=family))
            for body in self.netlink.dump(request):
                attributes = parse_attributes(body, 4)
                hook: int | None = None
                priority = 0
                if 4 in attributes:
                    where = parse_attributes(attributes[4])
                    hook = int.from_bytes(where.get(1, b""), "big")
                    priority = int.from_bytes(where.get(2, b""), "big", signed=True)
                chain = Chain(_text(attributes.get(3, b"")), _text(attributes.get(7, b"")), hook, priority)
                policy = int.from_bytes(attributes.get(5, b"\1"), "big")
                found.append((family, _text(attributes.get(1, b"")), chain, policy))
        return found

    def rule_tags(self, table: str) -> dict[str, list[bytes]]:
        """The tags of all rules of a table, chain by chain, in order; empty for rules of others."""
        body = _body(text(1, table))
        tags: dict[str, list[bytes]] = {}
        request = Request(f"list rules of table {table}", _GETRULE, 0, body, frozenset({errno.ENOENT}))
        for found in self.netlink.dump(request):
            attributes = parse_attributes(found, 4)
            if _text(attributes.get(1, b"")) == table:
                tags.setdefault(_text(attributes.get(2, b"")), []).append(attributes.get(7, b""))
        return tags

    def sets(self, table: str) -> set[str]:
        """The names of the sets and maps of a table."""
        request = Request(f"list sets of table {table}", _GETSET, 0, _body(text(1, table)), frozenset({errno.ENOENT}))
        found = (parse_attributes(body, 4) for body in self.netlink.dump(request))
        return {_text(attributes.get(2, b"")) for attributes in found if _text(attributes.get(1, b"")) == table}

    def elements(self, table: str, name: str) -> dict[bytes, bytes]:
        """The elements of a set or map; empty if it does not exist."""
        request = Request(
            f"list elements of {name}", _GETSETELEM, 0, _body(text(1, table), text(2, name)), frozenset({errno.ENOENT})
        )
        elements: dict[bytes, bytes] = {}
        for body in self.netlink.dump(request):
            for _, element in iterate_attributes(parse_attributes(body, 4).get(3, b"")):
                parts = parse_attributes(element)
                elements[_read_value(parts.get(1, b""))] = _read_value(parts.get(2, b""))
        return elements


def _read_value(payload: bytes) -> bytes:
    return parse_attributes(payload).get(1, b"")


def _text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode("utf-8", "replace")
