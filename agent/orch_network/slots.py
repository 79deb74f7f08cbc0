"""Which backend each slot of a virtual address leads to: balanced, and moving as little as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from orch_network.limits import SLOTS

B = TypeVar("B", bound=str | bytes)


def assign(previous: Sequence[B | None], backends: Sequence[B], slots: int = SLOTS) -> tuple[B | None, ...]:
    """New owners of all slots.

    Every backend gets ``slots // n`` slots or one more; a slot changes hands only where that rule demands it. With more
    backends than slots, the first ``slots`` in the order given serve. Without backends all slots are None.

    Args:
        previous: the owners until now; None, missing or unknown owners are free slots.
        backends: distinct backends that shall serve.
        slots: how many slots there are.
    """
    serving = list(dict.fromkeys(backends))[:slots]
    if not serving:
        return (None,) * slots
    share, extra = divmod(slots, len(serving))
    held: dict[B, list[int]] = {backend: [] for backend in serving}
    owners: list[B | None] = [None] * slots
    for slot, owner in enumerate(previous[:slots]):
        if owner is not None and owner in held:
            held[owner].append(slot)
            owners[slot] = owner
    # Those that hold most keep the extra slots: a stable sort, so equal holders go by the order given.
    by_holding = sorted(serving, key=lambda backend: -len(held[backend]))
    quota = {backend: share + (rank < extra) for rank, backend in enumerate(by_holding)}
    for backend in serving:
        for slot in held[backend][quota[backend] :]:
            owners[slot] = None
    missing = [backend for backend in serving for _ in range(quota[backend] - min(len(held[backend]), quota[backend]))]
    free = (slot for slot, owner in enumerate(owners) if owner is None)
    for slot, backend in zip(free, missing, strict=True):
        owners[slot] = backend
    return tuple(owners)
