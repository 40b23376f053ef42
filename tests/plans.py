"""The cost of a statement in pages and rows, which do not depend on the load of the machine."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hubbub.postgres import Statement
from hubbub.postgres.connection import Connection


async def pages_touched(connection: Connection, statement: Statement[Any], *arguments: object) -> int:
    """The pages that the statement reads and writes by its generic plan. Its changes are rolled back."""
    plan = await _plan(connection, statement, arguments, "force_generic_plan")
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def rows_read(connection: Connection, statement: Statement[Any], *arguments: object) -> dict[str, int]:
    """The rows that the statement reads from each table, including discarded ones, by the worse of its plans.

    Its changes are rolled back.
    """
    most: Counter[str] = Counter()
    for mode in ("force_generic_plan", "force_custom_plan"):
        read: Counter[str] = Counter()
        _count_rows(await _plan(connection, statement, arguments, mode), read)
        most |= read
    return dict(most)


def _count_rows(node: dict[str, Any], read: Counter[str]) -> None:
    if "Relation Name" in node and node["Node Type"] != "ModifyTable":
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        read[node["Relation Name"]] += round((node["Actual Rows"] + removed) * node["Actual Loops"])
    for inner in node.get("Plans", ()):
        _count_rows(inner, read)


async def _plan(
    connection: Connection, statement: Statement[Any], arguments: tuple[object, ...], mode: str
) -> dict[str, Any]:
    values = ", ".join(f"'{argument}'" for argument in arguments)
    await connection.execute("BEGIN")
    await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
    await connection.execute(f"PREPARE measured AS {statement.sql}")
    explained = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE measured ({values})")
    await connection.execute("DEALLOCATE measured")
    await connection.execute("ROLLBACK")
    plan: dict[str, Any] = json.loads(explained)[0]["Plan"]
    return plan
