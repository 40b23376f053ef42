"""The schema: its revision, its indexes, and the foreign keys that need one."""

from __future__ import annotations

from typing import Final, NamedTuple

from hubbub.cli._doctor.findings import Check, Finding, Seen, Unseen, error, warning
from hubbub.cli._doctor.postgres_server import Postgres
from hubbub.migrations import HEAD, TABLES, revisions
from hubbub.postgres import Statement

INDEXES: Final = frozenset(
    {
        "hubbub_imports_pkey",
        "hubbub_schema_version_pkc",
        "idx_message_read_receipts_user_id",
        "idx_messages_created_at",
        "idx_messages_room_id",
        "idx_messages_user_id",
        "idx_room_users_last_read_message_id",
        "idx_room_users_user_id",
        "idx_rooms_created_by",
        "idx_rooms_name",
        "idx_users_email",
        "idx_users_username",
        "message_read_receipts_pkey",
        "messages_pkey",
        "room_events_pkey",
        "room_users_pkey",
        "rooms_direct_key_key",
        "rooms_pkey",
        "users_pkey",
    }
)
"""Those of the newest revision; docs/schema.md says what each is for."""

TELLING_SECONDS: Final = 7 * 86_400
"""How old statistics must be to say that something is never used: a week has every job of an application in it."""


async def _migrations(postgres: Postgres) -> Seen:
    found = await revisions.current_revision(postgres.executor)
    if found == HEAD:
        return Seen(f"at {HEAD}, nothing pending")
    if revisions.is_unknown(found):
        meaning = f"The database is at {found}, and this hubbub knows revisions up to {HEAD}: it will not start."
        return Seen(str(found), (error(meaning, "A newer hubbub has migrated it: upgrade hubbub."),))
    pending = revisions.to_apply(found, "head")
    found = found or "no revision"
    meaning = f"The database is at {found}, and this hubbub, which is for {HEAD}, will not start."
    return Seen(
        f"{found}, {len(pending)} pending",
        (error(meaning, "Run `hubbub migrate up`, as the owner of the tables."),),
    )


class Index(NamedTuple):
    name: str
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
        AND pg_table_is_visible(tables.oid)
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


async def _indexes(postgres: Postgres) -> Seen:
    await need_newest(postgres)
    found = await postgres.executor.fetch_all(_INDEXES, list(TABLES))
    age = await postgres.executor.fetch_one(_AGE) or 0
    invalid = [_invalid(index) for index in found if not index.is_valid]
    missing = [_missing(name) for name in sorted(INDEXES - {index.name for index in found})]
    remark = f"{len(found)} indexes"
    if age < TELLING_SECONDS:
        return Seen(f"{remark}; statistics are too young to say which are used", (*invalid, *missing))
    unused = [_unused(index, age) for index in found if _is_useless(index)]
    return Seen(remark, (*invalid, *missing, *unused))


async def need_newest(postgres: Postgres) -> None:
    """Raises `Unseen` unless the database is at the newest revision, which is what is known here."""
    if await revisions.current_revision(postgres.executor) != HEAD:
        raise Unseen(f"the database is not at {HEAD}")


def _invalid(index: Index) -> Finding:
    meaning = f"{index.name} on {index.table} is INVALID: each write pays for it, and no query can use it."
    if index.name in INDEXES:
        return error(meaning, f"REINDEX INDEX CONCURRENTLY {index.name}, as the owner.")
    return warning(meaning, f"DROP INDEX CONCURRENTLY {index.name}, as the owner, once nobody builds it any more.")


def _missing(name: str) -> Finding:
    meaning = f"The index {name} is missing, so what it is for reads whole tables or is not kept unique."
    return error(meaning, "Build it again: `hubbub migrate sql` shows its definition, docs/schema.md its purpose.")


def _is_useless(index: Index) -> bool:
    """Not one of hubbub's own, each of which has its reason, if only the deletion of an account."""
    return index.name not in INDEXES and index.is_valid and not index.is_unique and not index.scans


def _unused(index: Index, age: int) -> Finding:
    size = f"{index.bytes / 1_000_000:.1f} MB"
    meaning = (
        f"{index.name} on {index.table} ({size}) has not been used for {age / 86_400:.0f} days; each write pays."
    )
    return warning(meaning, f"If no replica uses it: DROP INDEX CONCURRENTLY {index.name}.")


class ForeignKey(NamedTuple):
    name: str
    table: str
    columns: list[str]


# Those of hubbub's tables, and those of an application's that refer to them: to delete a row that is referred to
# is to look for those that refer to it. A partial index does where all it leaves out is NULL.
_FOREIGN_KEYS = Statement(
    "doctor.foreign_keys",
    ForeignKey,
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
                AND pg_table_is_visible(oid)
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


async def _foreign_keys(postgres: Postgres) -> Seen:
    bare = await postgres.executor.fetch_all(_FOREIGN_KEYS, list(TABLES))
    if not bare:
        return Seen("each has an index")
    return Seen(f"{len(bare)} without an index", tuple(_without_index(key) for key in bare))


def _without_index(key: ForeignKey) -> Finding:
    columns = ", ".join(key.columns)
    meaning = (
        f"{key.name} on {key.table} has no index: to delete a user, room or message reads all of {key.table}."
    )
    return warning(meaning, f"CREATE INDEX CONCURRENTLY ON {key.table} ({columns})")


CHECKS: tuple[Check[Postgres], ...] = (
    Check("postgresql.migrations", "migrations", _migrations),
    Check("postgresql.indexes", "indexes", _indexes),
    Check("postgresql.foreign_keys", "foreign keys", _foreign_keys),
)
