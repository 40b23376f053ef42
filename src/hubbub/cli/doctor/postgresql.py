"""PostgreSQL as a server, and the role that the application logs in as.

All checks run over one connection that can only read.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hubbub.cli.doctor import schema
from hubbub.cli.doctor.report import (
    Check,
    Result,
    Section,
    error,
    is_this_machine,
    note,
    run_checks,
    unencrypted,
    warning,
)
from hubbub.cli.doctor.schema import Postgres
from hubbub.errors import Unavailable
from hubbub.migrations import TABLES
from hubbub.postgres import Pool, Statement
from hubbub.settings import PostgresSettings

OLDEST: Final = 14
NEWEST: Final = 18
"""Major versions that hubbub is tested with."""

FULL: Final = 0.8
"""The share of the connections from which on it is worth a note."""

OWN_ROLE: Final = "Give the application a role of its own that owns nothing: `hubbub migrate grant ROLE`."


class Version(NamedTuple):
    text: str
    number: int


_VERSION = Statement(
    "doctor.version",
    Version,
    """
    SELECT
        current_setting('server_version') AS text,
        current_setting('server_version_num')::integer AS number
    """,
)


async def _version(postgres: Postgres) -> Result:
    [found] = await postgres.executor.fetch_all(_VERSION)
    major = found.number // 10_000
    if major < OLDEST:
        meaning = f"hubbub needs PostgreSQL {OLDEST} or later."
        return Result(found.text, [error(meaning, f"Upgrade the server, best to {NEWEST}.")])
    if major > NEWEST:
        meaning = f"This version of hubbub was tested with PostgreSQL up to {NEWEST}."
        return Result(found.text, [note(meaning, "Look for a newer version of hubbub.")])
    return Result(found.text)


class Encryption(NamedTuple):
    is_used: bool
    protocol: str | None


# Behind a pooler this is about the connection from the pooler to the server.
_ENCRYPTION = Statement(
    "doctor.encryption",
    Encryption,
    """
    SELECT
        ssl AS is_used,
        version AS protocol
    FROM pg_stat_ssl
    WHERE pid = pg_backend_pid()
    """,
)


async def _tls(postgres: Postgres) -> Result:
    sslmode, is_local = postgres.settings.sslmode, is_this_machine(postgres.settings.host)
    found = await postgres.executor.fetch_one(_ENCRYPTION)
    if found is None or not found.is_used:
        if is_local:
            return Result("off, and the server is on this machine")
        remedy = "Turn ssl on in postgresql.conf, and set DB_SSLMODE=verify-full and DB_SSLROOTCERT."
        return Result("off", [unencrypted("PostgreSQL", remedy)])
    summary = f"{found.protocol}, DB_SSLMODE={sslmode}"
    if sslmode == "verify-full" or is_local:
        return Result(summary)
    meaning = f"With {sslmode} another server can pass for this one, and read the password and all else."
    remedy = "Set DB_SSLMODE=verify-full, and DB_SSLROOTCERT to the certificate of the authority."
    return Result(summary, [warning(meaning, remedy)])


class Durability(NamedTuple):
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str


_DURABILITY = Statement(
    "doctor.durability",
    Durability,
    """
    SELECT
        current_setting('fsync')::boolean AS fsync,
        current_setting('full_page_writes')::boolean AS full_page_writes,
        current_setting('synchronous_commit') AS synchronous_commit
    """,
)


async def _durability(postgres: Postgres) -> Result:
    [found] = await postgres.executor.fetch_all(_DURABILITY)
    findings = []
    if not found.fsync:
        meaning = "fsync is off: a power cut may damage the whole database beyond repair."
        findings.append(error(meaning, "Set fsync = on in postgresql.conf and reload."))
    if not found.full_page_writes:
        meaning = "full_page_writes is off: a page that was half written at a power cut stays broken."
        findings.append(error(meaning, "Set full_page_writes = on, unless the file system writes whole pages."))
    if found.synchronous_commit == "off":
        meaning = "synchronous_commit is off: acknowledged messages are lost when the server crashes."
        findings.append(error(meaning, "Set synchronous_commit = on, for the server or for this role."))
    flushed = "on" if found.fsync else "off"
    return Result(f"fsync {flushed}, synchronous_commit {found.synchronous_commit}", findings)


class Limits(NamedTuple):
    """How many connections there may be; -1 is no limit."""

    server: int
    reserved: int
    role: int
    database: int


_LIMITS = Statement(
    "doctor.limits",
    Limits,
    """
    SELECT
        current_setting('max_connections')::integer AS server,
        current_setting('superuser_reserved_connections')::integer
            + COALESCE(current_setting('reserved_connections', true)::integer, 0) AS reserved,
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
    [found] = await postgres.executor.fetch_all(_LIMITS)
    available = min(limit for limit in (found.server - found.reserved, found.role, found.database) if limit >= 0)
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


class Role(NamedTuple):
    name: str
    is_superuser: bool
    may_create_roles: bool
    may_create_databases: bool
    may_replicate: bool
    bypasses_row_security: bool
    owned: list[str]
    may_create_in: list[str]


# Also through the roles that it is a member of, which is as good as being them.
_ROLE = Statement(
    "doctor.role",
    Role,
    """
    SELECT
        current_user::text AS name,
        bool_or(rolsuper) AS is_superuser,
        bool_or(rolcreaterole) AS may_create_roles,
        bool_or(rolcreatedb) AS may_create_databases,
        bool_or(rolreplication) AS may_replicate,
        bool_or(rolbypassrls) AS bypasses_row_security,
        ARRAY(
            SELECT relname::text
            FROM pg_class
            WHERE relname = ANY ($1)
                AND pg_table_is_visible(oid)
                AND pg_has_role(relowner, 'USAGE')
            ORDER BY relname
        ) AS owned,
        ARRAY(
            SELECT nspname::text
            FROM pg_namespace
            WHERE nspname = ANY (current_schemas(false))
                AND has_schema_privilege(oid, 'CREATE')
            ORDER BY nspname
        ) AS may_create_in
    FROM pg_roles
    WHERE pg_has_role(oid, 'MEMBER')
    """,
)


async def _role(postgres: Postgres) -> Result:
    [role] = await postgres.executor.fetch_all(_ROLE, list(TABLES))
    if role.is_superuser:
        meaning = f"{role.name} is as good as a superuser: an intruder in the application has the server."
        return Result(role.name, [error(meaning, OWN_ROLE)])
    rights = {
        "may create roles": role.may_create_roles,
        "may create databases": role.may_create_databases,
        "may replicate the whole server": role.may_replicate,
        "bypasses row security": role.bypasses_row_security,
        "owns the tables": bool(role.owned),
        f"may create tables and functions in {', '.join(role.may_create_in)}": bool(role.may_create_in),
    }
    held = ", ".join(right for right, is_held in rights.items() if is_held)
    if not held:
        return Result(role.name)
    meaning = f"{role.name} {held}: more than the application, or an intruder in it, should be able to do."
    return Result(role.name, [warning(meaning, OWN_ROLE)])


class Path(NamedTuple):
    """`homes` are the schemas that have a history of hubbub's, `searched` those that this role searches."""

    role: str
    setting: str
    searched: list[str]
    homes: list[str]


_PATH = Statement(
    "doctor.search_path",
    Path,
    """
    SELECT
        current_user::text AS role,
        current_setting('search_path') AS setting,
        current_schemas(false)::text[] AS searched,
        ARRAY(
            SELECT nspname::text
            FROM pg_class
            JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE relname = 'hubbub_schema_version'
            ORDER BY nspname
        ) AS homes
    """,
)


async def _search_path(postgres: Postgres) -> Result:
    [path] = await postgres.executor.fetch_all(_PATH)
    used = next((schema for schema in path.searched if schema in path.homes), None)
    findings = []
    if len(path.homes) > 1:
        meaning = (
            f"hubbub's tables are in the schemas {' and '.join(path.homes)}; this role uses those in "
            f"{used or 'none of them'}."
        )
        findings.append(warning(meaning, "Find out which has the data, drop the other, and pin search_path."))
    if "$user" in path.setting and path.role in path.searched:
        meaning = (
            f'There is a schema with the name of the role {path.role}, and "$user" puts it first: another role '
            "that runs `hubbub migrate` sees other tables than this one."
        )
        severity = note if path.homes == [path.role] else warning
        findings.append(severity(meaning, f"ALTER ROLE {path.role} SET search_path = {used or 'public'}"))
    return Result(path.setting, findings)


CHECKS: Final[tuple[Check[Postgres], ...]] = (
    Check("postgresql.version", "version", _version),
    Check("postgresql.tls", "encryption", _tls),
    Check("postgresql.durability", "durability", _durability),
    Check("postgresql.connections", "connections", _connections),
    Check("postgresql.role", "role", _role),
    Check("postgresql.search_path", "search path", _search_path),
    *schema.CHECKS,
)

_READ_ONLY = Statement(
    "doctor.read_only",
    str,
    "SELECT set_config('transaction_read_only', 'on', true) AS transaction_read_only",
)


async def check(pool: Pool, settings: PostgresSettings, processes: int) -> Section:
    """Does not raise for a server that cannot be asked."""
    where = f"{settings.host}:{settings.port}"
    try:
        [version] = await pool.fetch_all(_VERSION)
    except Unavailable as refusal:
        return Section("postgresql", "PostgreSQL", where, refusal.reason, ())

    async def run(check: Check[Postgres]) -> Result:
        # A transaction each: one that a refused statement has ended does not end the others.
        async with pool.transaction() as executor:
            await executor.fetch_one(_READ_ONLY)
            return await check.run(Postgres(executor, settings, processes))

    results, lost = await run_checks(CHECKS, run)
    return Section("postgresql", f"PostgreSQL {version.text}", where, lost, results)
