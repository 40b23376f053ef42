from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hubbub import PostgresSettings
from hubbub.postgres import Pool
from postgres.notes import TABLE, Watch


@pytest.fixture
async def watch(empty_database: PostgresSettings) -> AsyncIterator[Watch]:
    """Looks at the database from outside of the pool. The table `notes` is there."""
    watch = await Watch.on(empty_database)
    await watch.connection.execute(TABLE)
    yield watch
    await watch.connection.close()


@pytest.fixture
def small(empty_database: PostgresSettings, watch: Watch) -> PostgresSettings:
    """A pool of two connections."""
    return replace(empty_database, pool_size=2)


@pytest.fixture
async def pool(small: PostgresSettings) -> AsyncIterator[Pool]:
    """Two connections to a database with the table `notes`."""
    pool = Pool(small)
    yield pool
    await pool.close()
