"""The plugin as an application uses it, by pytest in another project and process."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from hubbub import Settings

pytest_plugins = ["pytester"]

CONFIGURATION = """
    [pytest]
    addopts = -p pytest_hubbub
    asyncio_mode = {mode}
    asyncio_default_fixture_loop_scope = function
    filterwarnings = error
"""

APPLICATION_TESTS = """
    import pytest
    from hubbub.testing import LogEntry, delivery_errors


    @pytest.mark.asyncio
    @pytest.mark.parametrize("time", ["first", "second"])
    async def test_each_test_has_an_empty_chat(hub, time):
        ada = await hub.register("ada@example.org", "ada", "correct horse")
        assert await hub.sessions.list(ada.id) == []
        await hub.sessions.create_session(ada.id)
        room = await hub.rooms.create("engine-room", created_by=ada.id)
        async with hub.follow(ada.id) as feed:
            sent = await hub.messages.send(room.id, ada.id, "hello")
            event = await anext(feed)
            assert event.message == sent
        log = [LogEntry.of(entry) for entry in (await hub.messages.since(room.id, None)).items]
        received = [LogEntry.of(event)]
        assert not [*delivery_errors(log, received, after=event.seq - 1)]
        assert [*delivery_errors(log, received * 2, after=event.seq - 1)]


    @pytest.mark.asyncio
    async def test_redis_is_empty(hub):
        assert set(await hub._connection.execute("KEYS", "*")) <= {b"presence:checked"}  # by this hub


    def test_a_test_without_a_loop_has_settings(hubbub_settings, hubbub_database, hubbub_servers):
        assert hubbub_settings.postgres == hubbub_database
        assert hubbub_settings.redis == hubbub_servers.redis
"""

TEST_WITHOUT_FIXTURES = """
    import sys


    def test_nothing_is_imported_or_started():
        assert "pytest_hubbub" in sys.modules
        assert not [name for name in sys.modules if name == "hubbub" or name.startswith("hubbub.")]
        assert not {"asyncpg", "redis", "msgspec"} & set(sys.modules)
"""

CONFTEST_WITH_OTHER_SERVERS = """
    import asyncio

    import pytest
    from hubbub import Settings
    from hubbub.postgres import connect


    @pytest.fixture(scope="session")
    def hubbub_servers():
        return Settings.from_urls("{database}", "{redis}")


    @pytest.fixture(scope="session")
    def hubbub_template(hubbub_template):
        async def create_tables(settings):
            connection = await connect(settings)
            await connection.execute("CREATE TABLE notes (id bigint PRIMARY KEY)")
            await connection.close()

        asyncio.run(create_tables(hubbub_template.settings))
        return hubbub_template
"""

TESTS_OF_OTHER_TABLES = """
    from hubbub.postgres import connect


    async def test_tables_are_in_every_database(hubbub_database):
        connection = await connect(hubbub_database)
        assert await connection.fetchval("SELECT count(*) FROM notes") == 0
        await connection.close()
"""


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_each_test_of_an_application_has_an_empty_chat(pytester: pytest.Pytester, mode: str) -> None:
    pytester.makeini(CONFIGURATION.format(mode=mode))
    pytester.makepyfile(APPLICATION_TESTS)
    result = pytester.runpytest_subprocess("-p", "no:randomly", timeout=100)
    result.assert_outcomes(passed=4)


def test_each_worker_of_xdist_has_its_own_servers(pytester: pytest.Pytester) -> None:
    pytester.makeini(CONFIGURATION.format(mode="auto"))
    pytester.makepyfile(test_one=APPLICATION_TESTS, test_other=APPLICATION_TESTS)
    result = pytester.runpytest_subprocess("-n", "2", "--dist", "loadfile", timeout=100)
    result.assert_outcomes(passed=8)


def test_project_without_the_fixtures_imports_nothing_of_hubbub(pytester: pytest.Pytester) -> None:
    pytester.makeini(CONFIGURATION.format(mode="auto"))
    pytester.makepyfile(TEST_WITHOUT_FIXTURES)
    # pytest-randomly imports polyfactory if it is installed, as with Litestar, and polyfactory imports msgspec.
    result = pytester.runpytest_subprocess("-p", "no:randomly", timeout=100)
    result.assert_outcomes(passed=1)


def test_fixtures_use_the_servers_that_an_application_names(pytester: pytest.Pytester, servers: Settings) -> None:
    database, redis = servers.postgres, servers.redis
    pytester.makeini(CONFIGURATION.format(mode="auto"))
    pytester.makeconftest(
        CONFTEST_WITH_OTHER_SERVERS.format(
            database=f"postgresql://{database.user}:{database.password}@127.0.0.1:{database.port}/{database.database}",
            redis=f"redis://:{redis.password}@127.0.0.1:{redis.port}/9",
        )
    )
    pytester.makepyfile(test_chat=APPLICATION_TESTS, test_tables=TESTS_OF_OTHER_TABLES)
    result = pytester.runpytest_subprocess("-p", "no:randomly", timeout=100)
    result.assert_outcomes(passed=5)


def test_plugin_is_an_entry_point_of_pytest() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"pytest_hubbub": "pytest_hubbub"}
