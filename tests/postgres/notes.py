"""A table for tests of pools and transactions, the statements on it, and a look at the server from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubbub import PostgresSettings
from hubbub.postgres import Executor, Statement, connect

if TYPE_CHECKING:
    from hubbub.postgres.connection import Connection

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


async def ids(executor: Executor) -> list[int]:
    return await executor.fetch_all(IDS)


async def pid_of(executor: Executor) -> int:
    """The process that serves the executor's next statement, or that of an idle pool's next caller."""
    [pid] = await executor.fetch_all(PID)
    return pid


class Watch:
    """A connection beside the pool, that sees what the server sees of the pool's database."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    async def on(cls, settings: PostgresSettings) -> Watch:
        return cls(await connect(settings, server_settings={"application_name": "watch"}))

    async def states(self) -> list[str]:
        """The state of every other connection to this database: 'active', 'idle', 'idle in transaction'."""
        rows = await self.connection.fetch(
            """
            SELECT state
            FROM pg_stat_activity
            WHERE datname = current_database()
                AND backend_type = 'client backend'
                AND application_name <> 'watch'
            """
        )
        return [row["state"] for row in rows]

    async def nobody(self) -> bool:
        return not await self.states()

    async def busy(self, count: int = 1) -> bool:
        return (await self.states()).count("active") == count

    async def waits_for_lock(self, count: int = 1) -> bool:
        """`count` others wait for a lock."""
        waiting = await self.connection.fetchval(
            """
            SELECT count(*)
            FROM pg_stat_activity
            WHERE datname = current_database()
                AND wait_event_type = 'Lock'
            """
        )
        return bool(waiting == count)

    async def end(self, pid: int) -> None:
        await self.connection.execute("SELECT pg_terminate_backend($1)", pid)
