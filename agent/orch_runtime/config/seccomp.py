"""`linux.seccomp` to a BPF program, compiled by libseccomp (which runc, crun and systemd use)."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping

from orch_runtime.config.filter_compaction import compact
from orch_runtime.config.reader import Reader
from orch_runtime.errors import InvalidConfig, Refused

_LIBRARY = "libseccomp.so.2"
# include/uapi/linux/seccomp.h
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
_ATTRIBUTE_NO_NEW_PRIVILEGES, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE = 3, 8, 2
_UNKNOWN_SYSCALL = -1
_U64 = (1 << 64) - 1


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("value_two", ctypes.c_uint64),
    ]


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise Refused(
            f"linux.seccomp needs {_LIBRARY}, which cannot be loaded ({error}): install libseccomp2"
        ) from error
    context, number = ctypes.c_void_p, ctypes.c_uint32
    library.seccomp_init.argtypes, library.seccomp_init.restype = [number], context
    library.seccomp_release.argtypes, library.seccomp_release.restype = [context], None
    library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_arch_resolve_name.restype = number
    library.seccomp_arch_add.argtypes = [context, number]
    library.seccomp_attr_set.argtypes = [context, ctypes.c_int, number]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [context, number, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
    library.seccomp_export_bpf.argtypes = [context, ctypes.c_int]
    return library


def _action(reader: Reader, key: str, errno_key: str) -> int:
    name = reader.text(key)
    if name not in _ACTIONS:
        raise reader.fail(key, f"{name!r} is not supported; known are {', '.join(_ACTIONS)}")
    number = reader.integer(errno_key, 0, 4095, errno.EPERM)
    if name in _WITH_ERRNO:
        return _ACTIONS[name] | number
    if reader.has(errno_key):
        raise reader.fail(errno_key, f"has no meaning for {name}")
    return _ACTIONS[name]


def _comparisons(rule: Reader) -> list[list[_Comparison]]:
    """Return the conditions of each kernel rule: several on one argument are alternatives, as runc has them."""
    found = []
    for entry in rule.readers("args", 64):
        operator = entry.text("op")
        if operator not in _OPERATORS:
            raise entry.fail("op", f"{operator!r} is none of {', '.join(_OPERATORS)}")
        index = entry.integer("index", 0, 5)
        value, second = entry.integer("value", 0, _U64), entry.integer("valueTwo", 0, _U64, 0)
        found.append(_Comparison(index, _OPERATORS[operator], value, second))
    if len({entry.argument for entry in found}) < len(found):
        return [[entry] for entry in found]
    return [found]


def _add_rules(library: ctypes.CDLL, context: int, seccomp: Reader, default: int) -> None:
    for rule in seccomp.readers("syscalls", 4096):
        action = _action(rule, "action", "errnoRet")
        if action == default:
            continue
        conditions = _comparisons(rule)
        names = rule.texts("names", 2048)
        if not names:
            raise rule.fail("names", "must name at least one system call")
        for name in names:
            number = int(library.seccomp_syscall_resolve_name(name.encode()))
            if number == _UNKNOWN_SYSCALL:
                continue  # a call that this library is too old to know falls to the default action, as with runc
            for comparisons in conditions:
                array = (_Comparison * len(comparisons))(*comparisons)
                result = int(library.seccomp_rule_add_array(context, action, number, len(comparisons), array))
                if result < 0 and result != -errno.EEXIST:
                    raise rule.fail("names", f"{name}: libseccomp refuses the rule: {os.strerror(-result)}")


def compile_filter(document: Mapping[str, object], path: str = "linux.seccomp") -> tuple[bytes, int]:
    """Compile to (BPF instructions, flags of seccomp(2)).

    Raises:
        InvalidConfig: naming the JSON path.
        Refused: libseccomp is not installed.
    """
    seccomp = Reader(document, path, [])
    default = _action(seccomp, "defaultAction", "defaultErrnoRet")
    flags = 0
    for name in seccomp.texts("flags", 16):
        if name not in _FLAGS:
            raise seccomp.fail("flags", f"{name!r} is not supported; known are {', '.join(_FLAGS)}")
        flags |= _FLAGS[name]
    if seccomp.has("listenerPath"):
        raise seccomp.fail("listenerPath", "user notification is not supported by this runtime")
    library = _library()
    context = library.seccomp_init(default)
    if not context:
        raise InvalidConfig(path, "libseccomp refuses the default action")
    try:
        library.seccomp_attr_set(context, _ATTRIBUTE_NO_NEW_PRIVILEGES, 0)
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE)
        for name in seccomp.texts("architectures", 32):
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if not token:
                raise seccomp.fail("architectures", f"{name!r} is not known to libseccomp")
            library.seccomp_arch_add(context, token)
        _add_rules(library, context, seccomp, default)
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            if library.seccomp_export_bpf(context, fd) < 0:
                raise InvalidConfig(path, "libseccomp cannot make a program of it")
            return compact(os.pread(fd, os.fstat(fd).st_size, 0)), flags
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(context)


def features() -> dict[str, object]:
    """Return what `orch-runtime features` says of seccomp."""
    try:
        _library()
    except Refused:
        return {"enabled": False}
    return {
        "enabled": True,
        "actions": list(_ACTIONS),
        "operators": list(_OPERATORS),
        "supportedFlags": list(_FLAGS),
    }
