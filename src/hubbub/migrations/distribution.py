"""Distributes rooms over the nodes of Citus, in steps that can be repeated.

    plain --drop keys, rules and a trigger--> tables are distributed --foreign keys, functions--> distributed

Each step has a probe: a query for whether the step is done. A step is a transaction of its own, so a run that was
killed is completed by the next one. Rooms and all that belongs to one are distributed by the room. `users` and
`hubbub_deletions` are copied to each node. The other tables stay on the coordinator.

Where rooms are distributed, only a key with the room can be unique or referred to, a table has no trigger, and
each node has transaction ids of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

import msgspec

from hubbub.errors import HubbubError, Invalid, SchemaMismatch, Unavailable
from hubbub.migrations.revisions import HEAD, verify
from hubbub.migrations.runner import Session, Timeouts, milliseconds, take_lock
from hubbub.postgres import TABLES, Executor, OpenTransaction, Statement, connect
from hubbub.postgres.connection import Connection
from hubbub.postgres.errors import FAILURES, first_line, to_error
from hubbub.postgres.statement import DIGEST_DIGITS, functions
from hubbub.settings import PostgresSettings

ROOM_OF: Final = {
    "rooms": "id",
    "room_users": "room_id",
    "messages": "room_id",
    "room_events": "room_id",
    "message_read_receipts": "room_id",
}
"""The tables that are distributed, each with the column of the room."""

REFERENCE: Final = ("users", "hubbub_deletions")
"""The tables that each node has a copy of."""

# In place of the trigger of rooms, which a distributed table cannot have.
RULES: Final = {
    "rooms_name_check": r"""(name COLLATE "C") ~ '\S'""",
    "rooms_description_check": "char_length(description) <= 4000",
    "rooms_direct_key_check": "direct_key IS NULL OR (octet_length(direct_key) = 32 AND is_private)",
    "rooms_metadata_check": "jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 65536",
}

FOREIGN_KEYS: Final = {
    ("rooms", "rooms_created_by_fkey"): "FOREIGN KEY (created_by) REFERENCES users (id) ON DELETE SET NULL",
    ("room_users", "room_users_room_id_fkey"): "FOREIGN KEY (room_id) REFERENCES rooms (id) ON DELETE CASCADE",
    # One server looks for memberships when it deletes an account. Here a join may be in flight on a node.
    ("room_users", "room_users_user_id_fkey"): "FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE NO ACTION",
    ("messages", "messages_room_id_fkey"): "FOREIGN KEY (room_id) REFERENCES rooms (id) ON DELETE CASCADE",
    ("messages", "messages_user_id_fkey"): "FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL",
    ("room_events", "room_events_room_id_fkey"): "FOREIGN KEY (room_id) REFERENCES rooms (id) ON DELETE CASCADE",
    ("message_read_receipts", "message_read_receipts_message_id_fkey"): (
        "FOREIGN KEY (room_id, message_id) REFERENCES messages (room_id, id) ON DELETE CASCADE"
    ),
    ("message_read_receipts", "message_read_receipts_user_id_fkey"): (
        "FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE"
    ),
    ("hubbub_sessions", "hubbub_sessions_user_id_fkey"): (
        "FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE"
    ),
}
"""The foreign keys that are dropped and added again. `room_users_last_read_message_id_fkey` is only dropped: with
the room in it, it would set a part of its columns to NULL, which Citus refuses."""

_KEYS: Final = {
    ("messages", "messages_pkey"): "PRIMARY KEY (room_id, id)",
    ("message_read_receipts", "message_read_receipts_pkey"): "PRIMARY KEY (room_id, message_id, user_id)",
}
_INDEXES: Final = {
    "idx_rooms_direct_key": "rooms (direct_key) WHERE direct_key IS NOT NULL",
    "idx_messages_id": "messages (id)",
}
"""For statements that do not know the room."""

SHARDS: Final = range(1, 1025)
MIN_SHARDS: Final = 8
SHARDS_PER_NODE: Final = 4
"""By default. A list asks each shard, and a shard can move to a further node."""

_ACTIONS: Final = {"CASCADE": "c", "SET NULL": "n", "NO ACTION": "a"}
"""The action for a row that refers to a deleted one, in the words of SQL and of the catalog."""


class Step(NamedTuple):
    """A step: what it does, in words; the tables that it locks; its SQL; and the SQL of its probe."""

    title: str
    locks: str
    sql: str
    probe: str
    is_beginning: bool = False
    """Whether the probe is true only once distribution has begun."""
    needs_no_writers: bool = True
    is_optional: bool = False
    """Whether hubbub starts without it."""


class Plan(msgspec.Struct, frozen=True):
    """The steps that are left, of how many, and the nodes that get rooms."""

    left: tuple[Step, ...]
    steps: int
    nodes: int


_HAS_CITUS: Final = Statement(
    "migrations.has_citus", bool, "SELECT to_regclass('pg_dist_partition') IS NOT NULL AS has_citus"
)

# Sessions of hubbub's processes, and those of others with a change of its tables that is not committed.
_WRITERS: Final = Statement(
    "migrations.writers",
    str,
    """
    SELECT DISTINCT COALESCE(NULLIF(application_name, ''), usename::text, 'a session') AS name
    FROM pg_stat_activity
    WHERE datname = current_database()
        AND COALESCE(backend_type, 'client backend') = 'client backend'
        AND usesysid IS NOT NULL  -- an autovacuum worker has none, and the owner may not read its backend_type
        AND pid <> pg_backend_pid()
        AND (
            application_name = 'hubbub'
            OR EXISTS (
                SELECT 1
                FROM pg_locks
                JOIN pg_class ON pg_class.oid = pg_locks.relation
                WHERE pg_locks.pid = pg_stat_activity.pid
                    AND pg_locks.database = pg_stat_activity.datid
                    AND pg_locks.mode <> 'AccessShareLock'
                    AND pg_class.relname = ANY ($1)
                    AND pg_class.relnamespace = to_regnamespace(current_schema())
            )
        )
    ORDER BY name
    """,
)

_REFERRING: Final = Statement(
    "migrations.referring_tables",
    str,
    """
    SELECT DISTINCT conrelid::regclass::text AS name
    FROM pg_constraint
    JOIN pg_class AS referred ON referred.oid = confrelid
    JOIN pg_class AS referring ON referring.oid = conrelid
    WHERE contype = 'f'
        AND conparentid = 0
        AND referred.relname = ANY ($1)
        AND referred.relnamespace = to_regnamespace(current_schema())
        AND NOT (referring.relname = ANY ($2) AND referring.relnamespace = referred.relnamespace)
    ORDER BY name
    """,
)

# The parts of the schema that Citus refuses, once the keys of hubbub have given way: triggers, and uniqueness
# without the room.
_OBSTACLES: Final = Statement(
    "migrations.obstacles",
    str,
    """
    SELECT format('the trigger %s of %s', tgname, relname) AS name
    FROM pg_trigger
    JOIN pg_class ON pg_class.oid = tgrelid
    WHERE NOT tgisinternal
        AND tgname <> 'hubbub_check_room'
        AND relname = ANY ($1::text[] || $3::text[])
        AND relnamespace = to_regnamespace(current_schema())
    UNION ALL
    SELECT format('the unique index %s of %s', indexes.relname, tables.relname)
    FROM pg_index
    JOIN pg_class AS indexes ON indexes.oid = indexrelid
    JOIN pg_class AS tables ON tables.oid = indrelid
    JOIN unnest($1::text[], $2::text[]) AS own (relname, room) ON own.relname = tables.relname
    JOIN pg_attribute ON attrelid = indrelid AND attname = own.room
    WHERE (indisunique OR indisexclusion)
        AND attnum <> ALL (indkey)
        AND indexes.relname <> ALL ($4)
        AND tables.relnamespace = to_regnamespace(current_schema())
    ORDER BY name
    """,
)


def steps(schema: str, shards: int = MIN_SHARDS) -> list[Step]:
    """All steps, in their order. Their tables are found by the search path, and by their probes in `schema`."""
    beginning = [step._replace(is_beginning=True) for step in (*_remove(schema), *_distribute(schema, shards))]
    return [_show_shards(), *beginning, *_restore(schema), *_make_functions(schema)]


def _table(schema: str, table: str) -> str:
    return f"'{schema}.{table}'::regclass"


def _has(schema: str, table: str, constraint: str, *conditions: str) -> str:
    found = (f"conrelid = {_table(schema, table)}", f"conname = '{constraint}'", *conditions)
    return f"EXISTS (SELECT FROM pg_constraint WHERE {' AND '.join(found)})"


def _begins_with(definition: str) -> str:
    return f"pg_get_constraintdef(oid) LIKE '{definition}%'"


def _refers(schema: str, table: str, constraint: str, key: str) -> str:
    """Whether the foreign key is there, with its columns and with what it does on a deletion."""
    columns, _, rest = key.partition(" REFERENCES ")
    action = _ACTIONS[rest.partition(" ON DELETE ")[2]]
    return _has(schema, table, constraint, _begins_with(columns), f"confdeltype = '{action}'")


def _referred(key: str) -> str:
    return key.partition(" REFERENCES ")[2].partition(" ")[0]


def _is_distributed(schema: str, table: str) -> str:
    method = "n" if table in REFERENCE else "h"
    return (
        f"EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = {_table(schema, table)} "
        f"AND partmethod = '{method}')"
    )


# Of the database: a session that began before the setting, and that a pooler keeps, does not show it.
_SHOWS_SHARDS: Final = """EXISTS (
    SELECT FROM pg_db_role_setting
    JOIN pg_database ON pg_database.oid = setdatabase
    CROSS JOIN unnest(setconfig) AS setting
    WHERE datname = current_database()
        AND setrole = 0
        AND setting ~ '^citus[.]show_shards_for_app_name_prefixes=.'
)"""


def _show_shards() -> Step:
    # To hide them, Citus adds a filter to each query of pg_class. With it, asyncpg takes a second or more per
    # connection to look up a type.
    return Step(
        "show shards to sessions of hubbub, as hiding them makes new connections slow",
        "no table",
        """
        DO $$
        BEGIN
            EXECUTE format(
                'ALTER DATABASE %I SET citus.show_shards_for_app_name_prefixes TO hubbub', current_database()
            );
        END
        $$
        """,
        _SHOWS_SHARDS,
        needs_no_writers=False,
        is_optional=True,
    )


def _remove(schema: str) -> Iterator[Step]:
    """The steps that remove or replace the parts of the schema that Citus refuses."""
    for name, rule in RULES.items():
        sql = f"ALTER TABLE rooms ADD CONSTRAINT {name} CHECK ({rule})"
        yield Step(f"add {name}, in place of a trigger", "rooms", sql, _has(schema, "rooms", name))
    trigger = f"tgrelid = {_table(schema, 'rooms')} AND tgname = 'hubbub_check_room'"
    gone = f"NOT EXISTS (SELECT FROM pg_trigger WHERE {trigger})"
    yield Step("drop the trigger of rooms", "rooms", "DROP TRIGGER hubbub_check_room ON rooms", gone)
    for table, name, locks in (
        ("rooms", "rooms_direct_key_key", "rooms"),
        ("room_users", "room_users_last_read_message_id_fkey", "room_users, messages"),
    ):
        sql = f"ALTER TABLE {table} DROP CONSTRAINT {name}"
        yield Step(f"drop {name}", locks, sql, f"NOT {_has(schema, table, name)}")
    for (table, name), key in FOREIGN_KEYS.items():
        # Some are added again afterwards.
        distributed = _is_distributed(schema, "users" if table == "hubbub_sessions" else table)
        comes_back = f"{distributed} AND {_refers(schema, table, name, key)}"
        probe = f"(({comes_back}) OR NOT {_has(schema, table, name)})"
        sql = f"ALTER TABLE {table} DROP CONSTRAINT {name}"
        yield Step(f"drop {name}", f"{table}, {_referred(key)}", sql, probe)
    for (table, name), key in _KEYS.items():
        sql = f"ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {key}"
        yield Step(f"make {name} {key}", table, sql, _has(schema, table, name, _begins_with(key)))
    for name, on in _INDEXES.items():
        probe = f"to_regclass('{schema}.{name}') IS NOT NULL"
        yield Step(f"make {name}", on.partition(" ")[0], f"CREATE INDEX {name} ON {on}", probe)
    for table in ("messages", "room_events"):
        probe = (
            "NOT EXISTS (SELECT FROM pg_attrdef JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum "
            f"WHERE adrelid = {_table(schema, table)} AND attname = 'transaction_id')"
        )
        sql = f"ALTER TABLE {table} ALTER COLUMN transaction_id DROP DEFAULT"
        yield Step(f"stop filling transaction_id of {table}, which only `hub.changes` uses", table, sql, probe)


_COPIED: Final = "in place of is_online and last_seen of users"


def _distribute(schema: str, shards: int) -> Iterator[Step]:
    # A change of an account goes to all nodes, and presence changes often.
    sql = (
        "INSERT INTO hubbub_presence (user_id, is_online, last_seen) "  # noqa: S608 - a constant of ours
        "SELECT id, is_online, last_seen FROM users WHERE last_seen IS NOT NULL ON CONFLICT DO NOTHING; "
        f"COMMENT ON TABLE hubbub_presence IS '{_COPIED}'"
    )
    probe = f"obj_description({_table(schema, 'hubbub_presence')}, 'pg_class') IS NOT DISTINCT FROM '{_COPIED}'"
    yield Step("copy presence to a table of the coordinator", "hubbub_presence", sql, probe)
    for table in REFERENCE:
        sql = f"SELECT create_reference_table('{table}')"
        yield Step(f"copy {table} to each node", table, sql, _is_distributed(schema, table))
    for table, column in ROOM_OF.items():
        # Not beside tables of the application that have as many shards: these could not move without rooms.
        of_rooms = f", colocate_with := 'none', shard_count := {shards}"
        with_rooms = of_rooms if table == "rooms" else ", colocate_with := 'rooms'"
        sql = f"SELECT create_distributed_table('{table}', '{column}'{with_rooms})"
        yield Step(f"distribute {table} by {column}", table, sql, _is_distributed(schema, table))


def _restore(schema: str) -> Iterator[Step]:
    # The coordinator keeps its former rows out of sight, and a later migration would fail on them.
    for table in (*reversed(ROOM_OF), *REFERENCE):
        sql = f"SELECT truncate_local_data_after_distributing_table('{table}')"
        probe = f"pg_relation_size({_table(schema, table)}) = 0"
        yield Step(f"delete the rows of {table} that were copied", table, sql, probe)
    for (table, name), key in FOREIGN_KEYS.items():
        title = f"add {name}"
        if table not in ROOM_OF:
            title += f", with which {table} becomes a table that Citus manages"
        sql = f"ALTER TABLE {table} ADD CONSTRAINT {name} {key}"
        yield Step(title, f"{table}, {_referred(key)}", sql, _refers(schema, table, name, key))


def _make_functions(schema: str) -> Iterator[Step]:
    for name, definition in functions().values():
        found = f"proname = '{name}' AND pronamespace = '{schema}'::regnamespace"
        in_schema = f" LANGUAGE plpgsql SET search_path = {schema}, pg_temp "
        sql = f"CREATE OR REPLACE FUNCTION {name}{definition.replace(' LANGUAGE plpgsql ', in_schema)}"
        probe = f"EXISTS (SELECT FROM pg_proc WHERE {found})"
        yield Step(f"make {name}", "no table", sql, probe, needs_no_writers=False)
        sql = (
            "SELECT create_distributed_function(oid::regprocedure, 'room', colocate_with := 'rooms') "  # noqa: S608 - names of ours
            f"FROM pg_proc WHERE {found}"
        )
        probe = (
            "EXISTS (SELECT FROM pg_dist_object JOIN pg_proc ON pg_proc.oid = pg_dist_object.objid "
            f"WHERE classid = 'pg_proc'::regclass AND distribution_argument_index IS NOT NULL AND {found})"
        )
        yield Step(f"run {name} on the node of its room", "no table", sql, probe, needs_no_writers=False)


async def is_begun(executor: Executor) -> bool:
    """Whether tables are distributed, at any revision."""
    if not await executor.fetch_one(_HAS_CITUS):
        return False
    sql = """
    SELECT EXISTS (
        SELECT 1
        FROM pg_dist_partition
        JOIN pg_class ON pg_class.oid = logicalrelid
        WHERE relname IN ('rooms', 'users')
            AND relnamespace = to_regnamespace(current_schema())
    ) AS is_begun
    """
    return bool(await executor.fetch_one(Statement("migrations.is_begun", bool, sql)))


async def is_distributed(executor: Executor, schema: str) -> bool:
    """Whether rooms are distributed. Raises: SchemaMismatch (partly, or without the functions of this version)."""
    if not await executor.fetch_one(_HAS_CITUS):
        return False
    all_steps = [step for step in steps(schema) if not step.is_optional]
    done = await _done(executor, all_steps)
    if all(done):
        return True
    if any(is_done for step, is_done in zip(all_steps, done, strict=True) if step.is_beginning):
        raise SchemaMismatch(f"{HEAD}, partly distributed", HEAD, "run `hubbub distribute`")
    return False


async def was_distributed(executor: Executor, schema: str) -> bool:
    """Whether a distribution has begun, for a process that was started before."""
    try:
        return await is_distributed(executor, schema)
    except SchemaMismatch:
        return True


async def shows_shards(executor: Executor) -> bool:
    """Whether new sessions of hubbub see shards."""
    statement = Statement("migrations.shows_shards", bool, f"SELECT {_SHOWS_SHARDS} AS shows_shards")
    return bool(await executor.fetch_one(statement))


async def _done(executor: Executor, all_steps: list[Step]) -> list[bool]:
    probes = ", ".join(step.probe for step in all_steps)
    statement = Statement("migrations.distributed", lambda done: done, f"SELECT ARRAY[{probes}] AS done")
    found: list[bool] | None = await executor.fetch_one(statement)
    return found or []


async def plan(settings: PostgresSettings, shards: int | None = None, *, timeouts: Timeouts | None = None) -> Plan:
    """The steps that are left. Changes nothing, and keeps other migrations waiting meanwhile.

    It waits for the end of another run or migration, for `timeouts.migration_lock_seconds`. A run that
    was killed ends with the step that the server carries out, which may take minutes.
    Raises: Invalid (the database has no Citus with nodes, or something of an application stands in the way),
    SchemaMismatch (to be migrated first), Unavailable.
    """
    async with _locked(settings, timeouts or Timeouts()) as (_, session):
        return await _plan(session, settings, shards)


async def distribute(
    settings: PostgresSettings,
    *,
    shards: int | None = None,
    timeouts: Timeouts | None = None,
    done: Callable[[Step], None] = lambda _: None,
) -> None:
    """Take the steps that are left, one by one. `done` is called after each.

    `shards` is into how many parts the rooms are divided: by default four per node, and at least eight. It counts
    until rooms are distributed. A run that was interrupted is completed by the next call. No process of the
    application may be connected, unless all that is left is to show shards and to make functions of another
    version of hubbub.
    Raises: as `plan`, and Invalid (sessions may write), Unavailable (also if a lock is refused).
    """
    async with _locked(settings, timeouts or Timeouts()) as (connection, session):
        for step in (await _plan(session, settings, shards)).left:
            async with session() as executor:
                if step.needs_no_writers:
                    await _refuse_writers(executor)
                if all(await _done(executor, [step])):
                    continue
            try:
                await connection.execute(step.sql)
            except FAILURES as error:
                raise _error_for(error, step, lost=connection.is_closed()) from error
            done(step)


@asynccontextmanager
async def _locked(settings: PostgresSettings, timeouts: Timeouts) -> AsyncIterator[tuple[Connection, Session]]:
    """A connection that holds the lock of migrations, and its transactions."""
    server_settings = {
        "application_name": "hubbub distribute",
        "search_path": settings.schema,
        "lock_timeout": milliseconds(timeouts.lock_timeout_seconds),
        "statement_timeout": "0",  # the rows of a large table take as long as they take
        "idle_session_timeout": "0",
    }
    connection = await connect(settings, server_settings=server_settings)
    session = partial(OpenTransaction.begin, connection, settings.deadline_seconds)
    try:
        await take_lock(session, timeouts.migration_lock_seconds)
        yield connection, session
    finally:
        connection.terminate()


async def _plan(session: Session, settings: PostgresSettings, shards: int | None) -> Plan:
    if shards is not None and shards not in SHARDS:
        raise Invalid("shards", f"must be from {SHARDS[0]} to {SHARDS[-1]}")
    async with session() as executor:
        await verify(executor)
        if not await executor.fetch_one(_HAS_CITUS):
            raise Invalid(
                "database", "has no Citus: CREATE EXTENSION citus, on the coordinator and on each worker"
            )
        nodes = await _count_nodes(executor)
        rooms, columns = list(ROOM_OF), list(ROOM_OF.values())
        replaced = [name for _, name in _KEYS] + ["rooms_direct_key_key"]
        if obstacles := await executor.fetch_all(_OBSTACLES, rooms, columns, list(REFERENCE), replaced):
            reason = f"Citus does not take {', '.join(obstacles)}: drop what is not hubbub's first"
            raise Invalid("database", reason)
        own = [*ROOM_OF, *(table for table in TABLES if table not in ROOM_OF)]
        if referring := await executor.fetch_all(_REFERRING, [*ROOM_OF, "hubbub_deletions"], own):
            reason = f"the tables {', '.join(referring)} refer to rooms, by foreign keys: drop these first"
            raise Invalid("database", reason)
        to_users = await executor.fetch_all(_REFERRING, ["users"], own)
        all_steps = [
            step._replace(locks=", ".join((step.locks, *to_users))) if step.locks == "users" else step
            for step in steps(settings.schema, shards or max(MIN_SHARDS, SHARDS_PER_NODE * nodes))
        ]
        done = await _done(executor, all_steps)
    pairs = list(zip(all_steps, done, strict=True))
    # The keys that come back are there until a step drops them.
    drops = any(step.is_beginning and not is_done for step, is_done in pairs)
    left = tuple(step for step, is_done in pairs if not is_done or (drops and not step.is_beginning))
    return Plan(left, len(all_steps), nodes)


async def _count_nodes(executor: Executor) -> int:
    sql = """
    SELECT
        count(*) FILTER (WHERE isactive AND shouldhaveshards) AS nodes,
        count(*) FILTER (WHERE groupid = 0) > 0 AS has_coordinator
    FROM pg_dist_node
    """
    statement = Statement("migrations.nodes", lambda nodes, has_coordinator: (nodes, has_coordinator), sql)
    nodes, has_coordinator = await executor.fetch_one(statement) or (0, False)
    if not nodes:
        raise Invalid("database", "has no node for rooms: SELECT citus_add_node(host, port) for each worker")
    if not has_coordinator:
        raise Invalid("database", "does not know its coordinator: SELECT citus_set_coordinator_host(host, port)")
    return int(nodes)


async def _refuse_writers(executor: Executor) -> None:
    if writers := await executor.fetch_all(_WRITERS, list(TABLES)):
        reason = (
            f"sessions are connected that may write ({', '.join(writers)}): stop the application first. "
            "A pooler keeps sessions for a while: restart it, or wait for its server_idle_timeout"
        )
        raise Invalid("database", reason)


def _error_for(error: Exception, step: Step, *, lost: bool) -> HubbubError:
    known = to_error(error, writes=True, lost=lost)
    if isinstance(known, Unavailable) and known.retryable:
        return Unavailable("postgresql", f"to {step.title}: {known.reason}; call it again to continue")
    return Unavailable("postgresql", f"could not {step.title}: {first_line(error)}", retryable=False)


async def drop_former_functions(settings: PostgresSettings, *, timeouts: Timeouts | None = None) -> list[str]:
    """Drop the functions of other versions of hubbub, and return their names with their parameters.

    Raises: Invalid (rooms are not distributed, or sessions may write: one of them may call such a function),
    SchemaMismatch (not completely distributed), Unavailable.
    """
    async with _locked(settings, timeouts or Timeouts()) as (connection, session):
        async with session() as executor:
            await verify(executor)
            if not await is_distributed(executor, settings.schema):
                raise Invalid("database", "has no rooms that are distributed")
            await _refuse_writers(executor)
            former = await _former_functions(executor)
        for function in former:
            try:
                await connection.execute(f"DROP FUNCTION IF EXISTS {function}")
            except FAILURES as error:
                raise Unavailable("postgresql", f"could not drop {function}: {first_line(error)}") from error
    return former


async def _former_functions(executor: Executor) -> list[str]:
    """The functions that Citus runs on the node of a room, and those that a run was killed over."""
    sql = """
    SELECT pg_proc.oid::regprocedure::text AS name
    FROM pg_proc
    WHERE pronamespace = to_regnamespace(current_schema())
        AND starts_with(proname, 'hubbub_')
        AND proname <> ALL ($1)
        AND (
            proname ~ $2
            OR EXISTS (
                SELECT 1
                FROM pg_dist_object
                WHERE classid = 'pg_proc'::regclass
                    AND objid = pg_proc.oid
                    AND distribution_argument_index IS NOT NULL
            )
        )
    ORDER BY name
    """
    statement = Statement("migrations.former_functions", str, sql)
    names = [function.name for function in functions().values()]
    return await executor.fetch_all(statement, names, f"_[0-9a-f]{{{DIGEST_DIGITS}}}$")
