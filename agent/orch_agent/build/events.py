"""What a build tells while it runs, and the lines people read."""

import enum
from collections.abc import Callable
from dataclasses import dataclass


class EventKind(enum.Enum):
    """What happened."""

    BEGUN = "begun"
    CACHED = "cached"
    OUTPUT = "output"
    DONE = "done"
    FAILED = "failed"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class BuildEvent:
    """One thing that happened to one step."""

    kind: EventKind
    step: int
    """Counts from 1 over the whole build; 0 for what concerns no step."""
    text: str = ""
    elapsed_s: float = 0.0
    """Since the step began."""


Progress = Callable[[BuildEvent], None]


def plain_line(event: BuildEvent) -> str:
    """The event as one line in the manner of BuildKit's plain progress, without a line feed."""
    match event.kind:
        case EventKind.BEGUN:
            return f"#{event.step} {event.text}"
        case EventKind.CACHED:
            return f"#{event.step} CACHED"
        case EventKind.OUTPUT:
            return f"#{event.step} {event.elapsed_s:.3f} {event.text}"
        case EventKind.DONE:
            return f"#{event.step} DONE {event.elapsed_s:.1f}s" + (f" {event.text}" if event.text else "")
        case EventKind.FAILED:
            return f"#{event.step} ERROR: {event.text}"
        case EventKind.WARNING:
            return f"WARNING: {event.text}"
