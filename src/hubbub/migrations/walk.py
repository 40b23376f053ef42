"""Walking a database from one revision to another, politely."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from alembic.util import CommandError
from sqlalchemy import NullPool
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from hubbub.errors import HubbubError, Unavailable
from hubbub.migrations.history import URL, Direction, move
from hubbub.migrations.lock import session, take_lock
from hubbub.migrations.patience import Patience
from hubbub.migrations.revisions import found_in
from hubbub.postgres import connect
from hubbub.postgres.errors import to_error
from hubbub.settings import PostgresSettings

Route = Callable[[str | None], tuple[str, ...]]

LOCK_NOT_AVAILABLE = "55P03"
DEADLOCK_DETECTED = "40P01"
# "tuple concurrently updated": seen when the server still builds an index for a run that was killed, and finishes
# in the instant in which the next run drops it.
INTERNAL_ERROR = "XX000"
LONGEST_PAUSE_SECONDS = 5.0


async def walk(settings: PostgresSettings, direction: Direction, route: Route, patience: Patience) -> list[str]:
    """Apply or undo the revisions that `route` names for the revision found, one by one; returns them."""
    async with session(settings) as transaction:
        async with transaction() as executor:
            if not route(await found_in(executor)):
                return []
        await take_lock(transaction, patience.turn_seconds)
        async with transaction() as executor:
            revisions = route(await found_in(executor))
        for revision in revisions:
            await _patiently(settings, direction, revision, patience)
    return list(revisions)


async def _patiently(settings: PostgresSettings, direction: Direction, revision: str, patience: Patience) -> None:
    """Apply or undo one revision; where others are in the way, let them go first and try again."""
    loop = asyncio.get_running_loop()
    give_up_at = None
    pause = 0.1
    while True:
        try:
            async with _migrating(settings, patience.lock_timeout_seconds) as connection:
                return await connection.run_sync(lambda c: move(c, direction, revision))
        except DBAPIError as error:
            give_up_at = give_up_at or loop.time() + patience.locks_seconds
            if not _may_pass(error) or loop.time() + pause > give_up_at:
                raise _explained(error, revision, patience) from error
        except CommandError as error:
            raise Unavailable("postgresql", f"revision {revision}: {error}") from error
        await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


@asynccontextmanager
async def _migrating(settings: PostgresSettings, lock_timeout_seconds: float) -> AsyncIterator[AsyncConnection]:
    """A connection through SQLAlchemy to the same server, opened the way hubbub opens every connection."""
    raw = await connect(
        settings,
        server_settings={
            "lock_timeout": str(max(round(lock_timeout_seconds * 1000), 1)),  # 0 would mean no limit
            "statement_timeout": "0",  # to index a large table takes as long as it takes
            "idle_in_transaction_session_timeout": "0",
        },
    )

    async def opened() -> object:
        return raw

    engine = create_async_engine(URL, poolclass=NullPool, async_creator=opened)
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        raw.terminate()


def _may_pass(error: DBAPIError) -> bool:
    return _sqlstate(error) in {LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED, INTERNAL_ERROR}


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _explained(error: DBAPIError, revision: str, patience: Patience) -> HubbubError:
    """What a failed revision means. What it did in the transaction that failed is undone."""
    if _sqlstate(error) in {LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED}:
        reason = f"revision {revision} was refused its locks for {patience.locks_seconds:g} s by long transactions"
        return Unavailable("postgresql", f"{reason}; see pg_stat_activity")
    cause = error.orig.__cause__ if error.orig else None
    if isinstance(cause, Exception):
        known = to_error(cause, writes=True, lost=error.connection_invalidated)
        if known is not None:
            return known
    what = str(cause or error.orig).partition("\n")[0]  # the lines after the first hold values of rows
    return Unavailable("postgresql", f"revision {revision} failed: {what}", retryable=False)
