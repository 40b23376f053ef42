"""Databases whose rooms are distributed according to the catalog of Citus."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import execute
from hubbub import PostgresSettings

CATALOG = Path(__file__).with_name("catalog.sql")


@pytest.fixture
async def recorded(postgres_settings: PostgresSettings, administrator: PostgresSettings) -> PostgresSettings:
    """A migrated database with the catalog of Citus, in which no row moves."""
    await execute(postgres_settings, CATALOG.read_text())
    # Without the library, an owner may not set its parameters.
    show_shards = (
        f"ALTER DATABASE {postgres_settings.database} SET citus.show_shards_for_app_name_prefixes TO 'hubbub'"
    )
    await execute(administrator, show_shards)
    return postgres_settings
