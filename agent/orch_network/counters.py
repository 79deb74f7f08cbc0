"""What the network process counts; read with ``stats``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often something was done and how long it took."""

    count: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.total_s += seconds
        self.longest_s = max(self.longest_s, seconds)


@dataclass(slots=True)
class Counters:
    """Totals since the process started. Labels are closed sets, so that the dictionaries stay small."""

    attach: Duration = field(default_factory=Duration)
    detach: Duration = field(default_factory=Duration)
    reconcile: Duration = field(default_factory=Duration)
    repairs: dict[str, int] = field(default_factory=dict)
    dns_queries: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    flows_forgotten: int = 0

    def repaired(self, kind: str) -> None:
        """Count a repair of drift."""
        self.repairs[kind] = self.repairs.get(kind, 0) + 1

    def dns(self, outcome: str) -> None:
        """Count a DNS query by its outcome."""
        self.dns_queries[outcome] = self.dns_queries.get(outcome, 0) + 1

    def failed(self, kind: str) -> None:
        """Count a failure by kind."""
        self.failures[kind] = self.failures.get(kind, 0) + 1
