"""Filters of system calls: profiles with conditions, the default one's answers, and the shorter program's."""

from __future__ import annotations

import errno
import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_runtime.capabilities import NUMBERS
from orch_runtime.config import DEFAULT_CAPABILITIES, filter_compaction, seccomp
from orch_runtime.config.default_seccomp import default_profile
from orch_runtime.config.filter_compaction import compact
from orch_runtime.config.seccomp_profile import Host, read_profile, resolve_profile
from orch_runtime.errors import InvalidConfig

X86_64, I386, OTHER = 0xC000003E, 0x40000003, 0x12345678
HOST = Host("x86_64", (6, 1))
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
# Numbers of x86_64 (arch/x86/entry/syscalls/syscall_64.tbl).
READ, SOCKET, CLONE, CHROOT, MOUNT, UNSHARE, KEYCTL, CLONE3 = 0, 41, 56, 161, 165, 272, 250, 435


def answer(program: bytes, number: int, *arguments: int, architecture: int = X86_64) -> int:
    """Run a filter as the kernel does (Documentation/networking/filter.rst), for what libseccomp emits."""
    code = [*struct.iter_unpack("=HBBI", program)]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    position = accumulator = 0
    while True:
        operation, if_true, if_false, operand = code[position]
        position += 1
        if operation == 0x06:
            return int(operand)
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, operand)[0]
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x05:
            position += operand
        else:
            comparison = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x35: accumulator >= operand,
                          0x45: bool(accumulator & operand)}  # fmt: skip
            position += if_true if comparison[operation] else if_false


def default_filter(*capabilities: str) -> bytes:
    return seccomp.compile_filter(resolve_profile(default_profile(), capabilities, HOST))[0]


def test_the_default_filter_answers() -> None:
    """Ordinary calls pass, what reaches out is refused, what is unknown does not exist; capabilities open theirs."""
    program = default_filter(*DEFAULT_CAPABILITIES)
    refused, unknown = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
    assert answer(program, READ) == answer(program, CHROOT) == ALLOW
    assert answer(program, MOUNT) == answer(program, KEYCTL) == refused
    assert answer(program, CLONE3) == answer(program, 5000) == unknown
    assert answer(program, CLONE, 17) == answer(program, UNSHARE, 0x200) == ALLOW
    for namespace in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(program, CLONE, namespace | 17) == answer(program, UNSHARE, namespace) == refused
    assert answer(program, SOCKET, 2) == ALLOW
    assert answer(program, SOCKET, 40) == ERRNO | errno.EAFNOSUPPORT
    assert answer(program, 3, architecture=I386) == ALLOW
    assert answer(program, READ, architecture=OTHER) not in (ALLOW, refused, unknown)
    assert answer(default_filter(), CHROOT) == refused
    admin = default_filter("CAP_SYS_ADMIN")
    assert answer(admin, MOUNT) == answer(admin, CLONE3) == answer(admin, UNSHARE, 0x20000) == ALLOW


@pytest.mark.parametrize("capabilities", [(), DEFAULT_CAPABILITIES, tuple(NUMBERS)], ids=["none", "default", "all"])
def test_the_shorter_program_answers_alike(capabilities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number that is known and many that are not, on each architecture, with arguments that rules look at."""
    short = default_filter(*capabilities)
    monkeypatch.setattr(seccomp, "compact", lambda program: program)
    long = default_filter(*capabilities)
    assert len(short) < 0.6 * len(long)
    draw = random.Random(7)
    numbers = [
        *range(1024),
        0x3FFFFFFF,
        0x40000000,
        0x40000001,
        0xFFFFFFFF,
        *(draw.getrandbits(32) for _ in range(200)),
    ]
    interesting = [0, 1, 8, 17, 40, 41, 0x20000, 0x20008, 0x7E020000, 0x10000011, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1]
    for architecture in (X86_64, I386, OTHER, 0):
        for number in numbers:
            for first in (draw.choice(interesting), draw.getrandbits(64), 0x20000):
                arguments = (first, draw.choice(interesting), draw.getrandbits(64))
                assert answer(short, number, *arguments, architecture=architecture) == answer(
                    long, number, *arguments, architecture=architecture
                ), (architecture, number, arguments)


_ACTIONS = st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG"])
_CALLS = ["read", "write", "open", "clone", "socket", "ioctl", "personality", "mount", "openat2", "clone3", "futex"]
_ARGUMENT = st.fixed_dictionaries(
    {
        "index": st.integers(0, 2),
        "value": st.sampled_from([0, 1, 2, 255, 1 << 31, 1 << 33]),
        "op": st.sampled_from([*seccomp.features()["operators"]]),  # type: ignore[misc]
    }
)
_RULE = st.fixed_dictionaries(
    {
        "names": st.lists(st.sampled_from(_CALLS), min_size=1, max_size=4),
        "action": _ACTIONS,
        "args": st.lists(_ARGUMENT, max_size=2),
    }
)


@given(st.lists(_RULE, max_size=8), _ACTIONS, st.integers(0, 1 << 32))
def test_any_program_is_shortened_alike(rules: list[dict[str, Any]], default: str, seed: int) -> None:
    """Profiles at random: those that libseccomp takes, before and after."""
    keep = seccomp.compact
    document = {"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": rules}
    try:
        seccomp.compact = lambda program: program
        try:
            long = seccomp.compile_filter(document)[0]
        except InvalidConfig:
            return
    finally:
        seccomp.compact = keep
    short = compact(long)
    assert len(short) <= len(long)
    draw = random.Random(seed)
    values = [0, 1, 2, 3, 255, 256, 1 << 31, 1 << 33, (1 << 33) + 1]
    for number in (0, 1, 2, 16, 41, 54, 56, 135, 165, 202, 435, 437, 120, 359, 999):
        for architecture in (X86_64, I386, OTHER):
            arguments = [draw.choice(values) for _ in range(3)]
            assert answer(short, number, *arguments, architecture=architecture) == answer(
                long, number, *arguments, architecture=architecture
            )


def test_programs_of_another_kind_are_left_alone() -> None:
    """Arithmetic, and a way that leaves the program: what is not understood is not touched."""
    arithmetic = (
        struct.pack("=HBBI", 0x20, 0, 0, 0) + struct.pack("=HBBI", 0x04, 0, 0, 1) + struct.pack("=HBBI", 6, 0, 0, 0)
    )
    assert compact(arithmetic) == arithmetic
    beyond = struct.pack("=HBBI", 0x05, 0, 0, 7)
    assert compact(beyond) == beyond
    assert filter_compaction.MAX_INSTRUCTIONS == 4096


def resolved(**profile: Any) -> dict[str, Any]:
    return resolve_profile({"defaultAction": "SCMP_ACT_ERRNO", **profile}, ["CAP_KILL"], HOST)


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({}, True),
        ({"includes": {"caps": ["CAP_KILL"]}}, True),
        ({"includes": {"caps": ["CAP_KILL", "CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_KILL"]}}, False),
        ({"includes": {"arches": ["arm64"]}}, False),
        ({"includes": {"arches": ["amd64", "x32"]}}, True),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"includes": {"minKernel": "4.8"}}, True),
        ({"includes": {"minKernel": "6.2"}}, False),
        ({"excludes": {"minKernel": "6.1"}}, False),
    ],
)
def test_conditions_of_rules(conditions: dict[str, Any], *, kept: bool) -> None:
    """Docker's: all that is included must hold, nothing that is excluded."""
    rules = resolved(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW", **conditions}])["syscalls"]
    assert bool(rules) is kept


def test_architectures() -> None:
    """The machine's own where none are named, of a map the machine's line, and a list as it is."""
    assert resolved()["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    mapped = [
        {"architecture": "SCMP_ARCH_AARCH64"},
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X32"]},
    ]
    assert resolved(archMap=mapped)["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]
    assert resolved(architectures=["SCMP_ARCH_X86_64"])["architectures"] == ["SCMP_ARCH_X86_64"]


@pytest.mark.parametrize(
    ("profile", "where"),
    [
        ({"rules": [1]}, "seccomp.rules"),
        ({"syscalls": [{"action": "SCMP_ACT_ALLOW"}]}, r"syscalls\[0\].names"),
        ({"syscalls": [{"names": ["read"]}]}, r"syscalls\[0\].action"),
        ({"syscalls": [{"names": ["read"], "action": "a", "if": 1}]}, r"syscalls\[0\].if"),
        ({"syscalls": [{"names": ["read"], "action": "a", "includes": {"minKernel": "new"}}]}, "minKernel"),
        ({"syscalls": [{"names": ["read"], "action": "a", "includes": {"users": ["x"]}}]}, "includes.users"),
        ({"archMap": [], "architectures": ["SCMP_ARCH_X86"]}, "archMap"),
    ],
)
def test_profiles_that_cannot_be_read(profile: dict[str, Any], where: str) -> None:
    """Each names the place; a key that is not known is no profile's."""
    with pytest.raises(InvalidConfig, match=where):
        resolved(**profile)


def test_a_profile_is_bounded_json() -> None:
    """A file that is too large, cut off, or a list is refused before it is looked at."""
    for text, why in ((" " * (1 << 20), "limit"), ("{", "JSON"), ("[]", "object"), ("[" * 50_000, "JSON")):
        with pytest.raises(InvalidConfig, match=why):
            read_profile(text)
