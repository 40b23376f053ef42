"""One process at a time migrates a database."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from hubbub.errors import Unavailable
from hubbub.postgres import Executor, OpenTransaction, Statement, connect
from hubbub.settings import PostgresSettings

# "hubbub" in ASCII. PostgreSQL keeps the advisory locks of each database apart, so the key need not name it; a
# name would not even do, since one database may be reached under two of them.
KEY = 0x687562627562

TRY_LOCK = Statement(
    "migrations.try_lock",
    bool,
    """
    SELECT pg_try_advisory_lock($1) AS taken
    """,
)

LONGEST_PAUSE_SECONDS = 1.0
CLOSE_SECONDS = 1.0

Session = Callable[[], AbstractAsyncContextManager[Executor]]


@asynccontextmanager
async def session(settings: PostgresSettings) -> AsyncIterator[Session]:
    """One connection for the block. Each call of what it gives is one transaction on it."""
    # It is idle while a long revision runs elsewhere: no policy against idle sessions may end it, and with it
    # the lock.
    connection = await connect(settings, server_settings={"idle_session_timeout": "0"})
    try:
        yield lambda: OpenTransaction.begin(connection, settings.deadline_seconds)
        with suppress(TimeoutError, OSError):
            await connection.close(timeout=CLOSE_SECONDS)
    finally:
        connection.terminate()


async def take_lock(session: Session, within_seconds: float) -> None:
    """Take the migration lock of the database. It is held until the session ends, however that ends.

    It is asked for again and again rather than waited for: a statement that waits holds a snapshot, and CREATE
    INDEX CONCURRENTLY in the process that has the lock waits for every snapshot that is older than its index.
    Raises `Unavailable` when other processes held it for `within_seconds`.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + within_seconds
    pause = 0.05
    while True:
        async with session() as executor:
            if await executor.fetch_one(TRY_LOCK, KEY):
                return
        if loop.time() + pause > give_up_at:
            raise Unavailable("postgresql", f"other processes were migrating it for {within_seconds:g} s")
        await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
