"""The one way in: a Hub owns the connections and wires the parts together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from hubbub import embedded
from hubbub.changes import Announce, Change
from hubbub.errors import Unavailable
from hubbub.migrations.revisions import verify
from hubbub.postgres import Executor, Pool
from hubbub.repositories import Messages, ReadReceipts, Rooms, RoomUsers, Users
from hubbub.settings import Settings


class Repositories:
    """The repositories on one executor: the pool of a hub, or a transaction."""

    def __init__(self, executor: Executor, announce: Announce) -> None:
        self._executor = executor
        self._announce = announce
        self.users = Users(executor, announce)
        self.rooms = Rooms(executor, announce)
        self.room_users = RoomUsers(executor, announce)
        self.messages = Messages(executor, announce)
        self.receipts = ReadReceipts(executor)


class Transaction(Repositories):
    """The repositories, all of whose changes are made together or not at all."""

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[Transaction]:
        """A part that can fail alone: when the block raises, its changes are undone and the rest stands.

        Use the repositories of the savepoint inside of the block.
        """
        async with self._executor.transaction() as executor:
            yield Transaction(executor, self._announce)

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` once the transaction is durable; never when it is rolled back.

        The event loop calls it right after the COMMIT. What it raises goes to the loop's exception handler: the
        commit stands.
        """
        self._executor.after_commit(action)


class Hub(Repositories):
    """A chat's data: repositories on a pool of connections. Safe to share between all tasks of an event loop.

    `hubbub.open()` makes and starts one; a program with its own life cycle calls `start` and `close` itself. The
    constructor does no I/O.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._pool = Pool(settings.postgres)
        super().__init__(self._pool, self._heard)

    def _heard(self, change: Change) -> None:
        """What follows from a change that is durable."""

    async def start(self) -> Self:
        """Connect, and check that the schema is the one this code was written for.

        Raises `Unavailable`, `SchemaMismatch`; nothing is left open then.
        """
        try:
            await self._pool.open()
            await verify(self._pool)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Let the calls at work end, up to their deadline, and close all connections. Idempotent."""
        await self._pool.close()

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
            yield Transaction(executor, self._announce)


@asynccontextmanager
async def open(settings: Settings | None = None) -> AsyncIterator[Hub]:
    """A started hub, closed at the end of the block.

    Without `settings` it takes those of the environment (DATABASE_URL and REDIS_URL, or DB_* and REDIS_*), and
    without these the servers of `hubbub up` in the current folder. Raises `Unavailable` when there are neither,
    `Invalid` for a variable that cannot be used.
    """
    async with Hub(settings or find_settings()) as hub:
        yield hub


def find_settings() -> Settings:
    """The settings of the environment, else those of the servers of `hubbub up` in this folder."""
    settings = Settings.from_env() or embedded.find(Path.cwd())
    if settings is None:
        reason = (
            "no servers to connect to: run `hubbub up` in this folder to start some, "
            "or set DATABASE_URL and REDIS_URL (or DB_* and REDIS_*) to your own"
        )
        raise Unavailable("hub", reason, retryable=False)
    return settings
