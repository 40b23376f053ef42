"""What PostgreSQL says of itself and of the chat in it.

Nothing here reads a table: all figures are those that the server keeps anyway, but for the busiest rooms, which
are found among the newest messages by the index on their ids.
"""

from __future__ import annotations

from time import time
from typing import Final, NamedTuple
from uuid import UUID

from hubbub.migrations import verify
from hubbub.postgres import Executor, Statement

WINDOW_SECONDS: Final = 60
"""How far back it looks for the busiest rooms."""


class Server(NamedTuple):
    version: str
    max_connections: int
    connections: int
    hubs: int
    active: int
    waiting: int
    longest_seconds: float | None
    commits: int
    blocks_found: int
    blocks_read: int


# A role that is no superuser sees of others' connections that they exist, and not what they do: `longest_seconds`,
# `active` and `waiting` are then about its own. `hubs` are the connections that hubbub's pools hold.
_SERVER = Statement(
    "top.server",
    Server,
    """
    SELECT
        current_setting('server_version') AS version,
        current_setting('max_connections')::integer AS max_connections,
        client.connections,
        client.hubs,
        client.active,
        client.waiting,
        client.longest_seconds,
        pg_stat_database.xact_commit AS commits,
        pg_stat_database.blks_hit AS blocks_found,
        pg_stat_database.blks_read AS blocks_read
    FROM pg_stat_database
    CROSS JOIN (
        SELECT
            count(*) AS connections,
            count(*) FILTER (WHERE datname = current_database() AND application_name = 'hubbub') AS hubs,
            count(*) FILTER (WHERE datname = current_database() AND state <> 'idle') AS active,
            count(*) FILTER (WHERE datname = current_database() AND wait_event_type = 'Lock') AS waiting,
            (max(extract(EPOCH FROM clock_timestamp() - xact_start))
                FILTER (WHERE datname = current_database()))::float8 AS longest_seconds
        FROM pg_stat_activity
        WHERE backend_type = 'client backend'
            AND pid <> pg_backend_pid()
    ) AS client
    WHERE pg_stat_database.datname = current_database()
    """,
)


class Rows(NamedTuple):
    name: str
    rows: int
    inserted: int


# `n_live_tup` is kept with every change and lost when the server crashes; `reltuples` is as of the last ANALYZE,
# -1 before the first, and survives.
_ROWS = Statement(
    "top.rows",
    Rows,
    """
    SELECT
        pg_class.relname::text AS name,
        GREATEST(pg_class.reltuples::bigint, pg_stat_user_tables.n_live_tup, 0) AS rows,
        pg_stat_user_tables.n_tup_ins AS inserted
    FROM pg_class
    JOIN pg_stat_user_tables ON pg_stat_user_tables.relid = pg_class.oid
    WHERE pg_class.oid = ANY (ARRAY['users', 'rooms', 'messages']::regclass[])
    """,
)


class BusyRoom(NamedTuple):
    """`share` is that of the room in all messages that were looked at, from 0 to 1."""

    name: str
    share: float


# By id and not by created_at, whose index finds blocks and no rows: the ids that hubbub makes begin with the time.
_BUSIEST = Statement(
    "top.busiest",
    BusyRoom,
    """
    SELECT
        rooms.name,
        busy.share
    FROM (
        SELECT
            newest.room_id,
            count(*) / sum(count(*)) OVER ()::float8 AS share
        FROM (
            SELECT room_id
            FROM messages
            WHERE id BETWEEN $1 AND $2
            ORDER BY id DESC
            LIMIT 1000
        ) AS newest
        GROUP BY newest.room_id
        ORDER BY share DESC
        LIMIT 5
    ) AS busy
    JOIN rooms ON rooms.id = busy.room_id
    ORDER BY busy.share DESC, rooms.name
    """,
)


class Chat(NamedTuple):
    """`rows` has users, rooms and messages by the name of their table."""

    server: Server
    rows: dict[str, Rows]
    busiest: list[BusyRoom]


async def ask(executor: Executor) -> Chat:
    """Raises `Unavailable`, and `SchemaMismatch` for a database that is not hubbub's."""
    await verify(executor)
    [server] = await executor.fetch_all(_SERVER)
    rows = await executor.fetch_all(_ROWS)
    first, last = _first_id(time() - WINDOW_SECONDS), _first_id(time() + WINDOW_SECONDS)
    busiest = await executor.fetch_all(_BUSIEST, first, last)
    return Chat(server, {row.name: row for row in rows}, busiest)


def _first_id(at: float) -> UUID:
    """The lowest UUID of version 7 that belongs to this time, in seconds since 1970."""
    return UUID(int=round(at * 1000) << 80 | 0x7 << 76 | 0b10 << 62)
