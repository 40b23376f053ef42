"""Migrates a database from one revision to another, one process at a time and without blocking the application.

    session with the lock:   connect ──> poll the advisory lock ──────────────── held ───────────────> close
    session per revision:                                        connect ──> statements ──> terminate
                                                                    ^                           │
                                                                    └── pause <── lock refused ─┘

Each revision has a connection of its own that is terminated at its end: whatever was not committed is undone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from uuid import UUID

from hubbub import inputs
from hubbub.background import jittered
from hubbub.errors import Conflict, HubbubError, Invalid, Unavailable
from hubbub.migrations.revisions import (
    BUILD_LOCK_TIMEOUT,
    COMMANDS_TO_GIVE,
    GIVE_TO_OWNER,
    KEYS,
    REVISIONS,
    USUAL_LOCK_TIMEOUT,
    Direction,
    Index,
    Refusal,
    current_revision,
    refuse_foreign_tables,
    steps,
    verify,
)
from hubbub.postgres import TABLES, Executor, OpenTransaction, Statement, connect
from hubbub.postgres.connection import Connection, now
from hubbub.postgres.errors import FAILURES, UNIQUE_CONSTRAINTS, first_line, to_error
from hubbub.settings import PostgresSettings

logger = logging.getLogger("hubbub.migrations")

# "hubbub" in ASCII. PostgreSQL keeps the advisory locks of each database apart, so the key need not name it. A
# name would not even do, because two names may lead to one database.
LOCK_KEY = 0x687562627562

TRY_LOCK = Statement("migrations.try_lock", bool, "SELECT pg_try_advisory_lock($1) AS taken")

SCHEMA_EXISTS = Statement(
    "migrations.schema_exists", bool, "SELECT to_regnamespace($1) IS NOT NULL AS schema_exists"
)

TO_GIVE = Statement("migrations.to_give", str, COMMANDS_TO_GIVE)

ENCODING = Statement("migrations.encoding", str, "SELECT current_setting('server_encoding') AS encoding")

# A name that was changed since it was read is found again by the next batch, or by the next run.
STORE_KEYS = """
    UPDATE users
    SET username_key = keyed.key,
        username_key_of = keyed.username
    FROM unnest($1::uuid[], $2::text[], $3::text[]) AS keyed (id, username, key)
    WHERE users.id = keyed.id
        AND users.username = keyed.username
"""
KEYS_PER_STATEMENT = 1_000

INDEX_IS_COMPLETE = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"

# Each attempt is one short statement, so at this pause twenty waiting processes send about twenty per second.
MAX_LOCK_PAUSE_SECONDS = 1.0
# Each attempt may block the application for the lock timeout of 2 s. This leaves it more than half of the time.
MAX_RETRY_PAUSE_SECONDS = 5.0
# A server that does not confirm the end of a session in this time is left without its answer.
CLOSE_SECONDS = 1.0

UNIQUE_VIOLATION = "23505"
LOCKS_REFUSED = {"55P03", "40P01"}  # lock_not_available, deadlock_detected
# "tuple concurrently updated": seen when the server still builds an index for a run that was killed, and finishes
# in the instant in which the next run drops it.
INTERNAL_ERROR = "XX000"

Session = Callable[[], AbstractAsyncContextManager[Executor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a migration waits for other sessions, and makes them wait. All in seconds.

    `lock_timeout_seconds`: how long a statement waits for the lock on a table. Statements of the application queue
    behind it meanwhile, so this is also the longest that a waiting migration blocks them.
    `retry_seconds`: how long a revision is retried after its first lock timeout, with growing pauses.
    `migration_lock_seconds`: how long to wait while another process migrates the same database.
    """

    lock_timeout_seconds: float = 2
    retry_seconds: float = 60
    migration_lock_seconds: float = 600


async def migrate(
    settings: PostgresSettings,
    direction: Direction,
    plan: Callable[[str | None], tuple[str, ...]],
    timeouts: Timeouts,
) -> list[str]:
    """Apply or undo the revisions that `plan` returns for the current one, one by one. Returns them."""
    async with session(settings) as transaction:
        async with transaction() as executor:
            if direction == "up":
                await _refuse_encoding(executor)
            current = await current_revision(executor)
            is_complete = not plan(current)
            is_owned = direction == "down" or current not in REVISIONS or not await executor.fetch_all(TO_GIVE)
        if is_complete and direction == "up" and current in REVISIONS and current >= KEYS:
            await _compute_missing_keys(settings)
        if is_complete and is_owned:
            return []
        await take_lock(transaction, timeouts.migration_lock_seconds)
        async with transaction() as executor:
            revisions = plan(current := await current_revision(executor))
            if current is None:
                await refuse_foreign_tables(executor, settings.schema)
                await _make_schema(executor, settings.schema)
        for revision in revisions:
            await _run(settings, partial(_apply, direction, revision), f"revision {revision}", timeouts)
        if direction == "up":
            await _run(settings, lambda one: one.execute(GIVE_TO_OWNER), "the change of owners", timeouts)
    return list(revisions)


async def move(settings: PostgresSettings, schema: str, timeouts: Timeouts) -> None:
    """Move the tables to another schema, in one transaction, with their rows, indexes and rights."""
    target = replace(settings, schema=schema)
    async with session(settings) as transaction:
        await take_lock(transaction, timeouts.migration_lock_seconds)
        async with session(target) as transaction_in_target, transaction_in_target() as executor:
            await refuse_foreign_tables(executor, schema)
        async with transaction() as executor:
            await verify(executor)
            await _execute(executor, f"SET LOCAL lock_timeout = {milliseconds(timeouts.lock_timeout_seconds)}")
            await _make_schema(executor, schema)
            for table in TABLES:
                await _execute(executor, f"ALTER TABLE {settings.schema}.{table} SET SCHEMA {schema}")
            await _execute(executor, f"ALTER FUNCTION {settings.schema}.hubbub_check_room() SET SCHEMA {schema}")


async def _make_schema(executor: Executor, schema: str) -> None:
    # IF NOT EXISTS would ask for the right to create one in the database also where it exists.
    if not await executor.fetch_one(SCHEMA_EXISTS, schema):
        await _execute(executor, f"CREATE SCHEMA {schema}")


async def _execute(executor: Executor, sql: str) -> None:
    await executor.execute(Statement("migrations.schema", int, sql))


@asynccontextmanager
async def session(settings: PostgresSettings) -> AsyncIterator[Session]:
    """One connection for the block. Each call of what it yields is one transaction on it."""
    # It is idle while a long revision runs on another connection. A policy against idle sessions must not end it,
    # and the lock with it.
    connection = await connect(settings, server_settings={"idle_session_timeout": "0"})
    try:
        yield partial(OpenTransaction.begin, connection, settings.deadline_seconds)
        with suppress(TimeoutError, OSError):
            await connection.close(timeout=CLOSE_SECONDS)
    finally:
        connection.terminate()


async def take_lock(session: Session, within_seconds: float) -> None:
    """Take the migration lock of the database. It is held until the session ends, however that ends.

    The lock is polled. A statement that waits for it would hold a snapshot, and CREATE INDEX CONCURRENTLY in the
    process that has the lock waits for every snapshot older than its index. A warning says once that it waits.
    Raises: Unavailable (other processes held it for `within_seconds`).
    """
    if await _has_taken_lock(session):
        return
    logger.warning("waiting for another `hubbub migrate` or `hubbub distribute`, or the step of a killed one")
    deadline = now() + within_seconds
    pause = 0.05
    while now() + pause <= deadline:
        pause = await _sleep(pause, MAX_LOCK_PAUSE_SECONDS)
        if await _has_taken_lock(session):
            return
    raise Unavailable("postgresql", f"other processes were migrating it for {within_seconds:g} s")


async def _has_taken_lock(session: Session) -> bool:
    async with session() as executor:
        return bool(await executor.fetch_one(TRY_LOCK, LOCK_KEY))


async def _run(
    settings: PostgresSettings, change: Callable[[Connection], Awaitable[object]], name: str, timeouts: Timeouts
) -> None:
    """Make one change, again where a transaction of the application holds a lock that it needs."""
    server_settings = {
        "search_path": settings.schema,
        "lock_timeout": milliseconds(timeouts.lock_timeout_seconds),
        "statement_timeout": "0",  # an index of a large table takes as long as it takes
        "idle_in_transaction_session_timeout": "0",
    }
    deadline = None
    pause = 0.1
    while True:
        connection = await connect(settings, server_settings=server_settings)
        try:
            await change(connection)
        except FAILURES as error:
            deadline = deadline or now() + timeouts.retry_seconds
            if _sqlstate(error) not in {*LOCKS_REFUSED, INTERNAL_ERROR} or now() + pause > deadline:
                raise _error_for(error, name, timeouts, lost=connection.is_closed()) from error
        else:
            return
        finally:
            connection.terminate()
        pause = await _sleep(pause, MAX_RETRY_PAUSE_SECONDS)


def milliseconds(seconds: float) -> str:
    return str(max(round(seconds * 1000), 1))  # 0 would mean no limit


async def _apply(direction: Direction, revision: str, connection: Connection) -> None:
    """Apply or undo one revision."""
    for step in steps(direction, revision):
        if step.refusal:
            await _refuse_rows(connection, step.refusal, step.sql)
        elif step.computes_keys:
            await _compute_keys(connection, step.sql)
        elif step.index:
            await _build_index(connection, step.index, step.sql)
        else:
            tag = await connection.execute(step.sql)
            if step.sets_revision and not tag.endswith(" 1"):
                reason = f"revision {revision}: the version table was changed by another session"
                raise Unavailable("postgresql", reason)


async def _refuse_rows(connection: Connection, refusal: Refusal, query: str) -> None:
    """Raises: Invalid (there are rows that the new schema cannot hold; their owner has to change them)."""
    count = await connection.fetchval(f"SELECT count(*) FROM ({query}) AS refused")
    if count:
        on_one_line = " ".join(query.split())
        reason = f"the database holds {refusal.rows} ({count}); find them with: {on_one_line}"
        raise Invalid(refusal.field, reason)


async def _compute_keys(connection: Connection, query: str) -> None:
    """Store the keys of the names that the query finds, in batches that commit on their own.

    Raises: Invalid (names that are the same as the name of another user; they stay as they are).
    """
    # Without such names this reads the table once, in a tenth of the time that pages in the order of the ids take.
    if not await connection.fetchval(f"SELECT EXISTS ({query})"):
        return
    last, taken = None, 0
    page = f"SELECT id, username FROM ({query}) AS found WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2"
    while rows := await connection.fetch(page, last, KEYS_PER_STATEMENT):
        keyed = [(id, name, inputs.stored_key(name)) for id, name in rows]
        if not await _store_keys(connection, keyed):
            taken += [await _store_keys(connection, [one]) for one in keyed].count(False)
        last = rows[-1]["id"]
    if taken:
        reason = f"the database holds usernames that are the name of another user in other letters ({taken})"
        raise Invalid("username", f"{reason}; find them with: {' '.join(query.split())}")


async def _store_keys(connection: Connection, keyed: list[tuple[UUID, str, str | None]]) -> bool:
    """Whether they are stored: False if one of them is the key of another user."""
    try:
        await connection.execute(STORE_KEYS, *zip(*keyed, strict=True))
    except FAILURES as error:
        if _sqlstate(error) != UNIQUE_VIOLATION:
            raise
        return False
    return True


async def _compute_missing_keys(settings: PostgresSettings) -> None:
    """Compute the keys of names that an older version has written, or another program."""
    [step] = [step for step in steps("up", KEYS) if step.computes_keys]
    connection = await connect(
        settings, server_settings={"search_path": settings.schema, "statement_timeout": "0"}
    )
    try:
        await _compute_keys(connection, step.sql)
    finally:
        connection.terminate()


async def _refuse_encoding(executor: Executor) -> None:
    encoding = await executor.fetch_one(ENCODING)
    if encoding != "UTF8":
        remedy = "create another with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        raise Invalid("database", f"has the encoding {encoding}, in which most texts cannot be stored: {remedy}")


async def _build_index(connection: Connection, index: Index, create: str) -> None:
    """Build an index under its provisional name, unless an earlier run completed it.

    The name carries the revision that the database is on its way to, so an index of that name has the same
    definition.
    Raises: Conflict (a duplicate was committed while a unique index was built).
    """
    await connection.execute(BUILD_LOCK_TIMEOUT)
    if not await connection.fetchval(INDEX_IS_COMPLETE, index.building):
        await connection.execute(index.drop)
        try:
            await connection.execute(create)
        except FAILURES as error:
            if _sqlstate(error) != UNIQUE_VIOLATION:
                raise
            # An index that failed on a duplicate would go on refusing new ones.
            await connection.execute(index.drop)
            raise Conflict(UNIQUE_CONSTRAINTS.get(index.name, index.name)) from error
    await connection.execute(USUAL_LOCK_TIMEOUT)


async def _sleep(pause: float, longest: float) -> float:
    """Sleep about `pause` seconds, so that waiting processes spread out. Returns the next, longer pause."""
    await asyncio.sleep(jittered(pause))
    return min(pause * 1.5, longest)


def _sqlstate(error: Exception) -> str | None:
    return getattr(error, "sqlstate", None)


def _error_for(error: Exception, name: str, timeouts: Timeouts, *, lost: bool) -> HubbubError:
    """The error for a failed revision, or another change. The transaction that failed is undone."""
    if _sqlstate(error) in LOCKS_REFUSED:
        reason = f"other transactions held the tables of {name} for {timeouts.retry_seconds:g} s"
        hint = "Nothing is half done: end them (pg_stat_activity has their xact_start), and run the command again"
        return Unavailable("postgresql", f"{reason}. {hint}")
    known = to_error(error, writes=True, lost=lost)
    if known is not None and not isinstance(known, Invalid):  # which would blame an argument of a caller
        return known
    return Unavailable("postgresql", f"{name} failed: {first_line(error)}", retryable=False)


# After a restore into another cluster, whose own transactions begin at 1 again.

WITH_TRANSACTION_IDS: Final = ("messages", "room_events")


def _newest_in(table: str) -> str:
    return f"""
            SELECT {table}.transaction_id
            FROM {table}
            WHERE (get_byte(uuid_send({table}.room_id), 15) & 15) = part.number
                AND {table}.transaction_id IS NOT NULL
            ORDER BY {table}.transaction_id DESC
            LIMIT 1
        """


# NULL if the transactions of this cluster have larger ids than all entries, as they have without a restore.
_OFFSET: Final = Statement(
    "migrations.transaction_id_offset",
    lambda transaction_id_offset: transaction_id_offset,
    f"""
    SELECT max(newest.transaction_id) + 1 AS transaction_id_offset
    FROM generate_series(0, 15) AS part (number)
    CROSS JOIN LATERAL (
        ({_newest_in("messages")})
        UNION ALL
        ({_newest_in("room_events")})
    ) AS newest
    CROSS JOIN hubbub_schema_version
    WHERE newest.transaction_id
        >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint + hubbub_schema_version.transaction_id_offset
    """,
)
_SET_OFFSET: Final = Statement(
    "migrations.set_transaction_id_offset", int, "UPDATE hubbub_schema_version SET transaction_id_offset = $1"
)


async def renumber(settings: PostgresSettings, timeouts: Timeouts) -> bool:
    """Give new entries larger transaction ids than all that were restored. Returns whether it was needed."""
    async with session(settings) as transaction:
        await take_lock(transaction, timeouts.migration_lock_seconds)
        async with transaction() as executor:
            await verify(executor)
            for table in WITH_TRANSACTION_IDS:
                await _execute(executor, f"LOCK TABLE {settings.schema}.{table} IN ACCESS EXCLUSIVE MODE")
            offset = await executor.fetch_one(_OFFSET)
            if offset is None:
                return False
            await executor.execute(_SET_OFFSET, offset)
            for table in WITH_TRANSACTION_IDS:
                default = f"pg_current_xact_id()::text::bigint + {int(offset)}"
                column = f"{settings.schema}.{table} ALTER COLUMN transaction_id"
                await _execute(executor, f"ALTER TABLE {column} SET DEFAULT {default}")
    return True
