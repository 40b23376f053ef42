"""The buffers that a read of a newest page touches, by EXPLAIN. They do not grow with the table."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from hubbub import PostgresSettings
from hubbub.postgres import Pool, Statement, connect
from hubbub.postgres.connection import Connection
from hubbub.postgres.statement import T
from hubbub.repositories import Messages
from hubbub.repositories.messages.pages import NEWEST

BUFFERS = 60
ROOMS = {"full": UUID(int=1), "usual": UUID(int=20), "quiet": UUID(int=100)}

MAKE_ROOMS = """
INSERT INTO rooms (id, name)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'room'
FROM generate_series(1, 100) AS n
"""

FILL = """
WITH made AS (
    SELECT n, CASE WHEN n <= 60 THEN 100 WHEN n % 2 = 0 THEN 1 ELSE n / 2 % 90 + 2 END AS room
    FROM generate_series($1::integer, $2) AS n
)
INSERT INTO messages (id, room_id, seq, content)
SELECT
    gen_random_uuid(),
    lpad(to_hex(room), 32, '0')::uuid,
    n,
    'message ' || n || repeat(' and so on', n % 20)
FROM made
"""


class Recorder(Pool):
    """A pool that keeps its last statement."""

    last: tuple[str, tuple[object, ...]]

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        self.last = (statement.sql, args)
        return await super().fetch_all(statement, *args, deadline=deadline)


@pytest.mark.counts_pages
async def test_newest_page_touches_as_many_buffers_in_a_table_four_times_as_large(
    postgres_settings: PostgresSettings,
) -> None:
    connection = await connect(postgres_settings)
    pool = Recorder(postgres_settings)
    await connection.execute(MAKE_ROOMS)
    touched: dict[str, list[int]] = {name: [] for name in ROOMS}
    for first, last in ((1, 15_000), (15_001, 60_000)):
        await connection.execute(FILL, first, last)
        await connection.execute("VACUUM ANALYZE messages")
        for name, room_id in ROOMS.items():
            assert len((await Messages(pool).page(room_id, limit=50)).items) == 50
            sql, arguments = pool.last
            explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}"
            top = json.loads(await connection.fetchval(explained, *arguments))[0]["Plan"]
            touched[name].append(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
    planned_anew = {name: await _plans(connection, pool.last[0], room_id) for name, room_id in ROOMS.items()}
    await connection.close()
    await pool.close()
    assert all(count < BUFFERS for counts in touched.values() for count in counts), touched
    # One more level of the index is one more buffer, and the entries of a page may be on two leaves.
    assert all(large <= small + 2 for small, large in touched.values()), touched
    # PostgreSQL makes five custom plans before it keeps a generic one.
    assert planned_anew == dict.fromkeys(ROOMS, 5)


async def _plans(connection: Connection, sql: str, room_id: UUID) -> int:
    """The number of custom plans in twelve reads of newest pages."""
    await connection.reload_schema_state()  # forget the statement and its plan
    await connection.execute("DEALLOCATE ALL")
    for _ in range(12):
        await connection.fetch(sql, room_id, NEWEST, 51, 1)
    planned: int = await connection.fetchval(
        "SELECT custom_plans FROM pg_prepared_statements WHERE statement = $1", sql
    )
    return planned
