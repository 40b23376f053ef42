"""An application's own Alembic in the same database, set up as docs/migrations.md describes."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from alembic import op
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from hubbub import PostgresSettings, migrations
from hubbub.migrations import HEAD, REVISIONS
from hubbub.postgres import connect
from migrations.catalog import schema
from migrations.documents import blocks

HOOK, STUB = blocks("migrations.md", "python")

MODELS = f"""
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, Uuid

metadata = MetaData()
{STUB}
Table(
    "pets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("owner", Uuid, ForeignKey("users.id")),
)
"""

CONFIGURATION = """
[alembic]
script_location = %(here)s
prepend_sys_path = %(here)s
path_separator = os
"""

ENVIRONMENT = f"""
import asyncio
import os

from alembic import context
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from models import metadata
{HOOK}

def run(connection):
    context.configure(connection=connection, target_metadata=metadata, include_object=include_object)
    with context.begin_transaction():
        context.run_migrations()


async def main():
    engine = create_async_engine(os.environ["APPLICATION_URL"], poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()


asyncio.run(main())
"""

CREATE_PETS = """
import sqlalchemy as sa
from alembic import op

revision = "a1"
down_revision = None


def upgrade():
    op.create_table("pets", sa.Column("id", sa.Integer, primary_key=True))


def downgrade():
    op.drop_table("pets")
"""

GIVE_PETS_OWNERS = """
import sqlalchemy as sa
from alembic import op

revision = "a2"
down_revision = "a1"


def upgrade():
    op.add_column("pets", sa.Column("owner", sa.Uuid))
    op.create_foreign_key("pets_owner_fkey", "pets", "users", ["owner"], ["id"])


def downgrade():
    op.drop_column("pets", "owner")
"""


class Application:
    """A project with an alembic.ini, a metadata and two revisions."""

    def __init__(self, folder: Path, database: PostgresSettings) -> None:
        self.folder = folder
        self.database = database
        login = f"{quote(database.user)}:{quote(database.password or '')}"
        self.url = f"postgresql+asyncpg://{login}@{database.host}:{database.port}/{database.database}"
        (folder / "versions").mkdir()
        for name, text in {
            "alembic.ini": CONFIGURATION,
            "env.py": ENVIRONMENT,
            "models.py": MODELS,
            "script.py.mako": "",
            "versions/a1_pets.py": CREATE_PETS,
            "versions/a2_owners.py": GIVE_PETS_OWNERS,
        }.items():
            (folder / name).write_text(text, encoding="utf-8")

    async def alembic(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "alembic", "-c", str(self.folder / "alembic.ini"), *command),
            env={**os.environ, "APPLICATION_URL": self.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
        assert process.returncode == 0, output
        return output

    async def revision(self) -> str:
        connection = await connect(self.database)
        found = await connection.fetchval("SELECT version_num FROM alembic_version")
        await connection.close()
        return str(found)


@pytest.fixture
def application(tmp_path: Path, postgres_settings: PostgresSettings) -> Application:
    return Application(tmp_path, postgres_settings)


async def test_alembic_of_application_moves_only_its_own_revisions(
    application: Application, postgres_settings: PostgresSettings
) -> None:
    before = set(await schema(postgres_settings))
    await application.alembic("upgrade", "head")
    assert await application.revision() == "a2"
    assert (await migrations.status(postgres_settings)).current == HEAD
    await application.alembic("downgrade", "-1")
    assert await application.revision() == "a1"
    assert (await migrations.status(postgres_settings)).current == HEAD
    after = set(await schema(postgres_settings))
    assert before <= after
    assert all("pets" in line or "alembic_version" in line for line in after - before)


async def test_hubbub_moves_only_its_own_revisions_and_autogenerate_proposes_none_of_them(
    application: Application, postgres_settings: PostgresSettings
) -> None:
    await application.alembic("upgrade", "head")
    assert await migrations.down(postgres_settings, "0005") == list(reversed(REVISIONS[5:]))
    assert await application.revision() == "a2"
    assert await migrations.up(postgres_settings) == list(REVISIONS[5:])
    assert await application.revision() == "a2"
    assert "No new upgrade operations detected" in await application.alembic("check")


async def test_migration_inside_alembic_context_leaves_that_context_unchanged(
    empty_database: PostgresSettings,
) -> None:
    context = MigrationContext.configure(url="postgresql+asyncpg://")
    with Operations.context(context):
        assert await migrations.up(empty_database) == list(REVISIONS)
        assert op.get_context() is context


def test_list_of_tables_has_every_table_that_the_revisions_create() -> None:
    created = re.findall(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+)", migrations.sql(), re.MULTILINE)
    assert sorted(created) == sorted(migrations.TABLES)
