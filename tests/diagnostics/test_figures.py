"""The slowest statements, from a server with the extension pg_stat_statements, and from others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from commands import execute
from hubbub import Hub, PostgresSettings, migrations
from hubbub.diagnostics.figures import SlowStatement, slowest
from hubbub.embedded import Servers
from hubbub.postgres import Pool
from rights import superuser


async def slowest_as(settings: PostgresSettings) -> list[SlowStatement] | None:
    pool = Pool(settings)
    try:
        return await slowest(pool)
    finally:
        await pool.close()


async def test_server_without_the_extension_has_no_statements(
    pool: Pool, postgres_settings: PostgresSettings, administrator: PostgresSettings
) -> None:
    assert await slowest(pool) is None
    in_database = replace(administrator, database=postgres_settings.database)
    await execute(in_database, "CREATE EXTENSION pg_stat_statements")
    assert await slowest(pool) is None  # the server has not loaded it


async def test_statements_are_shown_without_values(tmp_path: Path) -> None:
    async with Servers(tmp_path, fsync=False) as settings:
        administrator = superuser(settings.postgres, tmp_path)
        await execute(administrator, "ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
    async with Servers(tmp_path, fsync=False) as settings:
        await migrations.up(settings.postgres)
        administrator = replace(superuser(settings.postgres, tmp_path), database=settings.postgres.database)
        await execute(
            administrator,
            'CREATE SCHEMA "of statistics"',
            'CREATE EXTENSION pg_stat_statements SCHEMA "of statistics"',
            f'GRANT USAGE ON SCHEMA "of statistics" TO {settings.postgres.user}',
            "CREATE ROLE someone PASSWORD 'never to be shown'",
        )
        async with Hub(settings) as hub:
            ada = await hub.users.create("ada@example.org", "ada", "not a hash")
            await hub.rooms.create("engine-room", created_by=ada.id)
        await execute(settings.postgres, "SELECT count(*) FROM users WHERE username = 'never to be shown'")
        found = await slowest_as(settings.postgres)
        assert found is not None
        assert [one.total for one in found] == sorted((one.total for one in found), reverse=True)
        assert all(one.longest >= one.mean > 0 and one.calls > 0 for one in found)
        everything = await slowest_as(administrator)
        for text in [one.text or "" for one in [*found, *(everything or [])]]:
            assert "never to be shown" not in text
            assert "PASSWORD" not in text
