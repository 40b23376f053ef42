"""The statements that took PostgreSQL the most time, by its extension pg_stat_statements."""

from __future__ import annotations

from typing import NamedTuple

from hubbub.errors import Invalid
from hubbub.postgres import Executor, Statement


class SlowStatement(NamedTuple):
    """Times are in milliseconds. `text` is None if it cannot be shown."""

    text: str | None
    calls: int
    total: float
    mean: float
    longest: float


_SCHEMA = Statement(
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
    """Those with the most time in total first. None without the extension, or if the server has not loaded it.

    Raises: nothing else.
    """
    schema = await executor.fetch_one(_SCHEMA)
    if schema is None:
        return None
    statement = Statement("statements.slowest", SlowStatement, _SLOWEST.format(schema=schema))
    try:
        return await executor.fetch_all(statement)
    except Invalid:  # so PostgreSQL refuses without the library of the extension
        return None
