"""Fixtures for the tests of an application that is built on hubbub; pytest finds them by itself (docs/testing.md).

A module beside the package, because whatever is inside of it imports all of hubbub: pytest loads its plugins in
every run, also of projects that only happen to be installed beside hubbub. Nothing is imported and no server is
started before a test asks for a fixture.
"""

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
    """PostgreSQL and Valkey that are started when the first test asks and end with the run.

    With pytest-xdist each worker has its own. Override it in a conftest.py to use others: the user must be allowed
    to create databases, and the Redis database is emptied in front of each test.
    """
    from hubbub.testing import serving  # noqa: PLC0415 - see above

    with serving(tmp_path_factory.mktemp("hubbub")) as settings:
        yield settings


@pytest.fixture(scope="session")
def hubbub_template(hubbub_servers: Settings) -> Iterator[Template]:
    """The migrated database that those of the tests are copied from."""
    from hubbub.testing import Template  # noqa: PLC0415 - see above
    from hubbub.testing.blocking import run  # noqa: PLC0415 - see above

    template = run(Template.make(hubbub_servers.postgres))
    yield template
    run(template.drop(hubbub_servers.postgres))


@pytest.fixture
def hubbub_database(hubbub_servers: Settings, hubbub_template: Template) -> Iterator[PostgresSettings]:
    """A migrated database of this test's own, empty, dropped when the test is over."""
    from hubbub.testing.blocking import run  # noqa: PLC0415 - see above
    from hubbub.testing.databases import drop  # noqa: PLC0415 - see above

    database = run(hubbub_template.copy(hubbub_servers.postgres))
    yield database
    run(drop(database, hubbub_servers.postgres))


@pytest.fixture
def hubbub_settings(hubbub_servers: Settings, hubbub_database: PostgresSettings) -> Settings:
    """Both servers as this test sees them: a database of its own, and a Redis without a key."""
    from hubbub.testing import empty  # noqa: PLC0415 - see above
    from hubbub.testing.blocking import run  # noqa: PLC0415 - see above

    run(empty(hubbub_servers.redis))
    return replace(hubbub_servers, postgres=hubbub_database)


@async_fixture
async def hub(hubbub_settings: Settings) -> AsyncIterator[Hub]:
    """A started hub on `hubbub_settings`, with passwords at the lowest cost. Closed when the test is over."""
    from hubbub import Hub, Passwords  # noqa: PLC0415 - see above
    from hubbub.passwords import LEAST_COST  # noqa: PLC0415 - see above

    async with Hub(hubbub_settings, passwords=Passwords(cost=LEAST_COST)) as hub:
        yield hub
