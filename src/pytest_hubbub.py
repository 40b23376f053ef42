"""Fixtures for the tests of an application that is built on hubbub. pytest finds them by itself (docs/testing.md).

They are a module beside the package, because importing a module inside it imports all of hubbub. pytest loads its
plugins in every run, also in projects that only have hubbub installed. So the fixtures import what they need, and
no server starts before a test asks for one.
"""
# ruff: noqa: PLC0415 - see above

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:  # then anyio's plugin runs it, which takes fixtures as they are
    async_fixture = pytest.fixture  # type: ignore[assignment]  # one interface, two sets of overloads

if TYPE_CHECKING:
    from hubbub import Hub, PostgresSettings, Settings
    from hubbub.testing import Template


@pytest.fixture(scope="session")
def hubbub_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """PostgreSQL and Valkey. They start when the first test asks for them, and end with the run.

    With pytest-xdist each worker has its own. Override the fixture in a conftest.py to use other servers. Their
    user must be allowed to create databases, and the Redis database is emptied before each test.
    """
    from hubbub.testing import serving

    with serving(tmp_path_factory.mktemp("hubbub")) as settings:
        yield settings


@pytest.fixture(scope="session")
def hubbub_template(hubbub_servers: Settings) -> Iterator[Template]:
    """The migrated database that the databases of the tests are copied from."""
    from hubbub.testing import Template, drop, run

    template = run(Template.make(hubbub_servers.postgres))
    yield template
    run(drop(template.settings, hubbub_servers.postgres))


@pytest.fixture
def hubbub_database(hubbub_servers: Settings, hubbub_template: Template) -> Iterator[PostgresSettings]:
    """A migrated, empty database for this test alone, dropped after it."""
    from hubbub.testing import drop, run

    database = run(hubbub_template.copy(hubbub_servers.postgres))
    yield database
    run(drop(database, hubbub_servers.postgres))


@pytest.fixture
def hubbub_settings(hubbub_servers: Settings, hubbub_database: PostgresSettings) -> Settings:
    """Both servers as this test sees them: a database of its own and an empty Redis."""
    from hubbub.testing import empty, run

    run(empty(hubbub_servers.redis))
    return replace(hubbub_servers, postgres=hubbub_database)


@async_fixture
async def hub(hubbub_settings: Settings) -> AsyncIterator[Hub]:
    """A started hub on `hubbub_settings`, with passwords at the lowest cost. Closed after the test."""
    from hubbub import Hub, Passwords
    from hubbub.passwords import MIN_COST

    async with Hub(hubbub_settings, passwords=Passwords(cost=MIN_COST)) as hub:
        yield hub
