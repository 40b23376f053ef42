"""PostgreSQL, looked at over one connection that can only read."""

from __future__ import annotations

from typing import Final

from hubbub.cli._doctor import postgres_role, postgres_schema, postgres_server, postgres_tables
from hubbub.cli._doctor.examination import Section, examine
from hubbub.cli._doctor.findings import Check, Seen
from hubbub.cli._doctor.postgres_server import Postgres
from hubbub.errors import Unavailable
from hubbub.postgres import Pool, Statement
from hubbub.settings import PostgresSettings

CHECKS: Final = (
    *postgres_server.CHECKS,
    *postgres_role.CHECKS,
    *postgres_schema.CHECKS,
    *postgres_tables.CHECKS,
)

_ONLY_READ = Statement(
    "doctor.only_read",
    str,
    "SELECT set_config('transaction_read_only', 'on', true) AS transaction_read_only",
)


async def look(pool: Pool, settings: PostgresSettings, processes: int) -> Section:
    """Does not raise for a server that cannot be asked."""
    where = f"{settings.host}:{settings.port}"
    try:
        version = await postgres_server.version(pool)
    except Unavailable as error:
        return Section("postgresql", "PostgreSQL", where, error.reason, ())

    async def look_by(check: Check[Postgres]) -> Seen:
        # A transaction each: one that a refused statement has ended does not end the others.
        async with pool.transaction() as executor:
            await executor.fetch_one(_ONLY_READ)
            return await check.look(Postgres(executor, settings, processes))

    outcomes, lost = await examine(CHECKS, look_by)
    return Section("postgresql", f"PostgreSQL {version.text}", where, lost, tuple(outcomes))
