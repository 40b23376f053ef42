"""PostgreSQL as a server, and the role that the application logs in as.

All checks run over one connection that can only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from hubbub.diagnostics import schema
from hubbub.diagnostics.report import (
    Check,
    Finding,
    Result,
    Section,
    are_on_this_machine,
    error,
    note,
    run_checks,
    unencrypted,
    warning,
)
from hubbub.diagnostics.schema import Postgres
from hubbub.errors import Unavailable
from hubbub.migrations import TABLES
from hubbub.migrations.revisions import OTHER_SCHEMAS
from hubbub.postgres import Pool, Statement
from hubbub.postgres.replicas import LAG_SECONDS
from hubbub.settings import PostgresSettings

OLDEST: Final = 14
NEWEST: Final = 18
"""Major versions that hubbub is tested with."""

FULL: Final = 0.8
"""The share of the connections from which on it is worth a note."""

OWN_ROLE: Final = "Give the application its own role, which owns nothing: `hubbub migrate grant ROLE`."


async def _version(postgres: Postgres) -> Result:
    text, number = await postgres.server_settings("server_version", "server_version_num")
    major = int(number) // 10_000
    if major < OLDEST:
        meaning = f"hubbub needs PostgreSQL {OLDEST} or later."
        return Result(text, [error(meaning, f"Upgrade the server, best to {NEWEST}.")])
    if major > NEWEST:
        meaning = f"This version of hubbub was tested with PostgreSQL up to {NEWEST}."
        return Result(text, [note(meaning, "Look for a newer version of hubbub.")])
    return Result(text)


class Collation(NamedTuple):
    """A collation whose library has changed: `refresh` is the statement that notes that its indexes are new."""

    name: str
    built: str
    actual: str
    refresh: str


# The indexes of the tables have the collation of the database, or the one that is named for them.
_COLLATIONS: Final = """
    SELECT
        'collation ' || quote_ident(collname) AS name,
        collversion AS built,
        pg_collation_actual_version(pg_collation.oid) AS actual,
        'ALTER COLLATION ' || pg_collation.oid::regcollation || ' REFRESH VERSION' AS refresh
    FROM pg_collation
    JOIN pg_database ON datname = current_database()
    WHERE collversion <> pg_collation_actual_version(pg_collation.oid)
        AND collencoding IN (-1, encoding)
        AND ({is_default} OR EXISTS (SELECT FROM pg_index WHERE pg_collation.oid = ANY (indcollation)))
"""
# Before PostgreSQL 15 a database has no version of its own. The collation with the name of its locale has it.
_DATABASE: Final = """
    SELECT
        'database' AS name,
        datcollversion AS built,
        pg_database_collation_actual_version(oid) AS actual,
        'ALTER DATABASE ' || quote_ident(datname) || ' REFRESH COLLATION VERSION' AS refresh
    FROM pg_database
    WHERE datname = current_database()
        AND datcollversion <> pg_database_collation_actual_version(oid)
    UNION ALL
"""


def stale_collations(major: int) -> Statement[Collation]:
    """The statement for a version of the server. One version cannot prepare that for another."""
    if major < 15:
        return Statement(
            "doctor.stale_collations", Collation, _COLLATIONS.format(is_default="collcollate = datcollate")
        )
    return Statement("doctor.stale_collations", Collation, _DATABASE + _COLLATIONS.format(is_default="false"))


async def _encoding(postgres: Postgres) -> Result:
    encoding, number = await postgres.server_settings("server_encoding", "server_version_num")
    findings = []
    if encoding != "UTF8":
        meaning = f"The encoding is {encoding}, in which most names and messages cannot be stored."
        remedy = "Create a database with ENCODING 'UTF8' TEMPLATE template0, and restore a dump into it."
        findings.append(error(meaning, remedy))
    for one in await postgres.executor.fetch_all(stale_collations(int(number) // 10_000)):
        meaning = (
            f"The indexes of the {one.name} were built with version {one.built} of its collation, and the server "
            f"sorts by version {one.actual}: a search can miss rows, and a unique index can take one twice."
        )
        remedy = f"As the owner: REINDEX DATABASE CONCURRENTLY {postgres.settings.database}, then {one.refresh}."
        findings.append(error(meaning, remedy))
    return Result(encoding, findings)


LONG_SECONDS: Final = 60
"""A transaction of an application takes milliseconds, and that of a migration seconds."""


class LongTransaction(NamedTuple):
    """A transaction that has written something and has not ended. `end` is the statement that ends it."""

    seconds: float
    what: str
    end: str


# Of the whole cluster: `hub.changes` waits for all. The times of other roles need pg_read_all_stats.
_OPEN_TRANSACTIONS: Final = Statement(
    "doctor.open_transactions",
    LongTransaction,
    """
    SELECT seconds, what, "end"
    FROM (
        SELECT
            extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds,
            format('session %s of %s in %s', pid, usename, datname) AS what,
            format('SELECT pg_terminate_backend(%s)', pid) AS "end"
        FROM pg_stat_activity
        WHERE backend_xid IS NOT NULL
        UNION ALL
        SELECT
            extract(epoch FROM clock_timestamp() - prepared)::float8,
            format('prepared transaction %L in %s', gid, database),
            format('ROLLBACK PREPARED %L', gid)
        FROM pg_prepared_xacts
    ) AS open
    WHERE seconds > $1
    ORDER BY seconds DESC
    LIMIT 10
    """,
)


async def _transactions(postgres: Postgres) -> Result:
    found = await postgres.executor.fetch_all(_OPEN_TRANSACTIONS, float(LONG_SECONDS))
    findings = []
    for one in found:
        meaning = (
            f"A transaction that has written is open for {one.seconds:,.0f} s ({one.what}): `hub.changes` "
            f"delivers no newer entries, and VACUUM cannot remove rows deleted since then."
        )
        findings.append(warning(meaning, f"Find out what it waits for; to end it: {one.end}."))
    return Result(f"{len(found)} long ones" if found else f"none is open for {LONG_SECONDS} s", findings)


# Behind a pooler this is about the connection from the pooler to the server.
_PROTOCOL = Statement(
    "doctor.protocol", str, "SELECT version AS protocol FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl"
)


async def _tls(postgres: Postgres) -> Result:
    sslmode, addresses = postgres.settings.sslmode, postgres.settings.addresses
    protocol = await postgres.executor.fetch_one(_PROTOCOL)
    if protocol is None:
        remedy = "Turn ssl on in postgresql.conf, and set DB_SSLMODE=verify-full and DB_SSLROOTCERT."
        return unencrypted("PostgreSQL", addresses, remedy)
    summary = f"{protocol}, DB_SSLMODE={sslmode}"
    if sslmode == "verify-full" or are_on_this_machine(addresses):
        return Result(summary)
    meaning = f"With {sslmode} another server can pass for this one, and read the password and all else."
    remedy = "Set DB_SSLMODE=verify-full, and DB_SSLROOTCERT to the certificate of the authority."
    return Result(summary, [warning(meaning, remedy)])


LOSSES: Final = {
    "fsync": (
        "a power cut may damage the whole database beyond repair.",
        "Set fsync = on in postgresql.conf and reload.",
    ),
    "full_page_writes": (
        "a page that was half written at a power cut stays broken.",
        "Set full_page_writes = on, unless the file system writes whole pages.",
    ),
    "synchronous_commit": (
        "acknowledged messages are lost when the server crashes.",
        "Set synchronous_commit = on, for the server or for this role.",
    ),
}


async def _durability(postgres: Postgres) -> Result:
    settings = dict(zip(LOSSES, await postgres.server_settings(*LOSSES), strict=True))
    lost = [(name, *LOSSES[name]) for name, value in settings.items() if value == "off"]
    findings = [error(f"{name} is off: {loss}", remedy) for name, loss, remedy in lost]
    summary = f"fsync {settings['fsync']}, synchronous_commit {settings['synchronous_commit']}"
    return Result(summary, findings)


# -1 is no limit.
_LIMITS = Statement(
    "doctor.limits",
    lambda role, database: (role, database),
    """
    SELECT
        rolconnlimit AS role,
        datconnlimit AS database
    FROM pg_database
    JOIN pg_roles ON rolname = current_user
    WHERE datname = current_database()
    """,
)


async def _connections(postgres: Postgres) -> Result:
    size, processes = postgres.settings.pool_size, postgres.processes
    if not postgres.settings.prepared_statements:
        return Result("through a pooler, which has limits of its own")
    most, for_superusers, reserved = await postgres.server_settings(
        "max_connections", "superuser_reserved_connections", "reserved_connections"
    )
    [limits] = await postgres.executor.fetch_all(_LIMITS)
    free = int(most) - int(for_superusers) - int(reserved or 0)
    available = min(limit for limit in (free, *limits) if limit >= 0)
    wanted = size * processes
    summary = f"{processes} x {size} of {available}"
    pools = f"A pool of {size}" if processes == 1 else f"{processes} processes with pools of {size}"
    meaning = f"{pools} may open {wanted:,} of {available:,} connections."
    remedy = "Make DB_POOL_SIZE smaller, raise max_connections, or put a pooler in between."
    if wanted > available:
        return Result(summary, [error(f"{meaning} Further connections are refused.", remedy)])
    if wanted > available * FULL:
        return Result(summary, [note(f"{meaning} Few are left for migrations, backups and people.", remedy)])
    return Result(summary)


# Also through the roles that it is a member of, which is as good as being them.
_ROLE = Statement(
    "doctor.role",
    lambda name, is_superuser, rights: (name, is_superuser, rights),
    """
    SELECT
        current_user::text AS name,
        bool_or(rolsuper) AS is_superuser,
        array_remove(ARRAY[
            CASE WHEN bool_or(rolcreaterole) THEN 'may create roles' END,
            CASE WHEN bool_or(rolcreatedb) THEN 'may create databases' END,
            CASE WHEN bool_or(rolreplication) THEN 'may replicate the whole server' END,
            CASE WHEN bool_or(rolbypassrls) THEN 'bypasses row security' END,
            (
                SELECT 'owns the tables'
                FROM pg_class
                WHERE relname = ANY ($1)
                    AND relnamespace = to_regnamespace(current_schema())
                    AND pg_has_role(relowner, 'USAGE')
                LIMIT 1
            ),
            (
                SELECT 'may create tables and functions in ' || string_agg(nspname, ', ' ORDER BY nspname)
                FROM pg_namespace
                WHERE nspname = ANY (current_schemas(false))
                    AND has_schema_privilege(oid, 'CREATE')
            )
        ], NULL) AS rights
    FROM pg_roles
    WHERE pg_has_role(oid, 'MEMBER')
    """,
)


async def _role(postgres: Postgres) -> Result:
    [(name, is_superuser, rights)] = await postgres.executor.fetch_all(_ROLE, list(TABLES))
    if is_superuser:
        meaning = f"{name} has superuser rights: an attacker in the application controls the server."
        return Result(name, [error(meaning, OWN_ROLE)])
    if not rights:
        return Result(name)
    meaning = f"{name} {', '.join(rights)}: more than the application, or an attacker in it, should be able to do."
    return Result(name, [warning(meaning, OWN_ROLE)])


async def _schema(postgres: Postgres) -> Result:
    used, others = postgres.settings.schema, await postgres.executor.fetch_all(OTHER_SCHEMAS)
    if not others:
        return Result(used)
    meaning = f"There are tables of hubbub in {' and '.join(others)}, too. This application uses those in {used}."
    remedy = "If no other application uses those: find out which have the data, and drop the rest."
    return Result(f"{used}, of {1 + len(others)}", [note(meaning, remedy)])


class _Replication(NamedTuple):
    """A server of a cluster: `at` is its position in the log in bytes, `seconds` the age of its last commit."""

    cluster: str
    is_standby: bool
    at: int
    seconds: float


_REPLICATION = Statement(
    "doctor.replication",
    _Replication,
    """
    SELECT
        system_identifier::text AS cluster,
        pg_is_in_recovery() AS is_standby,
        (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint
            AS at,
        COALESCE(EXTRACT(EPOCH FROM now() - pg_last_xact_replay_timestamp()), 0)::double precision AS seconds
    FROM pg_control_system()
    """,
)


async def _replicas(postgres: Postgres) -> Result:
    """The read replicas, and the hosts of the database where there are several."""
    settings = postgres.settings
    hosts = [replace(settings, host=one.host, port=one.port) for one in settings.addresses]
    others = [*postgres.replicas, *(hosts if len(hosts) > 1 else ())]
    if not others:
        return Result("none")
    [primary] = await postgres.executor.fetch_all(_REPLICATION)
    findings = [await _replica(one, primary, is_host=one in hosts) for one in others]
    return Result(f"{len(others)} servers", [finding for finding in findings if finding is not None])


async def _replica(settings: PostgresSettings, primary: _Replication, *, is_host: bool) -> Finding | None:
    pool = Pool(replace(settings, pool_size=1), keeps_standby=True)
    try:
        [found] = await pool.fetch_all(_REPLICATION)
    except Unavailable as failure:
        after = "A failover cannot go there." if is_host else "Its reads go to the primary."
        return warning(f"{settings.where} cannot be asked: {failure.reason}. {after}", "Start it or take it out.")
    finally:
        await pool.close()
    if found.cluster != primary.cluster:
        meaning = f"{settings.where} is of another database cluster: it shows other rooms."
        return error(meaning, "Take it out of the settings, or make it a standby of this one by pg_basebackup.")
    if not found.is_standby:
        if is_host and found.at >= primary.at:
            return None  # the primary itself
        meaning = (
            f"{settings.where} accepts writes, so it is not a standby. Two writable servers have diverging logs."
        )
        return error(
            meaning, "Find out which one is the primary. Stop the other one, and make it a standby again."
        )
    if found.at < primary.at and found.seconds > LAG_SECONDS:
        meaning = f"{settings.where} lags by {primary.at - found.at:,} bytes, {found.seconds:.0f} s."
        return warning(meaning, "Look at pg_stat_replication on the primary, and for long queries on the standby.")
    return None


CHECKS: Final[tuple[Check[Postgres], ...]] = (
    Check("postgresql.version", "version", _version),
    Check("postgresql.encoding", "encoding", _encoding),
    Check("postgresql.tls", "encryption", _tls),
    Check("postgresql.durability", "durability", _durability),
    Check("postgresql.connections", "connections", _connections),
    Check("postgresql.role", "role", _role),
    Check("postgresql.schema", "schema", _schema),
    Check("postgresql.transactions", "transactions", _transactions),
    Check("postgresql.replicas", "replicas", _replicas),
    *schema.CHECKS,
)

_READ_ONLY = Statement(
    "doctor.read_only", str, "SELECT set_config('transaction_read_only', 'on', true) AS setting"
)


async def check(
    pool: Pool, settings: PostgresSettings, processes: int, replicas: Sequence[PostgresSettings] = ()
) -> Section:
    """Does not raise for a server that cannot be asked."""
    where = settings.where
    try:
        [version] = await Postgres(pool, settings, processes).server_settings("server_version")
    except Unavailable as refusal:
        return Section("postgresql", "PostgreSQL", where, refusal.reason, ())

    async def run(check: Check[Postgres]) -> Result:
        # A transaction each: one that a refused statement has ended does not end the others.
        async with pool.transaction() as executor:
            await executor.fetch_one(_READ_ONLY)
            return await check.run(Postgres(executor, settings, processes, replicas))

    return await run_checks("postgresql", f"PostgreSQL {version}", where, CHECKS, run)
