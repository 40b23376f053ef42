"""The figures that PostgreSQL and Redis report, of themselves and of the chat. A poller asks at an interval.

No table is read. The servers keep all these figures anyway, except for the busiest rooms, which are found among
the newest messages by the index on their ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic, time
from typing import Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from hubbub.background import wait_at_most
from hubbub.errors import HubbubError, Invalid, Unavailable
from hubbub.migrations import verify
from hubbub.postgres import Executor, Statement, uuid_of
from hubbub.redis import Connection, ReplyError
from hubbub.redis.expiring_sets import BUCKETS
from hubbub.redis.replies import as_bytes, as_bytes_list, as_int, as_list
from hubbub.services.presence.leases import online_key
from hubbub.services.typing_indicators import due_key, room_key

T = TypeVar("T")

BUSY_SECONDS: Final = 60
"""How far back the busiest rooms are looked for."""

ROOMS_PER_BUCKET: Final = 50
"""Rooms of a bucket in which typing users are counted: with all buckets a few thousand commands at most."""

SAMPLE: Final = 2_000
"""Keys that are looked at, to tell how many of all are sessions: within about 2 % at one half."""

KEYS_PER_SCAN: Final = 500


class Poller(Generic[T]):
    """Asks one server by `ask`, and keeps its latest answer and the one before, or the error.

    After an error both answers are forgotten: old figures would look current, and a server that was restarted
    counts from zero.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self.error: HubbubError | ReplyError | None = None
        self._ask = ask
        self._answers: list[tuple[float, T]] = []

    @property
    def latest(self) -> T | None:
        """None before the first answer and after an error."""
        return self._answers[-1][1] if self._answers else None

    @property
    def reason(self) -> str | None:
        """Why the server did not answer the last time."""
        if self.error is None:
            return None
        return self.error.reason if isinstance(self.error, Unavailable) else str(self.error)

    def growth(self, figure: Callable[[T], int], before: Callable[[T], int] | None = None) -> int | None:
        """By how much a figure grew between the last two answers; None without two, or if it fell.
        `before` reads it from the earlier answer."""
        if len(self._answers) < 2:
            return None
        (_, earlier), (_, later) = self._answers
        growth = figure(later) - (before or figure)(earlier)
        return growth if growth >= 0 else None

    def rate(self, figure: Callable[[T], int], before: Callable[[T], int] | None = None) -> float | None:
        growth = self.growth(figure, before)
        if growth is None:
            return None
        (earlier, _), (later, _) = self._answers
        return growth / max(later - earlier, 0.001)

    async def poll(self) -> None:
        """Ask once. Does not raise for a server that cannot answer."""
        try:
            answer = await self._ask()
        except (HubbubError, ReplyError) as error:
            self._answers, self.error = [], error
        else:
            self._answers, self.error = [*self._answers[-1:], (monotonic(), answer)], None

    async def run(self, interval_seconds: float, changed: Callable[[], None], stop: asyncio.Event) -> None:
        """Ask at this interval until `stop`, and call `changed` each time. A late answer delays the next."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            due = loop.time() + interval_seconds
            await self.poll()
            changed()
            await wait_at_most(stop, due - loop.time())


class Postgres(NamedTuple):
    version: str
    max_connections: int
    connections: int
    pooled: int
    active: int
    waiting: int
    longest_seconds: float | None
    commits: int
    blocks_found: int
    blocks_read: int


# A role that is not a superuser sees that other connections exist, and not what they do: `active`, `waiting` and
# `longest_seconds` are then about its own. `pooled` are the connections of hubbub's pools.
_POSTGRES = Statement(
    "top.postgres",
    Postgres,
    """
    SELECT
        current_setting('server_version') AS version,
        current_setting('max_connections')::integer AS max_connections,
        client.connections,
        client.pooled,
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
            count(*) FILTER (WHERE datname = current_database() AND application_name = 'hubbub') AS pooled,
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


# `n_live_tup` follows every change and is lost when the server crashes; `reltuples` is from the last ANALYZE, -1
# before the first, and survives.
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
    WHERE pg_class.relname IN ('users', 'rooms', 'messages')
        AND pg_class.relnamespace = to_regnamespace(current_schema())
    """,
)


class BusyRoom(NamedTuple):
    """`share` is that of the room in the newest messages, from 0 to 1."""

    id: UUID
    name: str
    share: float


# By id and not by created_at, whose index finds blocks and not rows. The ids of hubbub begin with the time.
_BUSIEST = Statement(
    "top.busiest",
    BusyRoom,
    """
    SELECT
        rooms.id,
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
        LIMIT 8
    ) AS busy
    JOIN rooms ON rooms.id = busy.room_id
    ORDER BY busy.share DESC, rooms.name
    """,
)


class StoredFigures(NamedTuple):
    """`rows` has users, rooms and messages by the name of their table."""

    server: Postgres
    rows: dict[str, Rows]
    busiest: list[BusyRoom]


async def ask_postgres(executor: Executor) -> StoredFigures:
    """Raises: Unavailable, SchemaMismatch (the database is not hubbub's, or at another revision)."""
    await verify(executor)
    [server] = await executor.fetch_all(_POSTGRES)
    rows = {row.name: row for row in await executor.fetch_all(_ROWS)}
    first, last = _first_id(time() - BUSY_SECONDS), _first_id(time() + BUSY_SECONDS)
    return StoredFigures(server, rows, await executor.fetch_all(_BUSIEST, first, last))


def _first_id(at: float) -> UUID:
    """The lowest UUID of version 7 of this time, in seconds since 1970."""
    return uuid_of(7, round(at * 1000) << 80)


class SlowStatement(NamedTuple):
    """Times are in milliseconds. `text` is None if it cannot be shown."""

    text: str | None
    calls: int
    total: float
    mean: float
    longest: float


_STATEMENTS_SCHEMA = Statement(
    "statements.schema",
    str,
    """
    SELECT quote_ident(pg_namespace.nspname) AS schema
    FROM pg_extension
    JOIN pg_namespace ON pg_namespace.oid = pg_extension.extnamespace
    WHERE pg_extension.extname = 'pg_stat_statements'
        AND has_schema_privilege(pg_namespace.oid, 'USAGE')
    """,
)

# Values are placeholders in these texts, except in commands such as ALTER ROLE, and rarely where the extension was
# short of space. So only texts of queries are shown, and none with a quoted value. A role sees the texts of other
# roles only with pg_read_all_stats.
_SLOWEST = """
    SELECT
        CASE
            WHEN query !~ '''|[$][a-zA-Z_]*[$]' THEN left(regexp_replace(query, '\\s+', ' ', 'g'), 400)
        END AS text,
        calls,
        total_exec_time AS total,
        mean_exec_time AS mean,
        max_exec_time AS longest
    FROM {schema}.pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND query ~* '^\\s*(select|insert|update|delete|with|merge)\\M'
    ORDER BY total_exec_time DESC
    LIMIT 8
"""


async def slowest(executor: Executor) -> list[SlowStatement] | None:
    """The statements that took PostgreSQL the most time, by its extension pg_stat_statements.

    None without the extension, or if the server has not loaded it.

    Raises: nothing else.
    """
    schema = await executor.fetch_one(_STATEMENTS_SCHEMA)
    if schema is None:
        return None
    statement = Statement("statements.slowest", SlowStatement, _SLOWEST.format(schema=schema))
    try:
        return await executor.fetch_all(statement)
    except Invalid:  # so PostgreSQL refuses without the library of the extension
        return None


class ServerInfo(NamedTuple):
    """`name` is Redis or Valkey; `fields` are those of INFO, `others` of the other primaries of a cluster."""

    name: str
    version: str
    fields: dict[str, str]
    others: Sequence[dict[str, str]] = ()

    def number(self, field: str) -> int:
        """Of a cluster, the sum over its primaries."""
        return sum(int(fields.get(field, 0)) for fields in (self.fields, *self.others))


async def server_info(connection: Connection) -> ServerInfo:
    """Raises: Unavailable, ReplyError (the login may not run INFO)."""
    servers = connection.servers or {"": connection}  # no slot of the cluster is known yet
    texts = await asyncio.gather(*[server.execute("INFO") for server in servers.values()])
    fields, *others = [fields_of(as_bytes(text).decode(errors="replace")) for text in texts]
    name = "Valkey" if "valkey_version" in fields else "Redis"
    return ServerInfo(name, fields.get(f"{name.lower()}_version", ""), fields, others)


def fields_of(text: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


class Typing(NamedTuple):
    """`is_more`: there are rooms that were not looked at."""

    users: int
    rooms: int
    is_more: bool


class Sessions(NamedTuple):
    """`is_exact` is False if the number is projected from a part of the keys."""

    number: int
    is_exact: bool


class LiveFigures(NamedTuple):
    """`server` is from before the other commands, `afterwards` from after them: they count as commands too."""

    server: ServerInfo
    afterwards: ServerInfo
    online: int
    typing: Typing
    sessions: Sessions


async def ask_redis(connection: Connection) -> LiveFigures:
    """A few commands, none of which takes long however many keys there are. Raises: Unavailable, ReplyError."""
    server = await server_info(connection)
    seconds, microseconds = as_bytes_list(await connection.execute("TIME"))
    now = int(seconds) * 1000 + int(microseconds) // 1000
    online = sum(await _count_unexpired(connection, map(online_key, range(BUCKETS)), now))
    typing = await _typing(connection, now)
    counts = [await _sessions(server, connection.prefix) for server in connection.servers.values()]
    sessions = Sessions(sum(one.number for one in counts), all(one.is_exact for one in counts))
    return LiveFigures(server, await server_info(connection), online, typing, sessions)


async def _typing(connection: Connection, now: int) -> Typing:
    keys = [due_key(bucket) for bucket in range(BUCKETS)]
    # One more than are counted, to know whether there are more.
    found = await asyncio.gather(*[connection.execute("ZRANGE", key, 0, ROOMS_PER_BUCKET) for key in keys])
    rooms = [as_bytes_list(ids) for ids in found]
    counted = [room_key(UUID(id.decode())) for ids in rooms for id in ids[:ROOMS_PER_BUCKET]]
    users = await _count_unexpired(connection, counted, now)
    return Typing(sum(users), sum(map(bool, users)), any(len(ids) > ROOMS_PER_BUCKET for ids in rooms))


async def _count_unexpired(connection: Connection, keys: Iterable[str], now: int) -> list[int]:
    """How many members of each sorted set expire later than now. The others wait for a process to sweep them."""
    # In one turn of the event loop, these go out in one write.
    counts = await asyncio.gather(*[connection.execute("ZCOUNT", key, f"({now}", "+inf") for key in keys])
    return [as_int(count) for count in counts]


async def _sessions(connection: Connection, prefix: str) -> Sessions:
    """All of them if there are few keys, else their share of the first keys times all. SCAN returns keys in the
    order of their hashes, so the first ones are as good a sample as any."""
    session = f"{prefix}session:{{".encode()
    cursor, looked_at, sessions = b"0", 0, 0
    while looked_at < SAMPLE:
        next_cursor, keys = as_list(await connection.execute("SCAN", cursor, "COUNT", KEYS_PER_SCAN))
        cursor, found = as_bytes(next_cursor), as_bytes_list(keys)
        looked_at += len(found)
        own = [key for key in found if key.startswith(session)]
        sessions += sum(b"}:user:" not in key and b"}:row:" not in key for key in own)
        if cursor == b"0":
            return Sessions(sessions, is_exact=True)
    total = as_int(await connection.execute("DBSIZE"))
    return Sessions(round(sessions / looked_at * total), is_exact=False)


# Since the last poll: None without two answers


def messages_per_second(stored: Poller[StoredFigures]) -> float | None:
    return stored.rate(lambda figures: figures.rows["messages"].inserted)


def commits_per_second(stored: Poller[StoredFigures]) -> float | None:
    return stored.rate(lambda figures: figures.server.commits)


def block_hits(stored: Poller[StoredFigures]) -> float | None:
    """The share of the blocks read that were in PostgreSQL's cache. None if none was read."""
    found = stored.growth(lambda figures: figures.server.blocks_found)
    return _share(found, stored.growth(lambda figures: figures.server.blocks_read))


def commands_per_second(live: Poller[LiveFigures]) -> float | None:
    return live.rate(*_of_info("total_commands_processed"))


def key_hits(live: Poller[LiveFigures]) -> float | None:
    """The share of the keys looked up that Redis had. None if none was looked up."""
    return _share(live.growth(*_of_info("keyspace_hits")), live.growth(*_of_info("keyspace_misses")))


def _of_info(field: str) -> tuple[Callable[[LiveFigures], int], Callable[[LiveFigures], int]]:
    """A figure of INFO, for `Poller.growth` and `Poller.rate`: the later and the earlier one."""
    return lambda figures: figures.server.number(field), lambda figures: figures.afterwards.number(field)


def _share(found: int | None, missed: int | None) -> float | None:
    return None if found is None or missed is None or not found + missed else found / (found + missed)
