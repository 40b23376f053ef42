from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hubbub import PostgresSettings
from hubbub.postgres import Pool
from postgres.notes import TABLE, Observer


@pytest.fixture
async def observer(empty_database: PostgresSettings) -> AsyncIterator[Observer]:
    """An observer of the database outside of the pool. The table `notes` exists."""
    observer = await Observer.connect(empty_database)
    await observer.connection.execute(TABLE)
    yield observer
    await observer.connection.close()


@pytest.fixture
def small(empty_database: PostgresSettings, observer: Observer) -> PostgresSettings:
    """The settings of a pool of two connections."""
    return replace(empty_database, pool_size=2)


@pytest.fixture
def long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the connection even if a busy machine takes long to cancel a statement or to roll back."""
    monkeypatch.setattr("hubbub.postgres.connection.CANCEL_GRACE_SECONDS", 30)
    monkeypatch.setattr("hubbub.postgres.transaction.ROLLBACK_GRACE_SECONDS", 30)


@pytest.fixture
async def pool(small: PostgresSettings) -> AsyncIterator[Pool]:
    """Two connections to a database with the table `notes`."""
    pool = Pool(small)
    yield pool
    await pool.close()
