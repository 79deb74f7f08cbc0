"""`linux.resources` of an OCI config to limits."""

from __future__ import annotations

from orch_runtime.config.reader import Reader
from orch_runtime.plan import LimitsPlan

_MAX = 1 << 62
MIN_MEMORY_BYTES = 4 * 1024 * 1024


def _device_rules(resources: Reader) -> list[str]:
    """Return rules as "allow c 1:3 rwm" / "deny a *:* rwm", in the order given."""
    rules: list[str] = []
    for rule in resources.readers("devices"):
        kind = rule.text("type", "a") or "a"
        if kind not in ("a", "b", "c"):
            raise rule.fail("type", f"must be a, b or c, not {kind!r}")
        major = rule.integer("major", -1, 1 << 31, -1)
        minor = rule.integer("minor", -1, 1 << 31, -1)
        access = rule.text("access", "rwm") or "rwm"
        if not set(access) <= set("rwm"):
            raise rule.fail("access", f"may have r, w and m only, not {access!r}")
        verb = "allow" if rule.boolean("allow") else "deny"
        rule.finish()
        numbers = f"{'*' if major < 0 else major}:{'*' if minor < 0 else minor}"
        rules.append(f"{verb} {kind} {numbers} {access}")
    return rules


def read_limits(resources: Reader) -> LimitsPlan:
    """Read the limits; a value of 0 or -1 means none, as in the OCI specification."""
    limits: LimitsPlan = {}
    memory = resources.reader("memory")
    memory_bytes = memory.integer("limit", -1, _MAX, 0)
    swap_bytes = memory.integer("swap", -1, _MAX, 0)
    if memory_bytes > 0:
        if memory_bytes < MIN_MEMORY_BYTES:
            raise memory.fail("limit", f"must be at least {MIN_MEMORY_BYTES} bytes, or no program can start")
        limits["memory_bytes"] = memory_bytes
        # Memory and swap together, as in Docker: with no figure given, as much swap again.
        limits["memory_swap_bytes"] = swap_bytes or memory_bytes * 2
        if 0 < swap_bytes < memory_bytes:
            raise memory.fail("swap", f"is memory plus swap, so not less than the memory limit {memory_bytes}")
    elif memory_bytes < 0:
        limits["memory_bytes"] = -1
        limits["memory_swap_bytes"] = -1
    elif swap_bytes > 0:
        raise memory.fail("swap", "needs linux.resources.memory.limit as well")
    if memory.has("reservation"):
        limits["memory_reservation_bytes"] = memory.integer("reservation", -1, _MAX)
    memory.finish()
    cpu = resources.reader("cpu")
    if cpu.has("shares"):
        limits["cpu_shares"] = cpu.integer("shares", 2, 262144)
    if cpu.has("quota"):
        limits["cpu_quota_us"] = cpu.integer("quota", -1, _MAX)
        limits["cpu_period_us"] = cpu.integer("period", 1000, 1_000_000, 100_000)
        if 0 <= limits["cpu_quota_us"] < 1000:
            raise cpu.fail("quota", f"must be at least 1000 us, not {limits['cpu_quota_us']}")
    elif cpu.has("period"):
        limits["cpu_period_us"] = cpu.integer("period", 1000, 1_000_000)
    cpu.finish()
    pids = resources.reader("pids")
    if pids.has("limit"):
        limits["pids_max"] = pids.integer("limit", -1, 1 << 22)
    pids.finish()
    rules = _device_rules(resources)
    if rules:
        limits["devices"] = rules
    resources.finish()
    return limits
