"""Alembic's environment of the shop: its own tables, and none of hubbub's."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from alembic import context
from sqlalchemy import Connection

from hubbub.hub import find_settings
from hubbub.migrations import TABLES

sys.path.insert(0, str(Path(__file__).parents[1]))
from own_tables import Base, engine_of


def include_object(_object: Any, name: str | None, type_: str, *_: Any) -> bool:  # noqa: ANN401
    """hubbub migrates its tables itself. Without this, `--autogenerate` would propose to drop them."""
    return not (type_ == "table" and name in TABLES)


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, include_object=include_object)
    with context.begin_transaction():
        context.run_migrations()


async def run() -> None:
    engine = engine_of(find_settings().postgres)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(run())
