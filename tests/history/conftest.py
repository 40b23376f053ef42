"""A second database, for the import of an export and for comparisons."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest

from hubbub import PostgresSettings, Settings
from hubbub.postgres import Pool, connect


@pytest.fixture
async def other_settings(
    servers: Settings, administrator: PostgresSettings, template: str
) -> AsyncIterator[PostgresSettings]:
    """Another database, with empty tables."""
    name = f"other_{uuid4().hex}"
    admin = await connect(administrator)
    try:
        await admin.execute(f"CREATE DATABASE {name} OWNER {servers.postgres.user} TEMPLATE {template}")
        yield replace(servers.postgres, database=name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture
async def other_pool(other_settings: PostgresSettings) -> AsyncIterator[Pool]:
    pool = Pool(other_settings)
    yield pool
    await pool.close()
