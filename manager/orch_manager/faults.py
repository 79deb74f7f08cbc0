"""Errors of the store and of consensus, as callers are told them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orch_manager.store import errors as store_errors
from orch_raft import errors as raft_errors
from orch_rpc import errors


class NotLeading(errors.Unavailable):
    """Raised where only a leader may go on; nothing was done. A forwarder takes the call to the leader."""

    def __init__(self, what: str) -> None:
        super().__init__(what, "this manager does not lead", "ask the leader, or try again soon")


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """Turns what a write or a read barrier raises into the error a caller understands.

    Args:
        what: the first part of the message: "cannot deploy stack shop".

    Raises:
        OrchError: the write was refused, or its outcome is unknown.
    """
    try:
        yield
    except (store_errors.NameTaken, store_errors.AlreadyExists) as error:
        raise errors.AlreadyExists(what, str(error)) from error
    except store_errors.OutOfDate as error:
        raise errors.OutOfDate(what, "it was changed meanwhile", "look at it again, then repeat") from error
    except store_errors.ObjectNotFound as error:
        raise errors.NotFound(what, str(error)) from error
    except store_errors.TransactionTooLarge as error:
        raise errors.ResourceExhausted(what, str(error)) from error
    except (store_errors.StoreBusy, raft_errors.ProposalQueueFull) as error:
        raise errors.Unavailable(what, "the manager has more writes waiting than it takes", "try again") from error
    except raft_errors.OutcomeUnknown as error:
        raise errors.OutcomeUnknown(what, str(error), "look at the state before repeating it") from error
    except raft_errors.NotLeader as error:
        raise NotLeading(what) from error
    except raft_errors.ReadUnconfirmed as error:
        todo = "try again soon; `orch --stale ...` shows what this manager knows, which may be out of date"
        raise errors.Unavailable(what, "no leader confirmed that it would be current", todo) from error
    except raft_errors.RaftError as error:
        raise errors.Unavailable(what, str(error), "look at the manager's log") from error
