"""The store: committed state, one writer at a time, watchers.

Writers hand in functions. All that wait are run, one after the other, against the latest state, and what they change
becomes one log entry; while that is written and synced, the next ones gather. So many small writes share each sync,
and each is still atomic.
"""

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

from orch_manager.store.changes import FRAME_BYTES, Event, apply_transaction, decode_entry, encode_entry
from orch_manager.store.errors import StoreBusy, TransactionError, TransactionTooLarge
from orch_manager.store.schema import Kind, T
from orch_manager.store.snapshot import read_snapshot, snapshot_writer
from orch_manager.store.tables import Reader, State
from orch_manager.store.transaction import Overlay, Transaction
from orch_manager.store.watch import ChangeFeed, ChangeSignal, Watch
from orch_manager.store.writes import note_write
from orch_proto.defaults import PROPOSAL_TIMEOUT_MS, TRANSACTION_BYTES, TRANSACTION_CHANGES, WATCH_QUEUE_EVENTS
from orch_raft.engine import Engine, StateMachine
from orch_raft.errors import EngineStopped, NotLeader, OutcomeUnknown, ProposalError

_logger = logging.getLogger(__name__)
R = TypeVar("R")

#: Writers that may wait; bounds memory, more are refused.
MAX_WAITING_UPDATES = 10_000
#: Time the functions of one batch may hold the event loop, unless a single one takes longer.
_BATCH_BUDGET_S = 0.01
#: Pause before asking again whether a write of unknown outcome has settled.
_SETTLE_RETRY_S = 0.1


def _wall_clock_unix_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True, eq=False)
class _Update:
    """A function that waits to be run, or whose changes wait to be committed."""

    function: Callable[[Transaction], Any]
    reason: str
    done: asyncio.Future[Any]
    result: Any = None
    wrote: bool = False


@dataclass(slots=True)
class _Batch:
    """Updates that share a log entry.

    Attributes:
        updates: those that write, one for each of the `transactions`.
        transactions: what they write, as it goes into the log.
        answers: of those that ran after one of these and write nothing. They saw what is not committed yet, so they
            are told when it is.
        size_bytes: of the transactions.
        changes: how many objects they change.
    """

    updates: list[_Update] = field(default_factory=list)
    transactions: list[bytes] = field(default_factory=list)
    answers: list[tuple[_Update, Any, Exception | None]] = field(default_factory=list)
    size_bytes: int = 0
    changes: int = 0

    def answer(self, update: _Update, result: Any, error: Exception | None = None) -> None:
        """Tells an update that writes nothing its result or its error, as soon as that rests on what is committed."""
        if self.transactions:
            self.answers.append((update, result, error))
        else:
            _tell(update, result, error)


class Store:
    """Every object of the cluster. Used from one event loop.

    Args:
        make_engine: builds the consensus engine that this store, its state machine, writes through.
        clock_unix_ms: the time that writes carry.
        verify: look, at every write, for objects that a reader has edited in place; for tests.
    """

    def __init__(
        self,
        make_engine: Callable[[StateMachine], Engine],
        *,
        clock_unix_ms: Callable[[], int] = _wall_clock_unix_ms,
        verify: bool = False,
    ) -> None:
        self._clock_unix_ms = clock_unix_ms
        self._verify = verify
        self._state = State(verify=verify)
        self._index = 0
        self._feed = ChangeFeed()
        self._waiting: deque[_Update] = deque()
        self._work = asyncio.Event()
        self._stopping = False
        self._writer: asyncio.Task[None] | None = None
        self.engine = make_engine(self)

    # ---- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine, which brings the state back, and take writes.

        Raises:
            StorageError, FatalError: see `Engine.start`.
            SnapshotUnreadable: the snapshot is of a newer version.
        """
        await self.engine.start()
        self._writer = asyncio.create_task(self._write_batches(), name="store-writer")

    async def stop(self) -> None:
        """Finish the write under way, refuse those that wait, end every watch, stop the engine."""
        self._stopping = True
        self._work.set()
        await self.engine.stop()
        if self._writer is not None:
            await self._writer
        while self._waiting:
            _fail(self._waiting.popleft(), EngineStopped("the store was stopped"))
        self._feed.close()

    # ---- reading ---------------------------------------------------------------------------------

    @property
    def index(self) -> int:
        """Index of the latest entry of the store that was applied."""
        return self._index

    @property
    def term(self) -> int:
        """The present term; goes into every message to an agent."""
        return self.engine.status().term

    def get(self, kind: type[T], object_id: str) -> T | None:
        """The object with an id. Shared with all readers: not to be edited."""
        return self._state.get(kind, object_id)

    def find(self, kind: type[T], **keys: object) -> list[T]:
        """The objects that stand under every key, e.g. `find(Task, service_id=..., desired_state=...)`.

        Raises:
            UnknownIndex: the kind has no index of that name (`schema.py` lists them).
        """
        return self._state.find(kind, **keys)

    def all(self, kind: type[T]) -> list[T]:
        """Every object of a kind. Shared with all readers: not to be edited."""
        return self._state.all(kind)

    def counts(self) -> dict[Kind, int]:
        """Number of objects of each kind."""
        return self._state.counts()

    async def read_barrier(self) -> int:
        """Return once reads are linearizable. Raises ProposalError when this member cannot vouch for that."""
        return await self.engine.read_barrier()

    def check_unedited(self) -> None:
        """With `verify`: raise ObjectMutated if any object was edited in place."""
        self._state.check_unedited()

    # ---- watching --------------------------------------------------------------------------------

    def watch(
        self,
        *kinds: Kind,
        predicate: Callable[[Event], bool] | None = None,
        queue_events: int = WATCH_QUEUE_EVENTS,
    ) -> Watch:
        """Events of some kinds (none named: all) from now on. Close it when done."""
        return self._feed.watch(kinds, predicate, queue_events)

    def view_and_watch(
        self, view: Callable[[Reader], R], *kinds: Kind, predicate: Callable[[Event], bool] | None = None
    ) -> tuple[R, Watch]:
        """Read, and watch from exactly that state on: no event is missed or seen twice."""
        watch = self.watch(*kinds, predicate=predicate)
        try:
            return view(self._state), watch
        except BaseException:
            watch.close()
            raise

    def signal(self, *kinds: Kind) -> ChangeSignal:
        """A coalesced wake-up for changes of some kinds (none named: all). Close it when done."""
        return self._feed.signal(kinds)

    # ---- writing ---------------------------------------------------------------------------------

    async def update(
        self,
        function: Callable[[Transaction], R],
        *,
        reason: str,
        timeout_s: float = PROPOSAL_TIMEOUT_MS / 1000,
    ) -> R:
        """Run a function against the latest state, and commit what it changes: all of it or nothing.

        The function runs on the event loop, must not wait, and may be run more than once: it must have no effect but
        through its transaction and its result. Objects in its result that it wrote bear no true version; read
        them from the store afterwards.

        Args:
            function: what to do.
            reason: what for, a few words for the log and the audit trail.
            timeout_s: bounds the wait, in the queue and for the commit.

        Raises:
            TransactionError: refused; see `errors.py`.
            StoreBusy, NotLeader, EngineStopped, ProposalQueueFull: nothing was written.
            OutcomeUnknown: it may have been written.
            Exception: whatever the function raises; nothing was written.
        """
        if self._stopping or self._writer is None:
            raise EngineStopped("the store was stopped" if self._stopping else "the store was not started")
        if len(self._waiting) >= MAX_WAITING_UPDATES:
            raise StoreBusy(f"{len(self._waiting)} writers wait already")
        loop = asyncio.get_running_loop()
        update = _Update(function, reason, loop.create_future())
        self._waiting.append(update)
        self._work.set()
        timer = loop.call_later(timeout_s, self._expire, update, timeout_s)
        try:
            result: R = await update.done
        finally:
            timer.cancel()
        if update.wrote:
            note_write()
        return result

    def _expire(self, update: _Update, timeout_s: float) -> None:
        if update in self._waiting:
            _fail(update, StoreBusy(f"its turn did not come within {timeout_s:g} s"))
        else:
            _fail(update, OutcomeUnknown(f"it was not committed within {timeout_s:g} s"))

    async def _write_batches(self) -> None:
        """Run and commit what waits, batch by batch, until stopped."""
        while not self._stopping:
            await self._work.wait()
            self._work.clear()
            while self._waiting and not self._stopping:
                batch = self._run_waiting()
                if batch.transactions:
                    await self._commit(batch)
                else:
                    await asyncio.sleep(0)

    def _run_waiting(self) -> _Batch:
        """Run the functions that wait, until they fill an entry."""
        overlay = Overlay(self._state)
        now_unix_ms = self._clock_unix_ms()
        batch = _Batch()
        until_s = time.monotonic() + _BATCH_BUDGET_S
        while self._waiting and batch.changes < TRANSACTION_CHANGES and time.monotonic() < until_s:
            update = self._waiting[0]
            if not update.done.done() and not self._run(update, batch, Transaction(overlay, now_unix_ms)):
                break
            self._waiting.popleft()
        return batch

    def _run(self, update: _Update, batch: _Batch, transaction: Transaction) -> bool:
        """Run one function; False when its changes do not fit into the batch, so that it must run again in the next."""
        try:
            result = update.function(transaction)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError("a function given to the store must not be async: it runs at one moment of the state")  # noqa: TRY301  # one place undoes and tells
            changes = transaction.changes
            if not changes.changes:
                batch.answer(update, result)
                return True
            changes.reason = update.reason
            changes.proposed_at_unix_ms = transaction.now_unix_ms
            data = changes.SerializeToString()
            size_bytes = FRAME_BYTES + len(data)
            if size_bytes > TRANSACTION_BYTES:
                raise TransactionTooLarge(size_bytes, TRANSACTION_BYTES)  # noqa: TRY301  # one place undoes and tells
        except Exception as error:
            transaction.roll_back()
            batch.answer(update, None, error)
            return True
        if batch.size_bytes + size_bytes > TRANSACTION_BYTES:
            return False  # the overlay ends with the batch, and these changes with it
        update.result = result
        batch.updates.append(update)
        batch.transactions.append(data)
        batch.size_bytes += size_bytes
        batch.changes += len(changes.changes)
        return True

    async def _commit(self, batch: _Batch) -> None:
        """Propose a batch and tell its writers what became of it."""
        try:
            applied = await self.engine.propose(encode_entry(batch.transactions), timeout_s=PROPOSAL_TIMEOUT_MS / 1000)
        except ProposalError as error:
            for update in batch.updates:
                _fail(update, error)
            if isinstance(error, OutcomeUnknown):
                self._run_again(batch)
                await self._settle()
            for update, _, _ in batch.answers:
                _fail(update, error)
            return
        assert isinstance(applied.result, tuple)
        for update, refusal in zip(batch.updates, applied.result, strict=True):
            update.wrote = refusal is None
            _tell(update, update.result, refusal)
        if any(refusal is not None for refusal in applied.result):
            self._run_again(batch)
        for update, result, refusal in batch.answers:
            _tell(update, result, refusal)

    def _run_again(self, batch: _Batch) -> None:
        """Runs again, when the state is settled, what wrote nothing and rested on what may not have been written."""
        for update, _, _ in reversed(batch.answers):
            self._waiting.appendleft(update)
        batch.answers.clear()

    async def _settle(self) -> None:
        """After a write of unknown outcome, wait until it is applied or can never be.

        An empty entry goes behind it in the log. Functions that ran before that could decide on a state that the
        unknown write is about to change.
        """
        while not self._stopping:
            try:
                await self.engine.propose(b"", timeout_s=PROPOSAL_TIMEOUT_MS / 1000)
            except (EngineStopped, NotLeader):
                return  # a member leads, and takes proposals, only after it has applied its whole log
            except ProposalError as error:
                _logger.warning("store waits for a write of unknown outcome to settle: %s", error)
                while self._waiting:
                    _fail(self._waiting.popleft(), error)
                await asyncio.sleep(_SETTLE_RETRY_S)
            else:
                return

    # ---- the engine's state machine --------------------------------------------------------------

    def apply(self, index: int, term: int, data: bytes) -> tuple[TransactionError | None, ...]:
        """Apply a log entry; the result says of each transaction why it was refused, or None."""
        del term
        outcomes: list[TransactionError | None] = []
        events: list[Event] = []
        for changes in decode_entry(data):
            made = apply_transaction(self._state, changes, index)
            if isinstance(made, TransactionError):
                outcomes.append(made)
            else:
                outcomes.append(None)
                events += made
        self._index = index
        self._feed.publish(events)
        return tuple(outcomes)

    def snapshot(self) -> Callable[[BinaryIO], None]:
        """A view of the state now, to be written out in another thread."""
        return snapshot_writer(self._state, self._index)

    def restore(self, stream: BinaryIO) -> Callable[[], None]:
        """Read a snapshot, in another thread; return what puts it in the place of the state."""
        index, items = read_snapshot(stream)
        state = State(verify=self._verify)
        for item in items:
            state.put(item)

        def install() -> None:
            self._state = state
            self._index = index
            self._feed.resync(index)

        return install


def _tell(update: _Update, result: Any, error: BaseException | None) -> None:
    if error is not None:
        _fail(update, error)
    elif not update.done.done():
        update.done.set_result(result)


def _fail(update: _Update, error: BaseException) -> None:
    if not update.done.done():
        update.done.set_exception(error)
