"""A table for tests of pools and transactions, the statements on it, and an observer of the server."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from hubbub import PostgresSettings, Unavailable
from hubbub.postgres import Executor, Pool, Statement, connect
from hubbub.postgres.connection import Connection
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

TABLE = """
    CREATE TABLE notes (
        id int PRIMARY KEY,
        body text NOT NULL,
        room int CONSTRAINT messages_room_id_fkey REFERENCES notes DEFERRABLE INITIALLY DEFERRED,
        CONSTRAINT users_email_check CHECK (body <> '')
    );
    ALTER TABLE notes RENAME CONSTRAINT notes_pkey TO messages_pkey
"""

PID = Statement("test.pid", int, "SELECT pg_backend_pid()")
ONE = Statement("test.one", int, "SELECT 1")
ECHO = Statement("test.echo", str, "SELECT $1::text")
SLEEP = Statement("test.sleep", int, "SELECT 1 FROM pg_sleep($1)")
WRITE = Statement("test.write", int, "INSERT INTO notes (id, body) VALUES ($1, $2)")
WRITE_IN_ROOM = Statement("test.write_in_room", int, "INSERT INTO notes (id, body, room) VALUES ($1, 'x', $2)")
WRITE_ONCE = Statement(
    "test.write_once",
    int,
    "INSERT INTO notes (id, body) SELECT $1, 'once' FROM pg_sleep($2) ON CONFLICT DO NOTHING",
    idempotent=True,
)
WRITE_SLOWLY = Statement(
    "test.write_slowly", int, "INSERT INTO notes (id, body) SELECT $1, 'slow' FROM pg_sleep($2)"
)
IDS = Statement("test.ids", int, "SELECT id FROM notes ORDER BY id")
EMPTY = Statement("test.empty", int, "UPDATE notes SET body = '' WHERE id = $1")

HANG_SECONDS = 3600
"""A sleep of the server that is ended only by a deadline, a cancellation or a lost connection."""


def patient() -> float:
    """A deadline for a call of a pool whose own deadline is a fraction of a second."""
    return asyncio.get_running_loop().time() + HANGS_AFTER_SECONDS


async def ids(executor: Executor) -> list[int]:
    return await executor.fetch_all(IDS, deadline=patient())


async def pid_of(executor: Executor) -> int:
    """The server process of the executor's next statement, which for a pool is that of an idle connection."""
    [pid] = await executor.fetch_all(PID, deadline=patient())
    return pid


async def warm_up(pool: Pool) -> None:
    """Open a connection. On a busy machine this may take several of the pool's short deadlines."""

    async def answers() -> bool:
        with suppress(Unavailable):
            return await pool.fetch_one(ONE) == 1
        return False

    await until_it_answers(answers)


class Observer:
    """A connection beside the pool, by which a test sees the server's view of the pool's database."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    async def connect(cls, settings: PostgresSettings) -> Observer:
        return cls(await connect(settings, server_settings={"application_name": "observer"}))

    async def states(self) -> list[str]:
        """The state of every other connection to this database: 'active', 'idle', 'idle in transaction'."""
        rows = await self.connection.fetch(
            """
            SELECT state
            FROM pg_stat_activity
            WHERE datname = current_database()
                AND backend_type = 'client backend'
                AND application_name <> 'observer'
            """
        )
        return [row["state"] for row in rows]

    async def sees_no_connection(self) -> bool:
        return not await self.states()

    async def sees_active(self, count: int = 1) -> bool:
        return (await self.states()).count("active") == count

    async def sees_lock_waiters(self, count: int = 1) -> bool:
        """Whether at least this many statements wait for a lock. Several may have arrived since the last look."""
        waiting = await self.connection.fetchval(
            """
            SELECT count(*)
            FROM pg_stat_activity
            WHERE datname = current_database()
                AND wait_event_type = 'Lock'
            """
        )
        return bool(waiting >= count)

    async def terminate(self, pid: int) -> None:
        await self.connection.execute("SELECT pg_terminate_backend($1)", pid)


async def assert_whole(pool: Pool, observer: Observer, *, connections: int = 2) -> None:
    """Assert that no connection is in use or in a transaction, and that the pool can use all its connections."""

    async def at_rest() -> bool:
        return pool.size == pool.idle and set(await observer.states()) <= {"idle"}

    await until_it_answers(at_rest)
    barrier = asyncio.Barrier(connections + 1)

    async def use() -> None:
        async with pool.transaction(deadline=patient()):
            await barrier.wait()

    users = [asyncio.create_task(use()) for _ in range(connections)]
    await until(lambda: barrier.n_waiting == connections)
    one_more = asyncio.create_task(pool.fetch_one(ONE, deadline=patient()))
    await asyncio.wait([one_more], timeout=0.05)
    assert not one_more.done()
    await barrier.wait()
    await asyncio.gather(*users)
    assert await one_more == 1
    assert len(await observer.states()) == pool.size == pool.idle == connections
