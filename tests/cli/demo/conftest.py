"""A context as `hubbub demo` makes it, on the test's own database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hubbub import Hub, PostgresSettings, Settings
from hubbub.cli.demo.expected import CONVERSATION, Context, load, read
from hubbub.history import Refusals
from hubbub.history.lines import PlainLine
from hubbub.passwords import MIN_COST, Passwords
from hubbub.postgres import Pool


@pytest.fixture
def settings(servers: Settings, postgres_settings: PostgresSettings) -> Settings:
    """The settings of the owner, because a demo runs its own servers."""
    return Settings(postgres=postgres_settings, redis=servers.redis)


@pytest.fixture
async def hub(settings: Settings) -> AsyncIterator[Hub]:
    async with Hub(settings, passwords=Passwords(cost=MIN_COST)) as hub:
        yield hub


@pytest.fixture
def context(settings: Settings, hub: Hub, pool: Pool, tmp_path: Path) -> Context:
    return Context(settings, tmp_path, hub, pool, user_count=5, show=lambda _: None)


@pytest.fixture
def conversation() -> list[PlainLine]:
    """The log that comes with hubbub, of which every line is usable."""
    refusals = Refusals()
    with CONVERSATION.open("rb") as file:
        lines = list(read(file, refusals))
    assert refusals.count == 0
    return lines


@pytest.fixture
async def loaded(context: Context, conversation: list[PlainLine]) -> Context:
    """A context whose log was imported."""
    await load(context, "conversation", iter(conversation), Refusals())
    return context
