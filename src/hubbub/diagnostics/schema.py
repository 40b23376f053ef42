"""The schema in PostgreSQL: its revision, indexes, foreign keys, vacuum, and the plans of hubbub's statements."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, Final, NamedTuple

from hubbub import repositories
from hubbub.diagnostics.report import Check, Result, Skipped, error, warning
from hubbub.errors import SchemaMismatch, Unavailable
from hubbub.migrations import HEAD, TABLES, revisions
from hubbub.migrations.distribution import is_begun, is_distributed, shows_shards
from hubbub.postgres import Executor, Lookup, Statement
from hubbub.settings import PostgresSettings

INDEXES: Final = frozenset(
    (
        *(
            "users_pkey",
            "idx_users_email",
            "idx_users_username",
            "idx_users_external_id",
            "idx_users_display_name",
        ),
        *("rooms_pkey", "idx_rooms_name", "idx_rooms_created_by", "rooms_direct_key_key"),
        *("room_users_pkey", "idx_room_users_user_id", "idx_room_users_last_read_message_id"),
        *("messages_pkey", "idx_messages_room_id", "idx_messages_user_id", "idx_messages_created_at"),
        *("idx_messages_transaction_id", "idx_room_events_transaction_id", "hubbub_consumers_pkey"),
        *("message_read_receipts_pkey", "idx_message_read_receipts_user_id"),
        *("room_events_pkey", "hubbub_imports_pkey", "hubbub_deletions_pkey", "hubbub_schema_version_pkc"),
        *("hubbub_sessions_pkey", "idx_hubbub_sessions_user_id", "idx_hubbub_sessions_ends_at"),
        "hubbub_presence_pkey",
    )
)
"""The indexes of the newest revision. docs/schema.md has their reasons."""

INDEXES_WHERE_DISTRIBUTED: Final = (INDEXES - {"rooms_direct_key_key"}) | {
    "idx_rooms_direct_key",
    "idx_messages_id",
}

NODE_SECONDS: Final = 1
"""The time in which a node of Citus has to accept a connection and to answer. At most half of the deadline."""

DISTRIBUTE: Final = "Run `hubbub distribute`, as the owner of the database and its tables."

UNUSED_SECONDS: Final = 7 * 86_400
"""How old statistics must be to say that an index is never used: a week has every job of an application in it."""

DEAD_ROWS: Final = 10_000
DEAD_SHARE: Final = 0.4
"""Autovacuum starts at 0.2: at twice that it does not keep up."""

LARGE_ROWS: Final = 10_000
LARGE_PAGES: Final = 100
"""From here on no plan of hubbub reads a whole table. For a smaller table that is the fastest plan."""


# One that this version of the server does not have is empty.
_SETTINGS = Statement(
    "doctor.settings",
    str,
    """
    SELECT COALESCE(current_setting(name, true), '') AS setting
    FROM unnest($1::text[]) WITH ORDINALITY AS asked (name, ordinal)
    ORDER BY ordinal
    """,
)


class Postgres(NamedTuple):
    """The subject of the checks: `executor` is a transaction that can only read."""

    executor: Executor
    settings: PostgresSettings
    processes: int
    replicas: Sequence[PostgresSettings] = ()

    async def server_settings(self, *names: str) -> list[str]:
        return await self.executor.fetch_all(_SETTINGS, list(names))


async def _migrations(postgres: Postgres) -> Result:
    found = await revisions.current_revision(postgres.executor)
    if found == HEAD:
        return Result(f"at {HEAD}, none pending")
    if revisions.is_unknown(found):
        meaning = f"The database is at {found}. This version supports revisions up to {HEAD} and does not start."
        return Result(str(found), [error(meaning, "A newer hubbub has migrated it: upgrade hubbub.")])
    pending = revisions.to_apply(found, "head")
    found = found or "no revision"
    meaning = f"The database is at {found}. This version needs {HEAD} and does not start."
    remedy = "Run `hubbub migrate up`, as the owner of the tables."
    return Result(f"{found}, {len(pending)} pending", [error(meaning, remedy)])


async def _need_head(postgres: Postgres) -> None:
    """Raises: Skipped (the database is at another revision than the one that is known here)."""
    if await revisions.current_revision(postgres.executor) != HEAD:
        raise Skipped(f"the database is not at {HEAD}")


async def _distribution(postgres: Postgres) -> Result:
    await _need_head(postgres)
    try:
        if not await is_distributed(postgres.executor, postgres.settings.schema):
            return Result("rooms are on one server")
    except SchemaMismatch:
        meaning = "Rooms are partly distributed over nodes, or by another version. hubbub does not start."
        return Result("incomplete", [error(meaning, DISTRIBUTE)])
    if await shows_shards(postgres.executor):
        return Result("rooms are distributed")
    meaning = "Citus hides shards from sessions of hubbub, so a new connection takes a second or more."
    return Result("rooms are distributed, shards are hidden", [warning(meaning, DISTRIBUTE)])


class Node(NamedTuple):
    host: str
    port: int
    is_active: bool


async def _nodes_of_rooms(postgres: Postgres) -> Result:
    """The nodes of Citus that the coordinator cannot query, as the role of this connection."""
    if not await is_begun(postgres.executor):
        return Result("one server")
    limit = Statement(
        "doctor.limit_statements", str, "SELECT set_config('statement_timeout', $1, true) AS setting"
    )
    milliseconds = round(1000 * min(NODE_SECONDS, postgres.settings.deadline_seconds / 2))
    await postgres.executor.fetch_one(limit, str(milliseconds))
    nodes = Statement(
        "doctor.nodes",
        Node,
        """
        SELECT
            nodename::text AS host,
            nodeport AS port,
            isactive AS is_active
        FROM pg_dist_node
        WHERE groupid <> 0  -- the coordinator
            AND noderole = 'primary'
        ORDER BY nodeid
        """,
    )
    found = await postgres.executor.fetch_all(nodes)
    findings = []
    for node in found:
        if node.is_active and await _answers(postgres.executor, node):
            continue
        meaning = (
            f"The coordinator cannot query the node {node.host}:{node.port} as this role. Calls about its rooms, "
            "and calls that query or change all nodes, raise Unavailable."
        )
        remedy = (
            "Start it, or promote its standby and call citus_update_node. Otherwise look at pg_dist_authinfo, "
            "and call citus_activate_node if it is disabled."
        )
        findings.append(error(meaning, remedy))
    return Result(f"{len(found) - len(findings)} of {len(found)} answer", findings)


async def _answers(executor: Executor, node: Node) -> bool:
    """Each node in a statement of its own, so that one that hangs does not use the time of the others."""
    asked = Statement("doctor.node", bool, "SELECT citus_check_connection_to_node($1, $2) AS answers")
    try:
        [answers] = await executor.fetch_in_savepoint(asked, node.host, node.port)
    except Unavailable as failure:
        if not failure.retryable:
            raise
        return False
    return answers


class Index(NamedTuple):
    name: str
    in_schema: str
    """The quoted name, with its schema."""
    table: str
    is_valid: bool
    is_unique: bool
    scans: int
    bytes: int


_INDEXES = Statement(
    "doctor.indexes",
    Index,
    """
    SELECT
        indexes.relname::text AS name,
        format('%I.%I', current_schema(), indexes.relname) AS in_schema,
        tables.relname::text AS "table",
        pg_index.indisvalid AND pg_index.indisready AS is_valid,
        pg_index.indisunique AS is_unique,
        COALESCE(pg_stat_user_indexes.idx_scan, 0) AS scans,
        pg_relation_size(pg_index.indexrelid) AS bytes
    FROM pg_index
    JOIN pg_class AS indexes ON indexes.oid = pg_index.indexrelid
    JOIN pg_class AS tables ON tables.oid = pg_index.indrelid
    LEFT JOIN pg_stat_user_indexes ON pg_stat_user_indexes.indexrelid = pg_index.indexrelid
    WHERE tables.relname = ANY ($1)
        AND tables.relnamespace = to_regnamespace(current_schema())
    ORDER BY name
    """,
)

# Without a reset the statistics are at least as old as the server's last start, which keeps them.
_AGE = Statement(
    "doctor.age_of_statistics",
    int,
    """
    SELECT extract(EPOCH FROM now() - COALESCE(stats_reset, pg_postmaster_start_time()))::bigint AS age_seconds
    FROM pg_stat_database
    WHERE datname = current_database()
    """,
)


async def _indexes(postgres: Postgres) -> Result:
    await _need_head(postgres)
    found = await postgres.executor.fetch_all(_INDEXES, list(TABLES))
    age = await postgres.executor.fetch_one(_AGE) or 0
    expected = INDEXES_WHERE_DISTRIBUTED if {"idx_messages_id"} & {index.name for index in found} else INDEXES
    findings = []
    for index in [index for index in found if not index.is_valid]:
        meaning = f"{index.name} on {index.table} is INVALID: writes maintain it, and no query can use it."
        if index.name in expected:
            findings.append(error(meaning, f"REINDEX INDEX CONCURRENTLY {index.in_schema}, as the owner."))
        else:
            remedy = f"DROP INDEX CONCURRENTLY {index.in_schema}, as the owner, unless it is still being built."
            findings.append(warning(meaning, remedy))
    for name in sorted(expected - {index.name for index in found}):
        meaning = f"The index {name} is missing: its queries read whole tables, or its rows are not kept unique."
        remedy = "Create it again: `hubbub migrate sql` shows its definition, docs/schema.md its purpose."
        findings.append(error(meaning, remedy))
    if age < UNUSED_SECONDS:
        return Result(f"{len(found)} indexes; statistics are too young to tell which are used", findings)
    for index in found:
        # Each of hubbub's own has its reason, if only the deletion of an account.
        if index.name not in expected and index.is_valid and not index.is_unique and not index.scans:
            size, days = f"{index.bytes / 1_000_000:.1f} MB", f"{age / 86_400:.0f} days"
            meaning = f"{index.name} on {index.table} ({size}) was not used for {days}, and makes writes slower."
            remedy = f"If no replica uses it: DROP INDEX CONCURRENTLY {index.in_schema}."
            findings.append(warning(meaning, remedy))
    return Result(f"{len(found)} indexes", findings)


# Of hubbub's tables, and of an application's tables that refer to them: to delete a row, PostgreSQL looks for the
# rows that refer to it. A partial index is enough if it leaves out only NULL.
_FOREIGN_KEYS = Statement(
    "doctor.foreign_keys",
    lambda name, table, columns: (name, table, columns),
    """
    SELECT
        conname::text AS name,
        conrelid::regclass::text AS "table",
        columns.names AS columns
    FROM pg_constraint
    CROSS JOIN LATERAL (
        SELECT array_agg(attname::text ORDER BY array_position(conkey, attnum)) AS names
        FROM pg_attribute
        WHERE attrelid = conrelid
            AND attnum = ANY (conkey)
    ) AS columns
    WHERE contype = 'f'
        AND EXISTS (
            SELECT
            FROM pg_class
            WHERE oid IN (conrelid, confrelid)
                AND relname = ANY ($1)
                AND relnamespace = to_regnamespace(current_schema())
        )
        AND NOT EXISTS (
            SELECT
            FROM pg_index
            JOIN pg_class ON pg_class.oid = indexrelid
            JOIN pg_am ON pg_am.oid = relam
            WHERE indrelid = conrelid
                AND indisvalid
                AND amname IN ('btree', 'hash')
                AND (indkey::int2[])[0:cardinality(conkey) - 1] @> conkey
                AND (
                    indpred IS NULL
                    OR pg_get_expr(indpred, indrelid) = format('(%I IS NOT NULL)', columns.names[1])
                )
        )
    ORDER BY name
    """,
)


async def _foreign_keys(postgres: Postgres) -> Result:
    keys = await postgres.executor.fetch_all(_FOREIGN_KEYS, list(TABLES))
    if not keys:
        return Result("each has an index")
    findings = []
    for name, table, columns in keys:
        meaning = f"{name} on {table} has no index: a delete of a referred row reads all of {table}."
        remedy = f"CREATE INDEX CONCURRENTLY ON {table} ({', '.join(columns)})"
        findings.append(warning(meaning, remedy))
    return Result(f"{len(keys)} without an index", findings)


UNFINISHED_SECONDS: Final = 3_600
"""A call that deletes a million messages takes a minute. One that was cut off leaves the rest."""

_UNFINISHED = Statement(
    "doctor.unfinished_deletions",
    int,
    """
    SELECT count(*) AS unfinished
    FROM hubbub_deletions
    WHERE created_at < now() - $1 * interval '1 second'
    """,
)


async def _deletions(postgres: Postgres) -> Result:
    await _need_head(postgres)
    unfinished = await postgres.executor.fetch_one(_UNFINISHED, UNFINISHED_SECONDS)
    if not unfinished:
        return Result("none is unfinished")
    number = "1 account or room is" if unfinished == 1 else f"{unfinished} accounts and rooms are"
    meaning = f"{number} hidden for more than an hour, and not deleted to the end."
    return Result(f"{unfinished} unfinished", [warning(meaning, "hubbub maintain")])


class Table(NamedTuple):
    name: str
    live: int
    dead: int
    is_vacuumed: bool


_TABLES = Statement(
    "doctor.tables",
    Table,
    """
    SELECT
        pg_class.relname::text AS name,
        pg_stat_user_tables.n_live_tup AS live,
        pg_stat_user_tables.n_dead_tup AS dead,
        NOT EXISTS (
            SELECT
            FROM pg_options_to_table(pg_class.reloptions)
            WHERE option_name = 'autovacuum_enabled'
                AND NOT option_value::boolean
        ) AS is_vacuumed
    FROM pg_class
    JOIN pg_stat_user_tables ON pg_stat_user_tables.relid = pg_class.oid
    WHERE pg_class.relname = ANY ($1)
        AND pg_class.relnamespace = to_regnamespace(current_schema())
    ORDER BY name
    """,
)


async def _vacuum(postgres: Postgres) -> Result:
    autovacuum, track_counts = await postgres.server_settings("autovacuum", "track_counts")
    findings = []
    if "off" in (autovacuum, track_counts):
        off = "autovacuum" if autovacuum == "off" else "track_counts"
        meaning = (
            f"{off} is off: dead rows accumulate, statistics get outdated, and the server stops before "
            "transaction ids run out."
        )
        findings.append(error(meaning, f"Set {off} = on in postgresql.conf and reload."))
    tables, schema = await postgres.executor.fetch_all(_TABLES, list(TABLES)), postgres.settings.schema
    for table in tables:
        if not table.is_vacuumed:
            meaning = f"Autovacuum is off for {table.name}: it grows with every change and never shrinks."
            findings.append(warning(meaning, f"ALTER TABLE {schema}.{table.name} RESET (autovacuum_enabled)"))
        if table.dead > max(DEAD_ROWS, DEAD_SHARE * table.live):
            meaning = f"{table.name} has {table.dead:,} dead rows and {table.live:,} live: reads are slow."
            remedy = (
                "Look in pg_stat_activity for a transaction that is hours old and blocks vacuum. Without one, "
                f"VACUUM {schema}.{table.name}, and lower autovacuum_vacuum_scale_factor for it."
            )
            findings.append(warning(meaning, remedy))
    most = max(tables, key=lambda table: table.dead, default=None)
    return Result(f"at most {most.dead:,} dead rows, in {most.name}" if most else "no tables", findings)


_FORCE_GENERIC_PLANS = Statement(
    "doctor.force_generic_plans",
    str,
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', true) AS setting",
)
_LARGE_TABLES = Statement(
    "doctor.large_tables",
    str,
    """
    SELECT relname::text AS name
    FROM pg_class
    WHERE relname = ANY ($1)
        AND relnamespace = to_regnamespace(current_schema())
        AND reltuples >= $2
        AND relpages >= $3
    """,
)


async def _plans(postgres: Postgres) -> Result:
    """After a few runs a prepared statement gets a plan for any values: the one that is checked here."""
    executor = postgres.executor
    [mode] = await postgres.server_settings("plan_cache_mode")
    findings = []
    if mode == "force_custom_plan":
        meaning = "plan_cache_mode is force_custom_plan: statements and foreign key checks are planned every time."
        findings.append(warning(meaning, "Set plan_cache_mode = auto, for the server or for this role."))
    await _need_head(postgres)
    if await is_begun(executor):
        # The tables are on the nodes, and the statements have other forms.
        return Result(f"{mode}; rooms are distributed", findings)
    large = set(await executor.fetch_all(_LARGE_TABLES, list(TABLES), LARGE_ROWS, LARGE_PAGES))
    if not large:
        return Result(f"{mode}; no table is large enough to tell", findings)
    await executor.fetch_one(_FORCE_GENERIC_PLANS)
    statements = hot_statements()
    for statement in statements:
        for node in _nodes(await _plan(executor, postgres.settings.schema, statement)):
            table = node.get("Relation Name")
            if table in large and _reads_all(node):
                meaning = f"The plan of {statement.name} reads all of {table}, by {node['Node Type']}."
                analyze = f"ANALYZE {postgres.settings.schema}.{table}."
                remedy = f"{analyze} If that changes nothing, compare its indexes and random_page_cost."
                findings.append(warning(meaning, remedy))
    return Result(f"{mode}; {len(statements)} statements planned", findings)


def hot_statements() -> list[Statement[Any]]:
    """The statements of the repositories, by name."""
    found = {}
    for module in walk_packages(repositories.__path__, f"{repositories.__name__}."):
        names = vars(import_module(module.name))
        classes = [vars(value) for value in names.values() if isinstance(value, type)]
        for value in [value for owner in (names, *classes) for value in owner.values()]:
            if isinstance(value, Statement):
                found[value.name] = value
            if isinstance(value, Lookup):
                found[value.many.name] = value.many
    return [found[name] for name in sorted(found)]


async def _plan(executor: Executor, schema: str, statement: Statement[Any]) -> dict[str, Any]:
    """The plan for any values. EXPLAIN (GENERIC_PLAN) exists from PostgreSQL 16 on; this works before it too."""
    numbers = [int(number) for number in re.findall(r"\$(\d+)", statement.sql)]
    nulls = f"({', '.join(['NULL'] * max(numbers))})" if numbers else ""
    prepare = f"PREPARE hubbub_doctor AS {statement.in_layout[schema]}"
    await executor.fetch_all(Statement("doctor.prepare", str, prepare))
    explain = f"EXPLAIN (FORMAT JSON) EXECUTE hubbub_doctor {nulls}"
    try:
        [plan] = await executor.fetch_in_savepoint(Statement("doctor.explain", json.loads, explain))
    finally:
        # A prepared statement outlives the transaction, and behind a pooler also this connection.
        await executor.fetch_all(Statement("doctor.deallocate", str, "DEALLOCATE hubbub_doctor"))
    found: dict[str, Any] = plan[0]["Plan"]
    return found


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _reads_all(node: dict[str, Any]) -> bool:
    """A sequential scan, or a scan of an index without a condition."""
    return node["Node Type"] == "Seq Scan" or (
        node["Node Type"] in ("Index Scan", "Index Only Scan") and "Index Cond" not in node
    )


CHECKS: Final[tuple[Check[Postgres], ...]] = (
    Check("postgresql.migrations", "migrations", _migrations),
    Check("postgresql.distribution", "distribution", _distribution),
    Check("postgresql.nodes", "nodes", _nodes_of_rooms),
    Check("postgresql.indexes", "indexes", _indexes),
    Check("postgresql.foreign_keys", "foreign keys", _foreign_keys),
    Check("postgresql.deletions", "deletions", _deletions),
    Check("postgresql.vacuum", "vacuum", _vacuum),
    Check("postgresql.plans", "plans", _plans),
)
