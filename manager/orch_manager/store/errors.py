"""Why the store refuses.

StoreError
├── TransactionError     raised inside a transaction; nothing of it is written
│   ├── ObjectNotFound   the object to change does not exist
│   ├── AlreadyExists    an object with this id exists
│   ├── NameTaken        another object of this kind has this name
│   ├── OutOfDate        the object was changed since the version that the change is based on
│   └── TransactionTooLarge
├── StoreBusy            the queue of writers is full, or did not move in time; nothing was written
├── SnapshotUnreadable   a snapshot of the store is of a newer version, or incomplete
├── ObjectMutated        a defect: somebody edited an object that the store had handed out
└── UnknownIndex         a defect: a look-up by an index that is not declared

Besides these, `Store.update` raises the ProposalErrors of the consensus engine: NotLeader, EngineStopped and
ProposalQueueFull say that nothing was written, OutcomeUnknown that it may have been.
"""


class StoreError(Exception):
    """Base of every error of the store."""


class TransactionError(StoreError):
    """A transaction was refused, the whole of it."""


class ObjectNotFound(TransactionError):
    """The object to change or remove does not exist."""

    def __init__(self, kind: str, object_id: str) -> None:
        super().__init__(
            f"cannot change {kind} {object_id}: it does not exist, or was removed meanwhile; "
            f"list the {kind}s and try again"
        )


class AlreadyExists(TransactionError):
    """An object with this id exists."""

    def __init__(self, kind: str, object_id: str) -> None:
        super().__init__(f"cannot create {kind} {object_id}: an object with this id exists; use another id")


class NameTaken(TransactionError):
    """Another object of the kind has the name.

    Attributes:
        holder_id: id of the one that has it.
    """

    def __init__(self, kind: str, name: str, holder_id: str) -> None:
        self.kind = kind
        self.name = name
        self.holder_id = holder_id
        super().__init__(
            f"cannot name a {kind} {name!r}: {kind} {holder_id} has this name; "
            f"choose another name, or remove that {kind} first"
        )


class OutOfDate(TransactionError):
    """The object was changed since it was read."""

    def __init__(self, kind: str, object_id: str) -> None:
        super().__init__(
            f"cannot update {kind} {object_id}: it was changed since it was read; read it again and repeat the change"
        )


class TransactionTooLarge(TransactionError):
    """One transaction's changes are over the bound on an entry of the log."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"cannot write {size_bytes} bytes in one transaction: the limit is {limit_bytes} bytes; "
            f"split the change, or make its configs and secrets smaller"
        )


class StoreBusy(StoreError):
    """A write was not begun."""

    def __init__(self, why: str) -> None:
        super().__init__(f"cannot write to the store: {why}; nothing was written, try again later")


class SnapshotUnreadable(StoreError):
    """A snapshot's content is not what this version can read."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"cannot restore the store from its snapshot: {why}; "
            f"start the version of orch that wrote it, or a newer one"
        )


class ObjectMutated(StoreError):
    """A defect: an object that belongs to the store was edited in place."""

    def __init__(self, kind: str, object_id: str) -> None:
        super().__init__(
            f"{kind} {object_id} was edited in place: objects of the store are shared by all readers; edit a copy "
            f"(`Transaction.edit`) and hand that to `Transaction.update`"
        )


class UnknownIndex(StoreError):
    """A defect: the kind has no such index."""

    def __init__(self, kind: str, index: str, known: list[str]) -> None:
        super().__init__(f"{kind} has no index {index!r}: it has {', '.join(known)}; declare it in schema.py")
