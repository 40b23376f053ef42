"""The entry point. A `Hub` owns the connections and connects the parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from uuid import UUID

from hubbub import inputs
from hubbub.acting_user import ActingUser
from hubbub.author_marks import AuthorMarks
from hubbub.background import wrong_event_loop
from hubbub.commits import Commits, OnCommit, RoomRewound
from hubbub.deletions import maintain
from hubbub.errors import Invalid, Unavailable, once_committed
from hubbub.forks import abandon_in_child, forked
from hubbub.instrumentation import SILENT, Instrumentation, PoolUse, guarded
from hubbub.migrations.distribution import is_distributed, was_distributed
from hubbub.migrations.revisions import verify
from hubbub.models import MaintenanceResult, User
from hubbub.passwords import Passwords
from hubbub.postgres import (
    ApplicationConnection,
    ApplicationTransaction,
    Executor,
    OpenTransaction,
    Pool,
    Record,
    Replicas,
    borrow,
    not_supported,
)
from hubbub.redis import connection_to, subscriptions_to
from hubbub.repositories import Messages, MessageWriter, ReadReceipts, Rooms, RoomUsers, Users
from hubbub.repositories.read_receipts import MARKS_PER_STATEMENT
from hubbub.repository import ChangeBatcher
from hubbub.services.accounts import Accounts, KnownNetworks
from hubbub.services.cache import Cache
from hubbub.services.changes import Changes
from hubbub.services.feed import Feed, Follower
from hubbub.services.health import DEADLINE_SECONDS, Health, probe
from hubbub.services.presence import Presence
from hubbub.services.rate_limits import RateLimits
from hubbub.services.realtime import RealtimeService
from hubbub.services.sessions import SessionService, key_of
from hubbub.services.sessions.durable import DurableSessions
from hubbub.services.typing_indicators import TypingIndicators
from hubbub.settings import Settings

if TYPE_CHECKING:
    from hubbub.history import History

logger = logging.getLogger("hubbub.hub")

STEP_GRACE_SECONDS: Final = 0.1
"""A call of several steps is cancelled this long after their common deadline. A step that has the same deadline
can raise by then, and its error names the server that did not answer."""

MAINTAIN_SECONDS: Final = 60.0
"""How long a call of `maintain` works by default. Nothing depends on it, because the next call continues."""

MIN_SECONDS: Final = 0.001
MAX_SECONDS: Final = 366 * 86_400
"""The times of `Options`. Redis takes whole milliseconds, and no time without an end."""


class Repositories:
    """The repositories on one executor: the pool of a hub, or a transaction. `Hub` lists what each may raise."""

    def __init__(
        self,
        executor: Executor,
        on_commit: OnCommit,
        writer: MessageWriter | None = None,
        changes: ChangeBatcher | None = None,
        marks: ChangeBatcher | None = None,
        *,
        author_marks: AuthorMarks | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        self._on_commit = on_commit
        self._users = Users(executor, on_commit)
        self._rooms = Rooms(executor, on_commit, changes, author_marks)
        self._room_users = RoomUsers(executor, on_commit, changes, author_marks)
        self._messages = Messages(executor, on_commit, writer, changes, replicas=replicas)
        self._receipts = ReadReceipts(executor, on_commit, marks, author_marks)

    @property
    def users(self) -> Users:
        """Accounts: create, find, change and delete them."""
        return self._users

    @property
    def rooms(self) -> Rooms:
        """Rooms: create, list, change and delete them, and the direct room of two users."""
        return self._rooms

    @property
    def room_users(self) -> RoomUsers:
        """Memberships: add and remove members, and their roles."""
        return self._room_users

    @property
    def messages(self) -> Messages:
        """Messages: send, edit and delete them, pages of a room, and its log since a cursor."""
        return self._messages

    @property
    def receipts(self) -> ReadReceipts:
        """Read state: mark as read or unread, unread counts, and the readers of a message."""
        return self._receipts


class Transaction(Repositories):
    """The repositories and the application's own SQL in one transaction: all changes are committed, or none.

    The SQL is one statement per call. Values are arguments of `$1`, `$2` and so on. Tables are found by the search
    path of the connection, so name their schema, or use `DB_SCHEMA` for hubbub's tables. Commands that end the
    transaction or outlive it, as COMMIT and SET do, are refused.

    After the error of a statement the transaction can only be rolled back, except if a `savepoint` contains it.
    """

    def __init__(self, transaction: OpenTransaction, on_commit: OnCommit) -> None:
        super().__init__(transaction, on_commit)
        self._transaction = transaction

    async def execute(self, sql: str, *args: object) -> int:
        """Run a statement of the application's own. Returns the number of rows that it changed or found.

        The number is 0 for a statement that does not count rows.

        Raises: Conflict (of the unique or exclusion constraint that `what` names), NotFound (a foreign key refers
        to no row), Invalid (the SQL or an argument is wrong, or another rule refuses the row).
        """
        return await self._transaction.execute_sql(sql, args)

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        """Run a statement of the application's own. Returns its rows as asyncpg gives them.

        Raises: as `execute`.
        """
        return await self._transaction.fetch_rows(sql, args)

    async def fetch_one(self, sql: str, *args: object) -> Record | None:
        """As `fetch`, for the first row. Returns None without a row.

        Raises: as `execute`.
        """
        return await self._transaction.fetch_row(sql, args)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[Transaction]:
        """A block that can fail without failing the transaction: if it raises, only its changes are undone.

        Use the repositories of the savepoint inside the block. Calls to those of the transaction wait for its end.
        """
        async with self._transaction.transaction() as savepoint:
            yield Transaction(savepoint, self._on_commit)

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` right after the COMMIT, and never if the transaction is rolled back.

        If `action` raises, the commit stands and the event loop's exception handler gets the exception.
        """
        self._transaction.after_commit(action)


class ConnectionRepositories(Repositories):
    """The repositories in a transaction of the application's, on its own connection: those of `hub.on`."""

    def __init__(self, transaction: ApplicationTransaction, on_commit: OnCommit) -> None:
        super().__init__(transaction, on_commit)
        self._transaction = transaction

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` with the announcements, and never if the changes made so far are rolled back."""
        self._transaction.after_commit(action)

    async def announce(self) -> None:
        """Announce what the application has committed since, to followers and caches. Call it after the COMMIT.

        The end of the block of `hub.on` does the same. For a session of SQLAlchemy its commit has done it already.

        Raises: Invalid (the transaction is still open).
        """
        await self._transaction.announce()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._transaction.announce(is_end=True)
        except Unavailable as failure:  # the application's COMMIT stands
            logger.warning("changes on a connection of the application were not announced: %s", failure)
        except Invalid:
            if error is None:
                raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Limits of sessions, presence, typing, followers and read marks. All processes of a chat should use the same.

    Times are from 0.001 s to 366 days. Raises: Invalid.
    """

    session_life_seconds: float = 86_400
    """The age at which a session ends."""
    session_idle_timeout_seconds: float | None = None
    """The time without a lookup after which a session ends. None: only its age ends it."""
    presence_heartbeat_seconds: float = 10
    """The users of a process that was killed go offline within two heartbeats and a second."""
    presence_grace_seconds: float = 5
    """A user who disconnects and is back within this time stays online."""
    typing_seconds: float = 6
    """How long a user is typing after the last `typing.start`."""
    follow_heartbeat_seconds: float = 1
    """How often the heads of followed logs are compared with PostgreSQL, to find events that were not announced
    through Redis. A process compares all its followed rooms, up to 100. If it follows more, it compares 100 or a
    tenth of them in turn, so such an event takes up to ten heartbeats. While Redis is down, it compares all."""
    follow_at_most_behind: int = 10_000
    """Entries of a room's log. A follower whose cursor is further behind gets a `Resync`."""
    mark_read_on_send: bool = True
    """Whether a member who sends a message has read the room up to it (`messages.send`). False: only
    `receipts.mark_read` marks, as for an application that sends in the name of users who do not see the room."""

    def __post_init__(self) -> None:
        inputs.flag("mark_read_on_send", self.mark_read_on_send)
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_absent = value is None and field.default is None
            may_be_zero = value == 0 and field.name == "presence_grace_seconds"
            if not field.name.endswith("_seconds") or may_be_absent or may_be_zero:
                continue
            if not MIN_SECONDS <= inputs.positive(field.name, value) <= MAX_SECONDS:
                raise Invalid(field.name, f"must be from {MIN_SECONDS} to {MAX_SECONDS} s")


class Hub(Repositories):
    """The data of a chat: repositories on PostgreSQL, and sessions, presence, typing and a cache in Redis.

    The operations are methods of the hub and of its parts: `users`, `rooms`, `room_users`, `messages`, `receipts`,
    `changes` and `history` in PostgreSQL, and `sessions`, `presence`, `typing`, `cache`, `limits` and `realtime`
    in Redis. `help(hub.messages)` lists those of a part.

    `hubbub.open()` creates and starts a hub. A program with its own life cycle calls `start` and `close` itself.
    All tasks of an event loop may share a hub. The constructor does no I/O.

    Without PostgreSQL every call that needs it raises `Unavailable` by its deadline. Without Redis the
    repositories work as before, presence is unknown, and calls to sessions raise `Unavailable`, unless sessions
    are durable. A restart is not needed when a server is back.

    A hub belongs to the process and the event loop that it was started in. In a child process, and in another
    loop, every call raises `Unavailable`, which is not retryable. `close` does nothing in a child process.

    Each call, also of the parts, may raise `Invalid` for a value of a wrong type or form, such as the cursor of
    another list. It may raise `Unavailable` when a server cannot be reached or does not answer by the deadline.
    The docstring of a call lists what else it raises.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        options: Options | None = None,
        passwords: Passwords | None = None,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        """`passwords` sets the cost of hashing and its number of threads. The default is bcrypt with cost 12.
        `instrumentation` receives counts and times. The default drops them.

        Raises: Invalid (the options contradict each other).
        """
        options = options or Options()
        self._settings = settings
        instrumentation = self._instrumentation = guarded(instrumentation)
        self._commits = Commits()
        pool = self._pool = Pool(settings.postgres, instrumentation)
        self._writer = MessageWriter(pool, self._commits, deadline_seconds=settings.postgres.deadline_seconds)
        self._change_batcher = ChangeBatcher(pool, deadline_seconds=settings.postgres.deadline_seconds)
        self._mark_batcher = ChangeBatcher(
            pool,
            deadline_seconds=settings.postgres.deadline_seconds,
            name="mark rooms as read",
            per_batch=MARKS_PER_STATEMENT,
            not_locked=None,
        )
        replicas = [Pool(replica, instrumentation, keeps_standby=True) for replica in settings.replicas]
        self._replicas = Replicas(pool, replicas, self._followed_seq) if replicas else None
        self._author_marks = AuthorMarks(lambda room, user, seq: self.receipts.mark_read(room, user, up_to=seq))
        super().__init__(
            pool,
            self._commits,
            self._writer,
            self._change_batcher,
            self._mark_batcher,
            author_marks=self._author_marks,
            replicas=self._replicas,
        )
        connection = self._connection = connection_to(settings.redis, instrumentation=instrumentation)
        subscriptions = self._subscriptions = subscriptions_to(
            settings.redis, connection, instrumentation=instrumentation
        )
        self._passwords = passwords or Passwords()
        self._stack = AsyncExitStack()
        self._stack.push_async_callback(pool.close)  # it connects when it is used, started or not
        self._closing: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_abandoned = False
        abandon_in_child(self._abandon)

        idle_seconds = options.session_idle_timeout_seconds
        self._sessions: SessionService = (
            partial(DurableSessions, pool) if settings.postgres.durable_sessions else SessionService
        )(connection, life_seconds=options.session_life_seconds, idle_timeout_seconds=idle_seconds)
        self._realtime = RealtimeService(connection, subscriptions, instrumentation)
        self._typing = TypingIndicators(
            connection, subscriptions, self.room_users.is_member, ttl_seconds=options.typing_seconds
        )
        self._presence = Presence(
            connection,
            subscriptions,
            self.users.set_online_many,
            executor=self._pool,
            on_disconnect=self.typing.stop_everywhere_soon,
            heartbeat_seconds=options.presence_heartbeat_seconds,
            grace_seconds=options.presence_grace_seconds,
        )
        # Its pages are from the primary: an old one would stay in the cache.
        of_primary = Messages(pool, self._commits, self._writer, self._change_batcher)
        self._cache = Cache(
            connection, users=self.users, rooms=self.rooms, messages=of_primary, room_users=self.room_users
        )
        self._feed = Feed(
            pool,
            connection,
            subscriptions,
            heartbeat_seconds=options.follow_heartbeat_seconds,
            at_most_behind=options.follow_at_most_behind,
            on_rewind=lambda room_id: self._commits(RoomRewound(room_id)),
            ended_sessions=self._sessions._find_ended,
            sends=self._writer.durations,
            instrumentation=instrumentation,
        )
        if self._replicas is not None:
            self._feed.on_unfollowed(self._replicas.received)
        self._changes = Changes(
            pool, connection, subscriptions, heartbeat_seconds=options.follow_heartbeat_seconds
        )
        # In this order: a follower that reads on an event must not get an answer from before the COMMIT.
        if self._replicas is not None:
            self._replicas.register(self._commits)
        self.cache._register(self._commits)
        self._feed.register(self._commits)
        self.changes._register(self._commits)
        self.typing._register(self._commits)
        if options.mark_read_on_send:
            self._author_marks.register(self._commits)
        self._limits = RateLimits(connection)
        take = partial(self.limits.take, fail_open=True)
        self._accounts = Accounts(
            self.users,
            self._passwords,
            per_login=partial(take, "login", capacity=10, refill_per_second=10 / 60),
            per_address=partial(take, "address", capacity=100, refill_per_second=100 / 60),
            known=KnownNetworks(connection),
        )

    @property
    def settings(self) -> Settings:
        """The settings of both servers."""
        return self._settings

    @property
    def sessions(self) -> SessionService:
        """Logins: create, look up, list and revoke sessions."""
        return self._sessions

    @property
    def presence(self) -> Presence:
        """The users who are online, and their devices."""
        return self._presence

    @property
    def typing(self) -> TypingIndicators:
        """The users who are typing in a room."""
        return self._typing

    @property
    def realtime(self) -> RealtimeService:
        """Channels of the application's own in Redis, for what may be lost."""
        return self._realtime

    @property
    def changes(self) -> Changes:
        """The feed of changes in all rooms, for push notifications, bots, search indexes and webhooks."""
        return self._changes

    @property
    def cache(self) -> Cache:
        """Frequent reads that are never out of date: users, newest pages, rooms and memberships."""
        return self._cache

    @property
    def limits(self) -> RateLimits:
        """Rate limits of the application's own, over all processes."""
        return self._limits

    def _followed_seq(self, room_id: UUID) -> int:
        return self._feed.seq_of(room_id)

    async def start(self) -> Self:
        """Connect, and check that the schema has the revision of this release. A hub can be started once.

        Nothing is left open after an error. A hub also starts while Redis cannot be reached.

        Raises: Unavailable (PostgreSQL cannot be reached, or the hub was started before or is closed meanwhile),
        SchemaMismatch.
        """
        self._check_process()
        if self._loop is not None:
            raise Unavailable("hub", "it was already started", retryable=False)
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            # Closed in reverse order. The cache is closed after the pool, so that it still receives a change that
            # commits while the pool closes, and before the connection, so that it can still delete entries.
            stack.push_async_callback(self._connection.close)
            stack.push_async_callback(self._subscriptions.close)
            stack.push_async_callback(self.cache._close)
            stack.push_async_callback(self._pool.close)
            if self._replicas is not None:
                stack.push_async_callback(self._replicas.close)
            stack.push_async_callback(self._mark_batcher.drain)
            stack.push_async_callback(self._writer.drain)
            stack.push_async_callback(self._change_batcher.drain)
            stack.push_async_callback(self._passwords.close)
            await self._pool.open()
            await verify(self._pool)
            if await is_distributed(self._pool, self._settings.postgres.schema):
                self._distribute()
            else:
                self._pool.refuse_if(partial(was_distributed, schema=self._settings.postgres.schema))
            await self._connection.start()
            await self._subscriptions.start()
            stack.push_async_callback(self.typing._close)
            self.typing._start()
            stack.push_async_callback(self.presence._close)
            self.presence._start()
            stack.push_async_callback(self._feed.close)
            stack.callback(self.changes._close)
            await self._feed.load_key()
            self._feed.start()
            stack.push_async_callback(self._author_marks.close)  # before the feed, which announces the marks
            self._author_marks.start()
            if self._replicas is not None:
                self._replicas.start()
            pool = self._pool

            def use() -> PoolUse:
                return pool.use  # not self._pool: an instrumentation that keeps this would keep the hub

            self._instrumentation.watch(use)
            stack.callback(self._instrumentation.unwatch, use)
            stack.callback(pool.end_abandoned_transactions)
            if self._closing is not None:  # `close` was called meanwhile, and has not seen what was opened here
                raise Unavailable("hub", "it was closed while it started", retryable=False)
            self._stack = stack.pop_all()
        return self

    def _distribute(self) -> None:
        """Where rooms are distributed, a batch is of one room. Raises: Unavailable (there are replicas)."""
        if self._replicas is not None:
            raise not_supported("reading on DATABASE_REPLICA_URLS")
        self._pool.distribute()
        for batches in (self._writer, self._change_batcher, self._mark_batcher):
            batches.distribute()

    async def close(self) -> None:
        """Release leases, let calls in progress end by their deadline, and close all connections. Idempotent.

        A transaction whose block runs no statement for a second is rolled back.
        In a child process it does nothing: the connections are those of the parent.
        Raises: Unavailable (in another event loop than `start`).
        """
        if self._is_abandoned:
            return
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise wrong_event_loop()
        if self._closing is None:
            self._closing = asyncio.create_task(self._stack.aclose(), name="hubbub: close")
        await asyncio.shield(self._closing)  # once for all callers, and to its end if one of them is cancelled

    def _abandon(self) -> None:
        """Called in a child process: the hub then refuses calls if the parent had started it."""
        self._is_abandoned = self._loop is not None

    def _check_process(self) -> None:
        if self._is_abandoned:
            raise forked()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Repositories whose changes are committed together at the end of the block, or rolled back if it raises.

        The transaction holds a connection for as long as the block runs, so keep it short, and await only its own
        calls. Nothing is committed if the block has caught the error of a statement.

        A change by `hub`, instead of the transaction, of a room, membership or account that the transaction has
        changed or added would wait for the COMMIT. In the task of the block it is refused as `Invalid`. In another
        task it waits, and so do the few changes that docs/transactions.md names.

        Raises: Unavailable (also in this case, and with `outcome_unknown` if the answer to the COMMIT was lost).
        """
        async with self._pool.transaction() as executor:
            yield Transaction(executor, self._on_commit)

    def on(self, connection: ApplicationConnection) -> ConnectionRepositories:
        """The repositories on a connection of the application's, in the transaction that it has open.

            async with hub.on(connection) as chat, connection.transaction():
                await connection.execute("INSERT INTO orders ...")
                await chat.messages.send(room_id, user_id, "one tea, please")

        `connection` is one of asyncpg, or an `AsyncSession` or `AsyncConnection` of SQLAlchemy on asyncpg. hubbub
        neither commits nor rolls back. Changes are announced to followers and caches after the application's
        COMMIT, and never after a ROLLBACK, also to a savepoint. An `AsyncSession` announces them when it commits.
        The others do at the end of the block or by `announce`, which has to come after the end of the transaction.
        Followers find changes that were not announced at a later heartbeat.

        Each statement has the deadline of `hub`. A statement that does not return by then ends the connection. A
        change by `hub` of a room, membership or account that the transaction has changed would wait for its
        COMMIT. In the task that has changed it, the change by `hub` is refused as `Invalid`. In another task it
        waits, and so do the few changes that docs/transactions.md names.

        Raises: Invalid (`connection` is of another kind; a call raises it for one without a transaction).
        """
        self._check_process()
        return ConnectionRepositories(borrow(connection, self._pool), self._on_commit)

    def as_user(self, user_id: UUID) -> ActingUser:
        """The operations as this user, each checked in the statement that runs it (docs/permissions.md).

            me = hub.as_user(session.user_id)
            page = await me.messages.page(room_id)

        The repositories of the hub itself do not check who calls, so only trusted code may call them.
        This does no I/O. An unknown user may do nothing.
        """
        self._check_process()
        return ActingUser(
            inputs.uuid("user_id", user_id),
            users=self.users,
            rooms=self.rooms,
            room_users=self.room_users,
            messages=self.messages,
            receipts=self.receipts,
            sessions=self.sessions,
            typing=self.typing,
            presence=self.presence,
            follow=self.follow,
        )

    def follow(
        self,
        user_id: UUID,
        *,
        after: Mapping[UUID, str | None] | None = None,
        rooms: Iterable[UUID] | None = None,
        buffer: int = 1_000,
        typing: bool = False,
        presence: bool | Iterable[UUID] = False,
        read_marks: bool = False,
        profiles: bool = False,
        token: str | None = None,
        complete: bool = False,
    ) -> Follower:
        """The events in the rooms of a user, each once and in the order of the log of its room.

        Those are messages, edits, deletions, joins, leaves, and changes of roles and of the room.

            async with hub.follow(user_id, after={room_id: cursor}) as feed:
                async for event in feed: ...

        `after` maps at most 10,000 rooms to the cursor of the last event or message that the client has. None is
        the beginning of the log. A room without a cursor starts at the end of its log when the block is entered,
        or with the joining if the user joined it after the newest entry among the cursors. `feed.cursors` has the
        cursors to come back with, from the start and also of quiet rooms. With `complete=True`, `after` has every
        room of the client, so any other room starts with the joining.
        Without `rooms` it follows all rooms of the user, and those joined later from the time of joining. The
        user's own `MemberLeft` is the last event of a room until the user joins again. `RoomGone` comes for a room
        that is deleted, and for a room in `after` that the user has left in the meantime.

        At most `buffer` events (1 to 100,000), and a million characters of messages, wait to be read. A slower
        reader gets the rest from PostgreSQL when it asks for it. While PostgreSQL is unavailable the iteration
        waits. Redis is not needed. A log that was rewound, or a cursor more than `Options.follow_at_most_behind`
        behind, gives a `Resync`.

        `typing=True` adds the starts and stops of typing in these rooms. `presence` adds the transitions of the
        members of all rooms (True) or of the rooms that it names; `feed.watch` names others. These are published
        once and may be lost. So a client ends typing after `Options.typing_seconds`, and calls
        `hub.presence.is_online` when it connects.

        With `read_marks` come the read marks of the user from other devices, and those of others where the room
        keeps receipts. With `profiles` come changed usernames and pictures of users who share a room. These may be
        lost as well, and `Missed` comes where it is known. A client reads both again then and when it connects.

        With the `token` of a session the iteration ends with the session. A revocation ends it at once in every
        process, an expiry within a few heartbeats. Following does not prolong the session. While Redis is down
        the feed continues.

        Raises: Invalid (such as the cursor of another room), NotAMember (of a room in `rooms`, on entering).
        """
        self._check_process()
        return self._feed.follow(
            user_id,
            after={} if after is None else after,
            rooms=rooms,
            buffer=buffer,
            typing=typing,
            presence=presence,
            read_marks=read_marks,
            profiles=profiles,
            session=None if token is None else key_of(token).name,
            complete=complete,
        )

    def disconnect(self, user_id: UUID) -> None:
        """Close all feeds of the user, in every process.

        Each `hub.follow` of the user ends, also those without a session. It does not wait, and it ends no session:
        see `sessions.revoke_all`. The announcement may be lost when Redis fails. `banned` of the gateway covers
        that case. The deletion of a user also closes the feeds, with or without the announcement.

        Raises: nothing else.
        """
        self._check_process()
        self._feed.disconnect(user_id)

    @cached_property
    def history(self) -> History:
        """Import of histories, and export of rooms."""
        from hubbub.history import History  # noqa: PLC0415 - 25 ms, for programs that import or export only

        return History(self._pool, self._commits, self._replicas)

    async def health(self, *, deadline_seconds: float = DEADLINE_SECONDS) -> Health:
        """The state of the hub and its servers, for a readiness probe.

        It uses the same connections as all other calls, so a pool without a free connection in time is not ready.
        It ends by its own deadline and does not raise `Unavailable`.
        """
        seconds = inputs.positive("deadline_seconds", deadline_seconds)
        return await probe(self._pool, self._connection, self._subscriptions, seconds)

    async def register(
        self, email: str | None, username: str, password: str, *, display_name: str | None = None
    ) -> User:
        """Create an account with a password of 1 to 72 bytes. Arguments are checked before the password is hashed.

        Without an email the user logs in by the username. `display_name` is a name to show, as in `users.create`.

        Raises: Conflict (the email or username is taken, in upper or lower case).
        """
        async with self._one_deadline():
            return await self._accounts.register(email, username, password, display_name=display_name)

    async def authenticate(self, login: str, password: str, *, address: str | None = None) -> User | None:
        """The user with this email or username and this password, or None. Both take equal time.

        Attempts are limited for each login to 10 at once and 10 per minute, and for each `address` of a client to
        100 at once and 100 per minute. From an address from which the login has succeeded in the last 30 days, it
        has 10 attempts of its own. While Redis is down attempts are not limited. If the password changes during
        the check, the former one is refused. `change_password` does not end a session that is created later from
        an earlier result.
        `address` is an IP address. The zone of a scoped one, such as `fe80::1%eth0`, is ignored.

        Raises: RateLimited.
        """
        async with self._one_deadline(outcome_unknown=False) as deadline:
            return await self._accounts.authenticate(login, password, address=address, deadline=deadline)

    async def change_password(self, user_id: UUID, password: str, *, keep_token: str | None = None) -> None:
        """Set a password of 1 to 72 bytes, and end all sessions of the account except that of `keep_token`.

        The caller checks that the user may do so, by `authenticate` or by a link in an email. If the
        sessions cannot be ended, the password has been changed. Call it again to end them.

        Raises: NotFound, Unavailable (also after the password was changed).
        """
        async with self._one_deadline():
            await self._accounts.change_password(user_id, password)
            await self.sessions.revoke_all(user_id, except_token=keep_token)

    async def delete_account(self, user_id: UUID) -> None:
        """End all sessions of the user, and delete the account as `users.delete` does.

        If the sessions cannot be ended, the account is not deleted.

        Raises: NotFound.
        """
        async with self._one_deadline():
            await self.users._check_deletable(user_id)
            await self.sessions.revoke_all(user_id)
            ended: list[str] = []
            try:
                await self.users._delete(user_id, ended)
            except BaseException:  # not all of its rows could be deleted
                with suppress(Unavailable):  # the first error tells what became of the account
                    await self.sessions._end_rest(user_id, ended)
                raise
            with once_committed():
                await self.sessions._end_rest(user_id, ended)  # those of a login in between

    async def maintain(self, *, deadline_seconds: float = MAINTAIN_SECONDS) -> MaintenanceResult:
        """Delete durable sessions that have ended, and finish interrupted deletions of accounts and rooms.

        A deadline or the end of a process may have interrupted them. Any number of processes may call it at once.
        It goes through the 1,000 oldest deletions once, skips those on which another process works, and ends at
        the deadline. `MaintenanceResult.unfinished` is the number of deletions that the next call continues, at
        most 1,000. Run it, or `hubbub maintain`, once a day.

        Raises: nothing else.
        """
        seconds = inputs.positive("deadline_seconds", deadline_seconds)
        deadline = asyncio.get_running_loop().time() + seconds
        return await maintain(self._pool, self._commits, deadline=deadline)

    @asynccontextmanager
    async def _one_deadline(self, *, outcome_unknown: bool = True) -> AsyncIterator[float]:
        """One deadline for a call of several steps: the longest deadline of any step. Yields its time."""
        self._check_process()
        seconds = max(
            self.settings.postgres.deadline_seconds,
            self.settings.redis.deadline_seconds,
            self._passwords.deadline_seconds,
        )
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline + STEP_GRACE_SECONDS):
                yield deadline
        except TimeoutError as error:
            raise Unavailable("hub", f"not done within {seconds:g} s", outcome_unknown=outcome_unknown) from error


@asynccontextmanager
async def open(
    settings: Settings | None = None,
    *,
    options: Options | None = None,
    passwords: Passwords | None = None,
    instrumentation: Instrumentation = SILENT,
) -> AsyncIterator[Hub]:
    """A started hub, closed at the end of the block.

    Without `settings` it takes those of the environment (DATABASE_URL and REDIS_URL, or DB_* and REDIS_*), and
    without these the servers of `hubbub up` in the current folder, with DB_SCHEMA and REDIS_PREFIX. `options`,
    `passwords` and `instrumentation` are those of `Hub`.

    Raises: Unavailable (also without settings and servers), Invalid (also for a variable), SchemaMismatch.
    """
    hub = Hub(settings or find_settings(), options=options, passwords=passwords, instrumentation=instrumentation)
    async with hub:
        yield hub


def find_settings() -> Settings:
    """The settings of the environment, or else those of the servers of `hubbub up` in this folder.

    Raises: Unavailable (there are neither), Invalid (for a variable).
    """
    if (settings := Settings.from_env()) is not None:
        return settings
    from hubbub import embedded  # noqa: PLC0415 - 40 ms, for programs without settings only

    settings = embedded.find(Path.cwd() / embedded.FOLDER)
    if settings is None:
        reason = (
            "no servers to connect to: run `hubbub up` in this folder to start some, "
            "or set DATABASE_URL and REDIS_URL (or DB_* and REDIS_*) to your own"
        )
        raise Unavailable("hub", reason, retryable=False)
    return settings.with_env()
