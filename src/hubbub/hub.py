"""The one way in: a Hub owns the connections and wires the parts together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self
from uuid import UUID

from hubbub import inputs
from hubbub.commits import Commits, OnCommit, RoomRewound
from hubbub.errors import Unavailable
from hubbub.instrumentation import SILENT, Instrumentation, PoolUse
from hubbub.migrations.revisions import verify
from hubbub.models import User
from hubbub.passwords import Passwords
from hubbub.postgres import Executor, Pool
from hubbub.redis import Connection, Subscriptions
from hubbub.repositories import Messages, MessageWriter, ReadReceipts, Rooms, RoomUsers, Users
from hubbub.services.accounts import Accounts
from hubbub.services.cache import Cache
from hubbub.services.feed import Feed, Follower
from hubbub.services.health import DEADLINE_SECONDS, Health, HealthProbe
from hubbub.services.presence import Presence
from hubbub.services.rate_limits import RateLimits
from hubbub.services.realtime import RealtimeService
from hubbub.services.sessions import SessionService
from hubbub.services.typing_indicators import TypingIndicators
from hubbub.settings import Settings

if TYPE_CHECKING:
    from hubbub.history import History


# A call that asks one after the other ends this long after the deadline of what it asked first.
GRACE_SECONDS = 0.1


class Repositories:
    """The repositories on one executor: the pool of a hub, or a transaction. What calls raise is said at `Hub`."""

    def __init__(self, executor: Executor, on_commit: OnCommit, writer: MessageWriter | None = None) -> None:
        self._executor = executor
        self._on_commit = on_commit
        self.users = Users(executor, on_commit)
        self.rooms = Rooms(executor, on_commit)
        self.room_users = RoomUsers(executor, on_commit)
        self.messages = Messages(executor, on_commit, writer)
        self.receipts = ReadReceipts(executor)


class Transaction(Repositories):
    """The repositories, all of whose changes are made together or not at all."""

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[Transaction]:
        """A part that can fail alone: when the block raises, its changes are undone and the rest stands.

        Inside of the block use the repositories of the savepoint: those around it wait until it ends.
        """
        async with self._executor.transaction() as executor:
            yield Transaction(executor, self._on_commit)

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` once the transaction is durable; never when it is rolled back.

        It is called right after the COMMIT. What it raises goes to the event loop's exception handler: the commit
        stands.
        """
        self._executor.after_commit(action)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long things last that live in Redis. All processes of a chat should have the same."""

    session_life_seconds: float = 86_400
    session_idle_timeout_seconds: float | None = None
    """None: nothing but its age ends a session."""
    presence_heartbeat_seconds: float = 10
    """A process that was killed is noticed within two heartbeats and a second."""
    presence_grace_seconds: float = 5
    """Who goes and comes back within this time has not been offline."""
    typing_seconds: float = 6
    """How long typing lasts that nobody refreshes."""
    follow_heartbeat_seconds: float = 1
    """How often the logs of all followed rooms are compared with what followers have: the longest that a follower
    waits for an event of which Redis did not tell."""
    follow_at_most_behind: int = 10_000
    """Entries of a room's log; who comes back with a cursor that is further behind gets a `Resync`."""


class Hub(Repositories):
    """A chat's data: repositories on PostgreSQL, and what lives in Redis. All tasks of an event loop may share it.

    `hubbub.open()` makes and starts one; a program with its own life cycle calls `start` and `close` itself. The
    constructor does no I/O.

    Without PostgreSQL nothing works, and every call says so by its deadline. Without Redis the repositories go on,
    presence says that it does not know, and sessions are `Unavailable`, until it is back: no restart is needed.

    Any call, also of the parts, may raise `Invalid`, for a value of a wrong type or form, such as the cursor of
    another list, and `Unavailable`, when a server is out of reach or does not answer by the deadline. What else a
    call may raise its docstring says.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        options: Options | None = None,
        passwords: Passwords | None = None,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        """`passwords` sets the cost of hashing and how many threads may do it; bcrypt's cost is 12 by default.
        `instrumentation` is told what happens; by default nobody is.

        Raises `Invalid` for options that do not fit together.
        """
        options = options or Options()
        self.settings = settings
        self._instrumentation = instrumentation
        self._commits = Commits()
        self._pool = Pool(settings.postgres, instrumentation)
        self._writer = MessageWriter(
            self._pool, self._commits, deadline_seconds=settings.postgres.deadline_seconds
        )
        super().__init__(self._pool, self._commits, self._writer)
        self._connection = Connection(settings.redis, instrumentation=instrumentation)
        self._subscriptions = Subscriptions(settings.redis, instrumentation=instrumentation)
        self._passwords = passwords or Passwords()
        self._stack = AsyncExitStack()
        self._stack.push_async_callback(self._pool.close)  # it connects when it is used, started or not
        self._closing: asyncio.Task[None] | None = None

        self.sessions = SessionService(
            self._connection,
            life_seconds=options.session_life_seconds,
            idle_timeout_seconds=options.session_idle_timeout_seconds,
        )
        self.realtime = RealtimeService(self._connection, self._subscriptions, instrumentation)
        self.typing = TypingIndicators(
            self._connection,
            self._subscriptions,
            self.room_users.is_member,
            ttl_seconds=options.typing_seconds,
        )
        self.presence = Presence(
            self._connection,
            self._subscriptions,
            self.users.set_online_many,
            on_disconnect=self.typing.stop_everywhere_soon,
            heartbeat_seconds=options.presence_heartbeat_seconds,
            grace_seconds=options.presence_grace_seconds,
        )
        self.cache = Cache(
            self._connection,
            users=self.users,
            rooms=self.rooms,
            messages=self.messages,
            room_users=self.room_users,
        )
        self._feed = Feed(
            self._pool,
            self._connection,
            self._subscriptions,
            heartbeat_seconds=options.follow_heartbeat_seconds,
            at_most_behind=options.follow_at_most_behind,
            on_rewind=lambda room_id: self._commits(RoomRewound(room_id)),
            instrumentation=instrumentation,
        )
        for part in (self.cache, self._feed, self.typing):
            part.register(self._commits)
        self._health = HealthProbe(self._pool, self._connection, self._subscriptions)
        self.limits = RateLimits(self._connection)
        take = partial(self.limits.take, fail_open=True)
        self._accounts = Accounts(
            self.users,
            self._passwords,
            per_login=partial(take, "login", capacity=10, refill_per_second=10 / 60),
            per_address=partial(take, "address", capacity=100, refill_per_second=100 / 60),
        )

    async def start(self) -> Self:
        """Connect, and check that the schema is the one this code was written for. A hub is started once.

        Raises `Unavailable` when PostgreSQL cannot be reached, `SchemaMismatch`; nothing is left open then. A
        Redis that cannot be reached is no reason not to start.
        """
        async with AsyncExitStack() as stack:
            # Closed from the last to the first. The cache goes after the pool, so that it still hears of a change
            # that commits while the pool closes, and before the connection, so that it can still tell Redis.
            stack.push_async_callback(self._connection.close)
            stack.push_async_callback(self._subscriptions.close)
            stack.push_async_callback(self.cache.close)
            stack.push_async_callback(self._pool.close)
            stack.push_async_callback(self._writer.drain)
            stack.push_async_callback(self._passwords.close)
            await self._pool.open()
            await verify(self._pool)
            await self._connection.start()
            await self._subscriptions.start()
            stack.push_async_callback(self.typing.close)
            self.typing.start_tasks()
            stack.push_async_callback(self.presence.close)
            self.presence.start()
            stack.push_async_callback(self._feed.close)
            self._feed.start()
            pool = self._pool

            def use() -> PoolUse:
                return pool.use  # not self._pool: who keeps this would keep the hub

            self._instrumentation.watch(use)
            stack.callback(self._instrumentation.unwatch, use)
            self._stack = stack.pop_all()
        return self

    async def close(self) -> None:
        """Give up leases, let the calls at work end by their deadline, and close all connections. Idempotent."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._stack.aclose(), name="hubbub: close")
        await asyncio.shield(self._closing)  # one order for all who close, and no end in the middle

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """All that is done with the block's repositories, or none of it.

        Rolled back when the block raises. One connection is held for as long as the block runs: keep it short, and
        wait for nothing else in it. Raises `Unavailable` with `outcome_unknown` when the answer to the COMMIT was
        lost, and when a statement in the block had failed and its error was swallowed.
        """
        async with self._pool.transaction() as executor:
            yield Transaction(executor, self._on_commit)

    def follow(
        self,
        user_id: UUID,
        *,
        after: Mapping[UUID, str | None] | None = None,
        rooms: Iterable[UUID] | None = None,
        buffer: int = 1_000,
        typing: bool = False,
        presence: bool = False,
    ) -> Follower:
        """What happens in the rooms of a user, for `async with` and `async for`: messages, edits, deletions,
        joins, leaves, changes of roles and of the room, each once and in the order of the log of the room.

            async with hub.follow(user_id, after={room_id: cursor}) as feed:
                async for event in feed: ...

        `after` has the cursor of the last event or message that the client has of a room, of at most 10,000 rooms;
        None is the beginning of the log. A room without one starts where its log ends when the block is entered.
        Without `rooms` it follows all rooms of the user, also those joined later, from the joining on. The user's
        own `MemberLeft` is the last event of a room until the user joins again. `RoomGone` stands for a room that
        is deleted, and for one in `after` that the user has left meanwhile.

        At most `buffer` events (1 to 100,000) wait to be read; a reader that is slower reads the rest from
        PostgreSQL when it comes to it. While PostgreSQL is away the iteration waits; Redis is not needed. A log
        that was rewound, or a cursor that is more than `Options.follow_at_most_behind` behind, gives a `Resync`.

        With `typing` it also tells who starts and stops typing in these rooms, with `presence` which of their
        members come online and go. These are said once and may be lost, as Redis may: a client lets typing fade
        after `Options.typing_seconds`, and asks `hub.presence.is_online` when it comes.

        Raises `Invalid`, among others for what is no cursor or that of another room; on entering also `NotAMember`
        for a room in `rooms`, and `Unavailable`.
        """
        return self._feed.follow(
            user_id,
            after={} if after is None else after,
            rooms=rooms,
            buffer=buffer,
            typing=typing,
            presence=presence,
        )

    @cached_property
    def history(self) -> History:
        """Import of histories, and export of rooms."""
        from hubbub.history import History  # noqa: PLC0415 - 25 ms, which only who imports or exports should pay

        return History(self._pool, self._commits)

    async def health(self, *, deadline_seconds: float = DEADLINE_SECONDS) -> Health:
        """How the hub and its servers do, for a readiness probe. Ends by its own deadline, and raises nothing but
        `Invalid`, for one that is no number above 0.

        It asks over the connections that everybody uses: a pool in which nobody gets a connection in time is not
        ready. `ready` is about PostgreSQL, `degraded` about Redis.
        """
        return await self._health.health(inputs.positive("deadline_seconds", deadline_seconds))

    async def register(self, email: str, username: str, password: str) -> User:
        """Make an account with a password of 1 to 72 bytes.

        Raises `Invalid` before anything is hashed, `Conflict` for an email or username that is taken in any case.
        """
        async with self._one_deadline():
            return await self._accounts.register(email, username, password)

    async def authenticate(self, login: str, password: str, *, address: str | None = None) -> User | None:
        """The user with this email or username and this password, or None: in equal time either way.

        10 attempts at once and 10 a minute are taken for a login, 100 and 100 a minute for the `address` of a
        client; one more raises `RateLimited`. While Redis is down all are taken. A password that is changed while
        it is checked is wrong; a session made of the answer after a `change_password` is not ended by it.
        """
        async with self._one_deadline(outcome_unknown=False) as deadline:
            return await self._accounts.authenticate(login, password, address=address, deadline=deadline)

    async def change_password(self, user_id: UUID, password: str, *, keep_token: str | None = None) -> None:
        """Give the account another password, and end its sessions but for that of `keep_token`.

        Whether the user may is the caller's to ask, by `authenticate` or by a link that was mailed. Raises
        `Invalid` for an empty password or one over 72 bytes, `NotFound`; `Unavailable` when Redis cannot end the
        sessions, after the password was changed: calling it again ends them.
        """
        async with self._one_deadline():
            await self._accounts.change_password(user_id, password)
            await self.sessions.revoke_all(user_id, except_token=keep_token)

    async def delete_account(self, user_id: UUID) -> None:
        """End all sessions of the user, and delete the account as `users.delete` does.

        Raises `NotFound`; `Unavailable` with nothing deleted when Redis cannot end the sessions.
        """
        async with self._one_deadline():
            await self.sessions.revoke_all(user_id)
            await self.users.delete(user_id)
            await self.sessions.revoke_all(user_id)  # of a login that came in between

    @asynccontextmanager
    async def _one_deadline(self, *, outcome_unknown: bool = True) -> AsyncIterator[float]:
        """Of a call that asks one after the other: the longest that any of them has by itself.

        The block gets when that is. What was asked first is given a moment more, to say itself what it was.
        """
        seconds = max(
            self.settings.postgres.deadline_seconds,
            self.settings.redis.deadline_seconds,
            self._passwords.deadline_seconds,
        )
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline + GRACE_SECONDS):
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
    without these the servers of `hubbub up` in the current folder. Raises `Unavailable` when there are neither,
    `Invalid` for a variable that cannot be used, and what `Hub.start` does. `options`, `passwords` and
    `instrumentation` as in `Hub`.
    """
    hub = Hub(settings or find_settings(), options=options, passwords=passwords, instrumentation=instrumentation)
    async with hub:
        yield hub


def find_settings() -> Settings:
    """The settings of the environment, else those of the servers of `hubbub up` in this folder."""
    settings = Settings.from_env() or _embedded_settings()
    if settings is None:
        reason = (
            "no servers to connect to: run `hubbub up` in this folder to start some, "
            "or set DATABASE_URL and REDIS_URL (or DB_* and REDIS_*) to your own"
        )
        raise Unavailable("hub", reason, retryable=False)
    return settings


def _embedded_settings() -> Settings | None:
    from hubbub import embedded  # noqa: PLC0415 - 40 ms, which a service with servers of its own should not pay

    return embedded.find(Path.cwd() / embedded.FOLDER)
