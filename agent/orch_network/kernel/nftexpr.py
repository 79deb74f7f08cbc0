"""Expressions of nftables rules, as the kernel's rule machine has them.

Source: linux/netfilter/nf_tables.h. A rule is a list of expressions over registers. Registers are counted here in
32-bit words (``NFT_REG32_00`` = 8 …), so that concatenated keys are consecutive words.
"""

from __future__ import annotations

import struct

from orch_network.kernel.netlink import attribute, nested, text

REG_VERDICT = 0
REG = tuple(range(8, 24))
"""The sixteen 32-bit registers."""

NF_DROP, NF_ACCEPT = 0, 1
_NFT_JUMP = -3
PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP = 6, 17, 1

IPS_DST_NAT = 0x20
CT_STATE_NEW = 8

_EXPR_NAME, _EXPR_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_NFPROTO_IPV4 = 2
_RTN_LOCAL = 2
_PAYLOAD_NETWORK, _PAYLOAD_TRANSPORT = 1, 2


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(_EXPR_NAME, name), nested(_EXPR_DATA, *attributes))


def source_address(register: int) -> bytes:
    """Load ``ip saddr``."""
    return _payload(register, _PAYLOAD_NETWORK, 12, 4)


def destination_address(register: int) -> bytes:
    """Load ``ip daddr``."""
    return _payload(register, _PAYLOAD_NETWORK, 16, 4)


def destination_port(register: int) -> bytes:
    """Load ``th dport``."""
    return _payload(register, _PAYLOAD_TRANSPORT, 2, 2)


def _payload(register: int, base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _u32(1, register), _u32(2, base), _u32(3, offset), _u32(4, length))


def layer4_protocol(register: int) -> bytes:
    """Load ``meta l4proto``."""
    return _expression("meta", _u32(2, 16), _u32(1, register))


def input_link_name(register: int) -> bytes:
    """Load ``iifname`` (16 bytes)."""
    return _expression("meta", _u32(2, 6), _u32(1, register))


def output_link_name(register: int) -> bytes:
    """Load ``oifname`` (16 bytes)."""
    return _expression("meta", _u32(2, 7), _u32(1, register))


def connection_state(register: int) -> bytes:
    """Load ``ct state``."""
    return _expression("ct", _u32(2, 0), _u32(1, register))


def connection_status(register: int) -> bytes:
    """Load ``ct status``."""
    return _expression("ct", _u32(2, 2), _u32(1, register))


def original_destination(register: int) -> bytes:
    """Load ``ct original ip daddr``: where the client sent its first packet to."""
    return _expression("ct", _u32(2, 20), _u32(1, register), attribute(3, b"\0"))


def is_answer(register: int) -> bytes:
    """Go on only for packets in the answering direction of their flow: ``ct direction reply``."""
    return _expression("ct", _u32(2, 1), _u32(1, register)) + equals(register, b"\1")


def set_mark(register: int) -> bytes:
    """``meta mark set`` from a register."""
    return _expression("meta", _u32(2, 3), _u32(3, register))


def local_destination(register: int) -> bytes:
    """Go on only if the destination is an address of this namespace: ``fib daddr type local``."""
    load = _expression("fib", _u32(3, 2), _u32(2, 3), _u32(1, register))
    return load + equals(register, struct.pack("=I", _RTN_LOCAL))


def equals(register: int, value: bytes) -> bytes:
    """Go on only if the register holds ``value`` (a shorter value compares a prefix)."""
    return _compare(register, 0, value)


def differs(register: int, value: bytes) -> bytes:
    """Go on only if the register does not hold ``value``."""
    return _compare(register, 1, value)


def _compare(register: int, operation: int, value: bytes) -> bytes:
    return _expression("cmp", _u32(1, register), _u32(2, operation), nested(3, attribute(_DATA_VALUE, value)))


def masked(register: int, mask: bytes) -> bytes:
    """Replace the register by itself AND ``mask``."""
    zeros = bytes(len(mask))
    return _expression(
        "bitwise",
        _u32(1, register),
        _u32(2, register),
        _u32(3, len(mask)),
        nested(4, attribute(_DATA_VALUE, mask)),
        nested(5, attribute(_DATA_VALUE, zeros)),
    )


def in_subnet(register: int, network: bytes, prefix_length: int) -> bytes:
    """Go on only if the address in the register is in the subnet (the register is masked)."""
    mask = (0xFFFFFFFF << (32 - prefix_length) & 0xFFFFFFFF).to_bytes(4, "big")
    return masked(register, mask) + equals(register, network)


def is_new_connection(register: int) -> bytes:
    """Go on only for the first packet of a flow: ``ct state new``."""
    bit = struct.pack("=I", CT_STATE_NEW)
    return connection_state(register) + masked(register, bit) + equals(register, bit)


def is_untranslated(register: int) -> bytes:
    """Go on only for flows whose destination was not translated: ``ct status & dnat == 0``."""
    bit = struct.pack("=I", IPS_DST_NAT)
    return connection_status(register) + masked(register, bit) + equals(register, bytes(4))


def random_slot(register: int, slots: int) -> bytes:
    """Load a random number below ``slots``: ``numgen random mod``."""
    return _expression("numgen", _u32(1, register), _u32(2, slots), _u32(3, 1), _u32(4, 0))


def lookup(set_name: str, key_register: int, data_register: int) -> bytes:
    """Load the data of the map's element, or stop this rule if the key is not there."""
    return _expression("lookup", text(1, set_name), _u32(2, key_register), _u32(3, data_register))


def member(set_name: str, key_register: int) -> bytes:
    """Go on only if the key is in the set."""
    return _expression("lookup", text(1, set_name), _u32(2, key_register))


def immediate(register: int, value: bytes) -> bytes:
    """Load a constant."""
    return _expression("immediate", _u32(1, register), nested(2, attribute(_DATA_VALUE, value)))


def destination_nat(address_register: int, port_register: int | None = None) -> bytes:
    """``dnat to`` the address (and port) in registers; ends the rule."""
    return _nat(1, address_register, port_register)


def source_nat(address_register: int) -> bytes:
    """``snat to`` the address in a register; ends the rule."""
    return _nat(0, address_register, None)


def _nat(kind: int, address_register: int, port_register: int | None) -> bytes:
    parts = [_u32(1, kind), _u32(2, _NFPROTO_IPV4), _u32(3, address_register)]
    if port_register is not None:
        parts.append(_u32(5, port_register))
    return _expression("nat", *parts)


def masquerade() -> bytes:
    """``masquerade``: source NAT to the address of the link that the packet leaves by."""
    return _expression("masq")


def drop() -> bytes:
    """``drop``."""
    return _verdict(NF_DROP)


def jump(chain: str) -> bytes:
    """``jump`` to a chain of the same table."""
    return _verdict(_NFT_JUMP, chain)


def _verdict(code: int, chain: str = "") -> bytes:
    parts = [attribute(1, struct.pack(">i", code))]
    if chain:
        parts.append(text(2, chain))
    return _expression("immediate", _u32(1, REG_VERDICT), nested(2, nested(_DATA_VERDICT, *parts)))


def reject_prohibited() -> bytes:
    """``reject with icmp admin-prohibited``."""
    return _expression("reject", _u32(1, 0), attribute(2, b"\x0d"))
