"""The constant rules of the three kinds of namespace. All that varies stands in sets and maps.

node    published, published_at   -> the router of the port's network
router  backends   (VIP . slot)                -> address of a task
published  (protocol . port . slot)    -> address . port of a task
hairpin    (address . address)         tasks that may be their own backend
task    127.0.0.11:53                          -> the resolver's sockets
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from orch_network import limits
from orch_network.digest import short_digest
from orch_network.ipv4 import Subnet, parse_address
from orch_network.kernel import nftexpr as x
from orch_network.kernel.nftables import (
    HOOK_FORWARD,
    HOOK_INPUT,
    HOOK_OUTPUT,
    HOOK_POSTROUTING,
    HOOK_PREROUTING,
    PRIORITY_DSTNAT,
    PRIORITY_FILTER,
    PRIORITY_MANGLE,
    PRIORITY_SRCNAT,
    TYPE_INET_PROTO,
    TYPE_INET_SERVICE,
    TYPE_IPV4_ADDR,
    TYPE_MARK,
    Chain,
    ElementSet,
    Rule,
)

R0, R1, R2, R3 = x.REG[:4]

ANSWER_MARK = 1
"""The packet mark, inside routers only, of answers to outside clients; a routing rule sends them to the uplink."""

MESH_ANSWER_MARK = 2
"""The packet mark, inside routers only, of what answers a flow into the subnet: its client may be another node."""

NODE_PUBLISHED = ElementSet("published", (TYPE_INET_PROTO, TYPE_INET_SERVICE), (TYPE_IPV4_ADDR,))
NODE_PUBLISHED_AT = ElementSet("published_at", (TYPE_IPV4_ADDR, TYPE_INET_PROTO, TYPE_INET_SERVICE), (TYPE_IPV4_ADDR,))
ROUTER_BACKENDS = ElementSet("backends", (TYPE_IPV4_ADDR, TYPE_MARK), (TYPE_IPV4_ADDR,))
ROUTER_PUBLISHED = ElementSet(
    "published", (TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_MARK), (TYPE_IPV4_ADDR, TYPE_INET_SERVICE)
)
ROUTER_HAIRPIN = ElementSet("hairpin", (TYPE_IPV4_ADDR, TYPE_IPV4_ADDR))


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The wanted shape of table ``orch`` in one namespace: chains with their rules (None: not ours to fill), sets."""

    chains: tuple[tuple[Chain, tuple[Rule, ...] | None], ...]
    sets: tuple[ElementSet, ...] = ()


def _rule(*expressions: bytes) -> Rule:
    encoded = b"".join(expressions)
    return Rule(encoded, b"orch:" + short_digest(encoded, 8).encode())


def _nat(name: str, hook: int, priority: int) -> Chain:
    return Chain(name, "nat", hook, priority)


def _filter(name: str, hook: int) -> Chain:
    return Chain(name, "filter", hook, PRIORITY_FILTER)


def node_ruleset() -> Ruleset:
    """The node's table: published ports in, masquerade out, nothing between networks, the operator's chain first."""
    from_routers = (x.input_link_name(R0), x.equals(R0, limits.UPLINK_PREFIX.encode()))
    to_routers = (x.output_link_name(R0), x.equals(R0, limits.UPLINK_PREFIX.encode()))
    not_to_routers = (x.output_link_name(R0), x.differs(R0, limits.UPLINK_PREFIX.encode()))
    from_uplink_pool = (x.source_address(R0), x.in_subnet(R0, limits.UPLINK_POOL, limits.UPLINK_PREFIX_LENGTH))
    loopback_pool = (b"\x7f\0\0\0", 8)
    publish = (
        _rule(
            x.local_destination(R0),
            x.destination_address(R0),
            x.layer4_protocol(R1),
            x.destination_port(R2),
            x.lookup(NODE_PUBLISHED_AT.name, R0, R0),
            x.destination_nat(R0),
        ),
        _rule(
            x.local_destination(R0),
            x.layer4_protocol(R0),
            x.destination_port(R1),
            x.lookup(NODE_PUBLISHED.name, R0, R0),
            x.destination_nat(R0),
        ),
    )
    return Ruleset(
        chains=(
            (Chain(limits.USER_CHAIN), None),
            (_nat("prerouting", HOOK_PREROUTING, PRIORITY_DSTNAT), publish),
            (_nat("output", HOOK_OUTPUT, PRIORITY_DSTNAT), publish),
            (
                _filter("input", HOOK_INPUT),
                # route_localnet on uplinks must not open the node's own loopback services to tasks.
                (
                    _rule(
                        *from_routers,
                        x.destination_address(R0),
                        x.in_subnet(R0, *loopback_pool),
                        x.is_new_connection(R0),
                        x.drop(),
                    ),
                ),
            ),
            (
                _filter("forward", HOOK_FORWARD),
                (
                    _rule(x.jump(limits.USER_CHAIN)),
                    # Into a network only by a published port: networks do not see each other, nor outsiders them.
                    _rule(*to_routers, x.is_new_connection(R0), x.is_untranslated(R0), x.drop()),
                ),
            ),
            (
                _nat("postrouting", HOOK_POSTROUTING, PRIORITY_SRCNAT),
                (
                    # The node's own 127.0.0.1:port, which no router could answer.
                    _rule(*to_routers, x.source_address(R0), x.in_subnet(R0, *loopback_pool), x.masquerade()),
                    # A task that calls a published port by the node's address: its router would see its own address.
                    _rule(*to_routers, *from_uplink_pool, x.masquerade()),
                    _rule(*not_to_routers, *from_uplink_pool, x.masquerade()),
                ),
            ),
        ),
        sets=(NODE_PUBLISHED, NODE_PUBLISHED_AT),
    )


def router_ruleset(
    subnet: Subnet, gateway: bytes, uplink_address: bytes, *, internal: bool, underlay: bytes = b""
) -> Ruleset:
    """A router's table: balancing, hairpin, egress; with ``underlay``, this node's address there, the mesh."""
    from_uplink = (x.input_link_name(R0), x.equals(R0, limits.ROUTER_UPLINK.encode() + b"\0"))
    to_uplink = (x.output_link_name(R0), x.equals(R0, limits.ROUTER_UPLINK.encode() + b"\0"))
    from_subnet = (x.source_address(R0), x.in_subnet(R0, subnet.network, subnet.prefix_length))
    # A node's own address names it to the router of the task, which cannot tell clients of two nodes apart otherwise.
    mesh_answers: tuple[Rule, ...] = ()
    mesh_sources: tuple[Rule, ...] = ()
    if underlay:
        mesh_answers = (
            _rule(
                x.original_destination(R0),
                x.in_subnet(R0, subnet.network, subnet.prefix_length),
                x.is_answer(R0),
                x.immediate(R0, MESH_ANSWER_MARK.to_bytes(4, sys.byteorder)),
                x.set_mark(R0),
            ),
        )
        mesh_sources = (
            _rule(
                x.output_link_name(R0),
                x.equals(R0, limits.OVERLAY_LINK.encode() + b"\0"),
                x.original_destination(R0),
                x.equals(R0, uplink_address),
                x.immediate(R2, underlay),
                x.source_nat(R2),
            ),
        )
    egress = (_rule(*to_uplink, x.is_new_connection(R0), x.reject_prohibited()),) if internal else ()
    return Ruleset(
        chains=(
            (
                Chain("answers", "filter", HOOK_PREROUTING, PRIORITY_MANGLE),
                (
                    # An outside client's address may lie in the subnet: what answers it must leave by the uplink.
                    _rule(
                        x.original_destination(R0),
                        x.equals(R0, uplink_address),
                        x.is_answer(R0),
                        x.immediate(R0, ANSWER_MARK.to_bytes(4, sys.byteorder)),
                        x.set_mark(R0),
                    ),
                    *mesh_answers,
                ),
            ),
            (
                _nat("prerouting", HOOK_PREROUTING, PRIORITY_DSTNAT),
                (
                    _rule(
                        *from_uplink,
                        x.destination_address(R0),
                        x.equals(R0, uplink_address),
                        x.layer4_protocol(R0),
                        x.destination_port(R1),
                        x.random_slot(R2, limits.SLOTS),
                        x.lookup(ROUTER_PUBLISHED.name, R0, R0),
                        x.destination_nat(R0, R1),
                    ),
                    _rule(
                        x.destination_address(R0),
                        x.random_slot(R1, limits.SLOTS),
                        x.lookup(ROUTER_BACKENDS.name, R0, R0),
                        x.destination_nat(R0),
                    ),
                ),
            ),
            (_filter("forward", HOOK_FORWARD), egress),
            (
                _nat("postrouting", HOOK_POSTROUTING, PRIORITY_SRCNAT),
                (
                    # A task balanced to itself would see its own address as the client and drop it as martian.
                    _rule(
                        x.source_address(R0),
                        x.destination_address(R1),
                        x.member(ROUTER_HAIRPIN.name, R0),
                        x.immediate(R2, gateway),
                        x.source_nat(R2),
                    ),
                    *mesh_sources,
                    # Subnets of networks may overlap, so no task address leaves its router.
                    _rule(*to_uplink, *from_subnet, x.immediate(R2, uplink_address), x.source_nat(R2)),
                ),
            ),
        ),
        sets=(ROUTER_BACKENDS, ROUTER_PUBLISHED, ROUTER_HAIRPIN),
    )


def task_ruleset(udp_port: int, tcp_port: int) -> Ruleset:
    """A task's table: what it sends to 127.0.0.11:53 reaches the resolver's sockets."""
    resolver = parse_address(limits.DNS_ADDRESS, "resolver")

    def redirect(protocol: int, port: int) -> Rule:
        return _rule(
            x.destination_address(R0),
            x.equals(R0, resolver),
            x.layer4_protocol(R0),
            x.equals(R0, bytes((protocol,))),
            x.destination_port(R0),
            x.equals(R0, (53).to_bytes(2, "big")),
            x.immediate(R0, resolver),
            x.immediate(R1, port.to_bytes(2, "big")),
            x.destination_nat(R0, R1),
        )

    rules = (redirect(x.PROTOCOL_UDP, udp_port), redirect(x.PROTOCOL_TCP, tcp_port))
    return Ruleset(chains=((_nat("output", HOOK_OUTPUT, PRIORITY_DSTNAT), rules),))


# ---- elements ------------------------------------------------------------------------------------------------------
PROTOCOL_NUMBERS = {"tcp": x.PROTOCOL_TCP, "udp": x.PROTOCOL_UDP}


def port_words(protocol: str, port: int) -> bytes:
    """``inet_proto . inet_service`` as key words."""
    return bytes((PROTOCOL_NUMBERS[protocol], 0, 0, 0)) + port_word(port)


def port_word(port: int) -> bytes:
    """A port as one word."""
    return port.to_bytes(2, "big") + b"\0\0"


def slot_word(slot: int) -> bytes:
    """A slot number as one word, as ``numgen`` leaves it in a register (host order)."""
    return slot.to_bytes(4, sys.byteorder)


def read_slot_word(word: bytes) -> int:
    """The inverse of ``slot_word``."""
    return int.from_bytes(word, sys.byteorder)
