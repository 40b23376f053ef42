"""How the tables are kept, and how the statements find what they look for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, Final, NamedTuple

from hubbub import repositories
from hubbub.cli._doctor.findings import Check, Finding, Seen, error, warning
from hubbub.cli._doctor.postgres_schema import need_newest
from hubbub.cli._doctor.postgres_server import Postgres
from hubbub.migrations import TABLES
from hubbub.postgres import Executor, Lookup, Statement

DEAD_ROWS: Final = 10_000
DEAD_SHARE: Final = 0.4
"""Autovacuum begins at a fifth: twice that is more than it keeps up with."""

LARGE_ROWS: Final = 10_000
LARGE_PAGES: Final = 100
"""From here on no plan of hubbub's reads a whole table; of a small table it is the quickest way."""


class Vacuuming(NamedTuple):
    is_on: bool
    counts: bool


_VACUUMING = Statement(
    "doctor.vacuuming",
    Vacuuming,
    """
    SELECT
        current_setting('autovacuum')::boolean AS is_on,
        current_setting('track_counts')::boolean AS counts
    """,
)


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
        AND pg_table_is_visible(pg_class.oid)
    ORDER BY name
    """,
)


async def _vacuum(postgres: Postgres) -> Seen:
    [found] = await postgres.executor.fetch_all(_VACUUMING)
    findings = []
    if not found.is_on or not found.counts:
        off = "track_counts" if found.is_on else "autovacuum"
        meaning = f"{off} is off: old versions of rows pile up, plans go stale, and in the end the server stops."
        findings.append(error(meaning, f"Set {off} = on in postgresql.conf and reload."))
    tables = await postgres.executor.fetch_all(_TABLES, list(TABLES))
    findings += [finding for table in tables for finding in _neglected(table)]
    most = max(tables, key=lambda table: table.dead, default=None)
    return Seen(f"at most {most.dead:,} dead rows, in {most.name}" if most else "no tables", tuple(findings))


def _neglected(table: Table) -> Iterator[Finding]:
    if not table.is_vacuumed:
        meaning = f"Autovacuum is off for {table.name}: it grows with every change and never shrinks."
        yield warning(meaning, f"ALTER TABLE {table.name} RESET (autovacuum_enabled)")
    if table.dead > max(DEAD_ROWS, DEAD_SHARE * table.live):
        meaning = (
            f"{table.name} has {table.dead:,} dead rows to {table.live:,} live ones: every read wades through."
        )
        remedy = (
            "Look in pg_stat_activity for a transaction that is hours old and ends vacuuming's hopes; else VACUUM"
        )
        yield warning(meaning, f"{remedy} {table.name}, and lower autovacuum_vacuum_scale_factor for it.")


_PLAN_CACHE_MODE = Statement(
    "doctor.plan_cache_mode", str, "SELECT current_setting('plan_cache_mode') AS plan_cache_mode"
)
_FORCE_GENERIC_PLANS = Statement(
    "doctor.force_generic_plans",
    str,
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', true) AS plan_cache_mode",
)
_LARGE_TABLES = Statement(
    "doctor.large_tables",
    str,
    """
    SELECT relname::text AS name
    FROM pg_class
    WHERE relname = ANY ($1)
        AND pg_table_is_visible(oid)
        AND reltuples >= $2
        AND relpages >= $3
    """,
)


async def _plans(postgres: Postgres) -> Seen:
    """Prepared statements get a plan for any values after a few runs: that is the one to look at."""
    executor = postgres.executor
    mode = await executor.fetch_one(_PLAN_CACHE_MODE)
    findings = []
    if mode == "force_custom_plan":
        meaning = (
            "plan_cache_mode is force_custom_plan: each statement and each foreign key is planned every time."
        )
        findings.append(warning(meaning, "Set plan_cache_mode = auto, for the server or for this role."))
    await need_newest(postgres)
    large = set(await executor.fetch_all(_LARGE_TABLES, list(TABLES), LARGE_ROWS, LARGE_PAGES))
    if not large:
        return Seen(f"{mode}; no table is large enough to tell", tuple(findings))
    await executor.fetch_one(_FORCE_GENERIC_PLANS)
    statements = hot_statements()
    for statement in statements:
        findings += _whole_tables(statement, await _plan(executor, statement), large)
    return Seen(f"{mode}; {len(statements)} statements planned", tuple(findings))


def hot_statements() -> list[Statement[Any]]:
    """Those of the repositories, by name."""
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


async def _plan(executor: Executor, statement: Statement[Any]) -> dict[str, Any]:
    """Its plan for any values. PostgreSQL 16 has EXPLAIN (GENERIC_PLAN); this is the way before it."""
    numbers = [int(number) for number in re.findall(r"\$(\d+)", statement.sql)]
    nulls = f"({', '.join(['NULL'] * max(numbers))})" if numbers else ""
    await executor.fetch_all(Statement("doctor.prepare", str, f"PREPARE hubbub_doctor AS {statement.sql}"))
    explain = f"EXPLAIN (FORMAT JSON) EXECUTE hubbub_doctor {nulls}"
    try:
        [plan] = await executor.attempt(Statement("doctor.explain", json.loads, explain))
    finally:
        # What is prepared outlives the transaction, and behind a pooler also this connection.
        await executor.fetch_all(Statement("doctor.deallocate", str, "DEALLOCATE hubbub_doctor"))
    found: dict[str, Any] = plan[0]["Plan"]
    return found


def _whole_tables(statement: Statement[Any], plan: dict[str, Any], large: set[str]) -> Iterator[Finding]:
    for node in _nodes(plan):
        table = node.get("Relation Name")
        if table in large and _reads_all_of_it(node):
            meaning = f"The plan of {statement.name} reads all of {table}, by {node['Node Type']}."
            remedy = (
                f"ANALYZE {table}. If it stays so, compare its indexes and random_page_cost with the defaults."
            )
            yield warning(meaning, remedy)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _reads_all_of_it(node: dict[str, Any]) -> bool:
    """A sequential scan, or a walk over a whole index: one that no condition narrows."""
    return node["Node Type"] == "Seq Scan" or (
        node["Node Type"] in ("Index Scan", "Index Only Scan") and "Index Cond" not in node
    )


CHECKS: tuple[Check[Postgres], ...] = (
    Check("postgresql.vacuum", "vacuum", _vacuum),
    Check("postgresql.plans", "plans", _plans),
)
