"""A second database, to import into what was exported, or what shall be compared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest

from hubbub import PostgresSettings, Settings
from hubbub.postgres import Pool, connect


@pytest.fixture
async def elsewhere(
    servers: Settings, administrator: PostgresSettings, template: str
) -> AsyncIterator[PostgresSettings]:
    """Another database, empty but for the tables."""
    name = f"elsewhere_{uuid4().hex}"
    admin = await connect(administrator)
    try:
        await admin.execute(f"CREATE DATABASE {name} OWNER {servers.postgres.user} TEMPLATE {template}")
        yield replace(servers.postgres, database=name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture
async def other(elsewhere: PostgresSettings) -> AsyncIterator[Pool]:
    pool = Pool(elsewhere)
    yield pool
    await pool.close()
