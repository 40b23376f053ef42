"""The base of the repositories: statements on an executor, batched changes of rooms, reports
after a COMMIT, and the cursors of pages."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Final, Generic, TypeAlias, TypeVar
from uuid import UUID

import msgspec

from hubbub import inputs
from hubbub.author_marks import AuthorMarks
from hubbub.batching import (
    DISTRIBUTED_WORKERS,
    LOAD,
    MAX_WAITING,
    PUT_BACK,
    WORKERS,
    Batcher,
    BatchOutcome,
    KeyedQueue,
)
from hubbub.commits import (
    Change,
    MembershipEnded,
    MembersJoined,
    MessagesSent,
    OnCommit,
    RoomTouched,
    UserChanged,
    ignore,
)
from hubbub.errors import Invalid, Unavailable, once_committed
from hubbub.models import Message, Page
from hubbub.postgres import NOT_SUPPORTED, Executor, LockNotAvailable, OpenTransaction, Statement, key_of_account
from hubbub.sql import M

T = TypeVar("T")
K = TypeVar("K")
Item = TypeVar("Item")

CHANGES_PER_STATEMENT: Final = 500
"""As many as messages: a larger batch gains nothing (docs/decisions.md)."""
MAX_LOCK_WAIT_SECONDS: Final = 0.1
"""How long a statement for several rooms waits for a locked one, before the others go on without that room. The
pool tries it three times."""
LOCK_WAIT_DIVISOR: Final = 8
"""The wait is no longer than an eighth of the time until the deadline. The three attempts with their pauses, and
the statement for the other rooms, have to fit into it."""

MAX_CURSOR_LENGTH: Final = 3_000
"""The key of a username has up to 1,650 bytes, so a cursor has about 2,300 characters at most. A longer one is
forged."""

Apply: TypeAlias = Callable[[Sequence[Item], str | None, float], Awaitable[Sequence[T | Exception]]]
"""Makes changes of one kind. It is called with the items, how long to wait for a lock (None: no limit) and the
deadline. It returns the result or the refusal of each item, and reports changes. If it raises, none is made."""

# The rooms that are not locked at the moment.
ROOMS_NOT_LOCKED: Final = Statement(
    "rooms.not_locked",
    lambda id: id,
    """
    SELECT id
    FROM rooms
    WHERE id = ANY($1::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED
    """,
    idempotent=True,
    distributed=NOT_SUPPORTED,
)


class _Request(msgspec.Struct, eq=False):
    apply: Apply[Any, Any]
    item: Any
    key: Hashable


class ChangeBatcher:
    """Changes of rooms by all callers in this process, in batches as `hubbub.batching` schedules them.

    A room has one statement in flight, however many changes wait for it. In a batch, the changes of each kind are
    one statement. One that cannot be stored fails alone: the batch is halved until it is found.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        deadline_seconds: float,
        name: str = "change rooms",
        per_batch: int = CHANGES_PER_STATEMENT,
        not_locked: Statement[UUID] | None = ROOMS_NOT_LOCKED,
    ) -> None:
        """`not_locked` finds the keys of a batch whose rows are not locked. Without it, a batch is halved."""
        self._executor = executor
        self._not_locked = not_locked
        self._batcher = Batcher[_Request, Any](
            name,
            self._run_one,
            self._run_many,
            deadline_seconds=deadline_seconds,
            queue=KeyedQueue(),
            per_batch=per_batch,
            workers=WORKERS,
            load=LOAD,
            most_waiting=MAX_WAITING,
            writes=True,
        )
        self._lookups: set[asyncio.Task[Message]] = set()

    def distribute(self) -> None:
        """Where rooms are distributed, each change has a statement of its own."""
        self._batcher.one_key_per_batch(1, DISTRIBUTED_WORKERS)

    async def find_room(self, get_message: Callable[[], Coroutine[Any, Any, Message]]) -> UUID | None:
        """The room of a message, if a change of it may have to wait. A caller who is alone needs no lookup, unless
        rooms are distributed."""
        is_alone = self._batcher.is_idle and not self._executor.locked_by_caller()
        if is_alone and not self._executor.is_distributed:
            return None
        lookup = asyncio.create_task(get_message(), name="hubbub: find the room of a change")
        self._lookups.add(lookup)
        lookup.add_done_callback(self._lookups.discard)
        return (await lookup).room_id

    async def call(self, apply: Apply[Item, T], item: Item, *, key: Hashable, id: Hashable, deadline: float) -> T:
        """Make the change. It waits for those with its key. Those with its id, if any, never share its batch.

        In a batch, changes with the same `apply` share a statement.

        A caller that is cancelled while the change waits has not made it. Once it is in flight, it is completed
        and reported as any other.

        Raises: Unavailable, and the refusal.
        """
        result: T = await self._batcher.call(_Request(apply, item, key), key, id, deadline=deadline)
        return result

    async def drain(self) -> None:
        """Refuse new changes, and wait for those that came before: until their deadlines at the latest."""
        if self._lookups:
            await asyncio.wait(set(self._lookups))  # the pool bounds how long they take
        await self._batcher.drain()

    async def _run_one(self, request: _Request, deadline: float) -> object:
        return single_result(await request.apply([request.item], None, deadline))

    async def _run_many(self, requests: list[_Request], deadline: float) -> list[BatchOutcome[Any]]:
        outcomes: dict[_Request, BatchOutcome[Any]] = {}
        locked: set[Hashable] = set()
        lock_wait = longest_lock_wait(deadline) if len({request.key for request in requests}) > 1 else None
        kinds: dict[Apply[Any, Any], list[_Request]] = {}
        for request in requests:
            kinds.setdefault(request.apply, []).append(request)
        for of_kind in kinds.values():
            outcomes |= await self._run(of_kind, locked, lock_wait, deadline)
        return [outcomes.get(request, PUT_BACK) for request in requests]

    async def _run(
        self, requests: list[_Request], locked: set[Hashable], lock_wait: str | None, deadline: float
    ) -> dict[_Request, BatchOutcome[Any]]:
        """The outcomes of requests of one kind. Requests of `locked` keys get none.

        Keys that turn out to be locked are added to `locked`.
        """
        requests = [request for request in requests if request.key not in locked]
        if not requests:
            return {}
        keys = {request.key for request in requests}
        try:
            try:
                items = [request.item for request in requests]
                return dict(zip(requests, await requests[0].apply(items, lock_wait, deadline), strict=True))
            except LockNotAvailable:
                if lock_wait is None:
                    raise
                if len(keys) > 1:  # if none of the rooms is locked, a row in one of them is
                    free = keys
                    if self._not_locked is not None:
                        free = set(await self._executor.fetch_all(self._not_locked, keys, deadline=deadline))
                    keys -= free
                locked |= keys
        except Unavailable as error:
            return {request: error.for_another() for request in requests}
        except Exception as error:  # noqa: BLE001 - one of them cannot be stored, and its caller gets it
            if len(requests) == 1:
                return {requests[0]: error}
        middle = len(requests) // 2
        first = await self._run(requests[:middle], locked, lock_wait, deadline)
        return first | await self._run(requests[middle:], locked, lock_wait, deadline)


def longest_lock_wait(deadline: float) -> str:
    """How long a statement for several rooms, with this deadline, waits for a locked one."""
    left = deadline - asyncio.get_running_loop().time()
    return f"{max(min(MAX_LOCK_WAIT_SECONDS, left / LOCK_WAIT_DIVISOR), 0.001) * 1000:.0f}ms"


def single_result(outcomes: Sequence[T | Exception]) -> T:
    """The result of the only item. Raises: its refusal."""
    [outcome] = outcomes
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


IDS_PER_STATEMENT: Final = 1_000
"""Rows that are looked up in one statement. All are decoded in one step of the event loop."""


def _locked_by(change: Change) -> Iterable[Hashable]:
    """The keys of the rows that a transaction with this change has locked."""
    match change:
        case RoomTouched(room_id):
            return (room_id,)
        case MessagesSent(messages):
            return {message.room_id for message in messages}
        case UserChanged(user_id):
            return (key_of_account(user_id),)
        case MembersJoined(room_id, user_ids):
            return [(room_id, user_id) for user_id in user_ids]
        case MembershipEnded(room_id, user_id):
            return ((room_id, user_id),)
        case _:
            return ()


class Repository:
    """Runs statements on an executor, and reports each change after its COMMIT."""

    def __init__(
        self,
        executor: Executor,
        on_commit: OnCommit = ignore,
        changes: ChangeBatcher | None = None,
        author_marks: AuthorMarks | None = None,
    ) -> None:
        """With `changes`, concurrent changes of rooms share statements. Without them, each has its own.

        With `author_marks`, reads of read marks wait for the marks of authors.
        """
        self._executor = executor
        self._on_commit = on_commit
        self._changes = changes
        self._author_marks = author_marks

    def _changed(self, change: Change, *, locks: bool = True) -> None:
        """Report the change after its COMMIT.

        `locks` is False where it may have been made before, and now no row was changed.
        """
        if locks:
            self._note_locked(_locked_by(change))
        self._executor.after_commit(lambda: self._on_commit(change))

    def _note_locked(self, keys: Iterable[Hashable]) -> None:
        """Until the COMMIT, changes that would wait for these in the same task are refused."""
        for key in keys:
            self._executor.note_locked(key)

    async def _check_not_locked(self, *keys: Hashable, of: UUID | None = None) -> None:
        """Refuse a change of these rows that would wait for a transaction of the same task.

        With `of`, also one of the account or room with this id and of all its memberships. Raises: Invalid.
        """
        locked = self._executor.locked_by_caller()
        if locked:
            related = (key for key in locked if key == of or (isinstance(key, tuple) and of in key))
            await self._executor.check_not_locked_by_caller(*keys, *related)

    def _waiting_marks(self) -> AuthorMarks | None:
        """The marks of authors, if some wait and no transaction of this task has locked what they may wait for."""
        marks = self._author_marks
        if marks is None or not marks.has_pending() or self._executor.locked_by_caller():
            return None
        return marks

    async def _settle_marks(
        self, *, room_id: UUID | None = None, user_id: UUID | None = None, deadline: float
    ) -> None:
        """Before read marks are read: make the marks of authors that wait in this process."""
        if marks := self._waiting_marks():
            await marks.settle(room_id=room_id, user_id=user_id, deadline=deadline)

    def _after_steps(self, done: int) -> AbstractContextManager[None]:
        """For what follows so many steps of the call. They are committed, except in a transaction."""
        return nullcontext() if not done or isinstance(self._executor, OpenTransaction) else once_committed()

    async def _get_many(
        self, statement: Statement[M], ids: Iterable[UUID], *args: object, field: str
    ) -> dict[UUID, M]:
        """The rows with these ids ($1), in statements that hold the event loop for some milliseconds each."""
        rest, deadline = iter(inputs.items(field, ids)), self._executor.deadline()
        found: dict[UUID, M] = {}
        while some := inputs.uuids(field, islice(rest, IDS_PER_STATEMENT)):
            rows = await self._executor.fetch_all(statement, some, *args, deadline=deadline)
            found |= {row.id: row for row in rows}
        return found

    async def _change(
        self,
        apply: Apply[Item, T],
        item: Item,
        *,
        key: Hashable,
        id: Hashable = None,
        locks: tuple[Hashable, ...] = (),
        deadline: float,
    ) -> T:
        """Make the change, in a batch if there are others. As `ChangeBatcher.call`.

        `locks` are the keys of the rows that it locks beside that of `key`.

        Raises: Invalid (a transaction of the same task has locked one of them), and as `ChangeBatcher.call`.
        """
        if self._changes is None:
            return single_result(await apply([item], None, deadline))
        await self._check_not_locked(key, *locks)
        return await self._changes.call(apply, item, key=key, id=id, deadline=deadline)

    async def _change_alone(
        self,
        apply: Callable[[str | None, float], Awaitable[T]],
        *,
        key: Hashable,
        id: Hashable = None,
        locks: tuple[Hashable, ...] = (),
        deadline: float,
    ) -> T:
        """As `_change`, for a change that shares no statement. `apply` gets the lock wait and the deadline."""

        async def apply_to(_: Sequence[None], lock_wait: str | None, deadline: float) -> list[T]:
            return [await apply(lock_wait, deadline)]

        return await self._change(apply_to, None, key=key, id=id, locks=locks, deadline=deadline)


class Cursor(Generic[K]):
    """The cursors of one list, which are opaque. `name` is that of the list, `key` the type of the columns that
    order it.

    A cursor contains the name and the scope, which is the room or the user of the list. So a cursor of another
    list or another room is refused instead of giving a wrong page. A cursor grants no access: it does not decide
    which users may see a list.
    """

    def __init__(self, name: str, key: type[K]) -> None:
        self._name = name
        self._decoder = msgspec.json.Decoder(tuple[str, UUID | None, key])  # type: ignore[valid-type]

    def encode(self, scope: UUID | None, key: K) -> str:
        return urlsafe_b64encode(msgspec.json.encode((self._name, scope, key))).rstrip(b"=").decode()

    def decode(self, scope: UUID | None, cursor: str) -> K:
        """The key in `cursor`. Raises: Invalid (it is forged, or belongs to another list)."""
        if not isinstance(cursor, str) or len(cursor) > MAX_CURSOR_LENGTH:
            raise Invalid("after", "is not a cursor")
        try:
            name, its_scope, key = self._decoder.decode(urlsafe_b64decode(cursor.encode() + b"=="))
        except (ValueError, msgspec.DecodeError):
            raise Invalid("after", "is not a cursor of this list") from None
        if (name, its_scope) != (self._name, scope):
            raise Invalid("after", "is the cursor of another list")
        return key

    def page(self, scope: UUID | None, rows: list[T], limit: int, key: Callable[[T], K]) -> Page[T]:
        """A page of the up to `limit + 1` rows that were read."""
        if len(rows) <= limit:
            return Page(rows, None)
        items = rows[:limit]
        return Page(items, self.encode(scope, key(items[-1])))
