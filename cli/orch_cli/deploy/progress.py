"""Showing how a deploy goes on: redrawn lines on a terminal, one line per change elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from typing import Final, Protocol, TextIO

from orch_cli.deploy.convergence import ServiceProgress, Verdict
from orch_cli.output.listing import cut
from orch_cli.output.units import format_elapsed

STYLES: Final = ("auto", "tty", "plain", "json", "quiet")
_BAR: Final = 12


class Progress(Protocol):
    """Takes the state of all services each time it changed."""

    def update(self, services: Sequence[ServiceProgress], elapsed_s: float) -> None:
        """Shows a new state."""

    def close(self) -> None:
        """Leaves the terminal in order."""


def make_progress(style: str, stack: str, stream: TextIO) -> Progress:
    """The progress for ``--progress``; ``auto`` is ``tty`` on a terminal, else ``plain``."""
    if style == "auto":
        style = "tty" if stream.isatty() else "plain"
    if style == "tty":
        return TerminalProgress(stack, stream)
    if style == "json":
        return JsonProgress(stack, stream)
    return QuietProgress() if style == "quiet" else PlainProgress(stack, stream)


class QuietProgress:
    """Shows nothing."""

    def update(self, services: Sequence[ServiceProgress], elapsed_s: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _word(service: ServiceProgress) -> str:
    """What a service is doing, in a word or the reason."""
    if service.verdict is Verdict.CONVERGED:
        return "running" if service.wanted else "nothing wanted"
    return service.reason or ("updating" if service.running == service.wanted else service.verdict.value)


class PlainProgress:
    """One line per change, with the time: what a CI log wants."""

    def __init__(self, stack: str, stream: TextIO) -> None:
        self._prefix = f"{stack}_"
        self._stream = stream
        self._shown: dict[str, tuple[int, int, int, str]] = {}

    def update(self, services: Sequence[ServiceProgress], elapsed_s: float) -> None:
        """Prints the services that changed."""
        for service in services:
            word = _word(service)
            state = (service.running, service.wanted, service.restarts, word)
            if self._shown.get(service.name) != state:
                self._shown[service.name] = state
                stamp = time.strftime("%H:%M:%S")
                name = service.name.removeprefix(self._prefix)
                line = f"{stamp} {name} {service.running}/{service.wanted} running"
                restarts = f", restarted {service.restarts} times" if service.restarts else ""
                line += "" if word == "running" else f", {word}"
                print(f"{line}{restarts} ({format_elapsed(elapsed_s)})", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing."""


class JsonProgress:
    """One JSON object per change."""

    def __init__(self, stack: str, stream: TextIO) -> None:
        self._stack = stack
        self._stream = stream
        self._shown: dict[str, ServiceProgress] = {}

    def update(self, services: Sequence[ServiceProgress], elapsed_s: float) -> None:
        """Prints the services that changed."""
        for service in services:
            if self._shown.get(service.name) != service:
                self._shown[service.name] = service
                record = {
                    "stack": self._stack,
                    "service": service.name,
                    "running": service.running,
                    "wanted": service.wanted,
                    "restarts": service.restarts,
                    "state": service.verdict.value,
                    "reason": service.reason,
                    "elapsed_s": round(elapsed_s, 3),
                }
                print(json.dumps(record, ensure_ascii=False), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing."""


class TerminalProgress:
    """One line per service, redrawn in place."""

    def __init__(self, stack: str, stream: TextIO) -> None:
        self._prefix = f"{stack}_"
        self._stream = stream
        self._lines = 0

    def update(self, services: Sequence[ServiceProgress], elapsed_s: float) -> None:
        """Draws all services; more than fit the screen are counted in the last line."""
        size = shutil.get_terminal_size()
        shown = (
            sorted(services, key=lambda service: service.verdict is Verdict.CONVERGED)
            if len(services) >= size.lines
            else services
        )
        shown = shown[: max(size.lines - 2, 1)]
        width = max((len(service.name.removeprefix(self._prefix)) for service in shown), default=0)
        lines = [self._line(service, width) for service in shown]
        if len(shown) < len(services):
            lines.append(f"… and {len(services) - len(shown)} more services")
        if lines:
            lines[-1] += f"  {format_elapsed(elapsed_s)}"
        up = f"\x1b[{self._lines}A" if self._lines else ""
        text = "".join(f"\x1b[2K{cut(line, max(size.columns - 1, 20))}\n" for line in lines)
        self._stream.write(f"{up}{text}\x1b[J")
        self._stream.flush()
        self._lines = len(lines)

    def _line(self, service: ServiceProgress, width: int) -> str:
        filled = _BAR if not service.wanted else min(_BAR, service.running * _BAR // service.wanted)
        mark = (
            "✔"
            if service.verdict is Verdict.CONVERGED
            else "✘"
            if service.verdict in (Verdict.PAUSED, Verdict.ROLLED_BACK)
            else "·"
        )
        bar = "█" * filled + "░" * (_BAR - filled)
        name = service.name.removeprefix(self._prefix)
        return f"{mark} {name:<{width}}  {bar}  {service.running}/{service.wanted}  {_word(service)}"

    def close(self) -> None:
        """The lines stay as they were drawn last."""
        self._lines = 0
