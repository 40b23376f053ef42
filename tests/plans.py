"""The cost of a statement as the server counts it: pages touched, which the load of the machine cannot change."""

from __future__ import annotations

import json
from typing import Any

from hubbub.postgres import Statement
from hubbub.postgres.connection import Connection


async def pages_touched(connection: Connection, statement: Statement[Any], *arguments: object) -> int:
    """The pages that the statement reads and writes under its generic plan. Its changes are rolled back."""
    values = ", ".join(f"'{argument}'" for argument in arguments)
    await connection.execute("BEGIN")
    await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE measured AS {statement.sql}")
    explained = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE measured ({values})")
    await connection.execute("DEALLOCATE measured")
    await connection.execute("ROLLBACK")
    plan = json.loads(explained)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
