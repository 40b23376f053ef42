"""PostgreSQL as a server: its version, the way to it, its connections, and what it keeps in a crash."""

from __future__ import annotations

from typing import Final, NamedTuple

from hubbub.cli._doctor.findings import Check, Finding, Seen, error, note, warning
from hubbub.cli._doctor.network import is_this_machine, unencrypted
from hubbub.postgres import Executor, Statement
from hubbub.settings import PostgresSettings

OLDEST: Final = 14
NEWEST: Final = 18
"""Major versions that hubbub is tested with."""

FULL: Final = 0.8
"""The share of the connections from which on it is worth a word."""


class Postgres(NamedTuple):
    """What the checks look at: `executor` is a transaction that can only read."""

    executor: Executor
    settings: PostgresSettings
    processes: int


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


async def version(executor: Executor) -> Version:
    """What the server says it is. Raises `Unavailable`."""
    [found] = await executor.fetch_all(_VERSION)
    return found


async def _supported(postgres: Postgres) -> Seen:
    found = await version(postgres.executor)
    major = found.number // 10_000
    findings: tuple[Finding, ...] = ()
    if major < OLDEST:
        meaning = f"hubbub needs PostgreSQL {OLDEST} or later."
        findings = (error(meaning, f"Upgrade the server, best to {NEWEST}."),)
    elif major > NEWEST:
        meaning = f"This hubbub was tested with PostgreSQL up to {NEWEST}."
        findings = (note(meaning, "Look for a newer hubbub."),)
    return Seen(found.text, findings)


class Encryption(NamedTuple):
    is_used: bool
    protocol: str | None


# Behind a pooler this is about the way from the pooler to the server.
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


async def _tls(postgres: Postgres) -> Seen:
    settings = postgres.settings
    found = await postgres.executor.fetch_one(_ENCRYPTION)
    if found is None or not found.is_used:
        if is_this_machine(settings.host):
            return Seen("none, and the server is on this machine")
        remedy = "Turn ssl on in postgresql.conf, and set DB_SSLMODE=verify-full and DB_SSLROOTCERT."
        return Seen("none", (unencrypted("PostgreSQL", remedy),))
    remark = f"{found.protocol}, DB_SSLMODE={settings.sslmode}"
    if settings.sslmode == "verify-full" or is_this_machine(settings.host):
        return Seen(remark)
    unverified = warning(
        f"Under {settings.sslmode} another server could pass for this one and read the password and all else.",
        "Set DB_SSLMODE=verify-full, and DB_SSLROOTCERT to the certificate of the authority.",
    )
    return Seen(remark, (unverified,))


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


async def _durability(postgres: Postgres) -> Seen:
    [found] = await postgres.executor.fetch_all(_DURABILITY)
    findings = []
    if not found.fsync:
        meaning = "fsync is off: after a power cut the whole database may be beyond repair."
        findings.append(error(meaning, "Set fsync = on in postgresql.conf and reload."))
    if not found.full_page_writes:
        meaning = "full_page_writes is off: a page that was half written at a power cut stays broken."
        findings.append(error(meaning, "Set full_page_writes = on, unless the file system writes whole pages."))
    if found.synchronous_commit == "off":
        meaning = "synchronous_commit is off: messages that were acknowledged are lost when the server crashes."
        findings.append(error(meaning, "Set synchronous_commit = on, for the server or for this role."))
    flushed = "on" if found.fsync else "off"
    return Seen(f"fsync {flushed}, synchronous_commit {found.synchronous_commit}", tuple(findings))


class Places(NamedTuple):
    """How many connections there may be; -1 is no limit."""

    most: int
    reserved: int
    of_role: int
    of_database: int


_PLACES = Statement(
    "doctor.places",
    Places,
    """
    SELECT
        current_setting('max_connections')::integer AS most,
        current_setting('superuser_reserved_connections')::integer
            + COALESCE(current_setting('reserved_connections', true)::integer, 0) AS reserved,
        rolconnlimit AS of_role,
        datconnlimit AS of_database
    FROM pg_database
    JOIN pg_roles ON rolname = current_user
    WHERE datname = current_database()
    """,
)


async def _connections(postgres: Postgres) -> Seen:
    settings, processes = postgres.settings, postgres.processes
    if not settings.prepared_statements:
        return Seen("through a pooler, which has limits of its own")
    [found] = await postgres.executor.fetch_all(_PLACES)
    limits = [limit for limit in (found.of_role, found.of_database) if limit >= 0]
    free = min(found.most - found.reserved, *limits) if limits else found.most - found.reserved
    wanted = settings.pool_size * processes
    remark = f"{processes} x {settings.pool_size} of {free}"
    meaning = (
        f"{processes} processes with pools of {settings.pool_size} may want {wanted:,} of {free:,} connections."
    )
    if processes == 1:
        meaning = f"A pool of {settings.pool_size} may want {wanted:,} of {free:,} connections."
    remedy = "Make DB_POOL_SIZE smaller, raise max_connections, or put a pooler in between."
    if wanted > free:
        return Seen(remark, (error(f"{meaning} Those that come too late are refused.", remedy),))
    if wanted > free * FULL:
        return Seen(remark, (note(f"{meaning} Little is left for migrations, backups and people.", remedy),))
    return Seen(remark)


CHECKS: tuple[Check[Postgres], ...] = (
    Check("postgresql.version", "version", _supported),
    Check("postgresql.tls", "encryption", _tls),
    Check("postgresql.durability", "durability", _durability),
    Check("postgresql.connections", "connections", _connections),
)
