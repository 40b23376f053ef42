"""A context as `hubbub demo` makes it, on a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hubbub import Hub, PostgresSettings, Settings
from hubbub.cli.demo.chat_log import CONVERSATION, ChatLog, load, read
from hubbub.cli.demo.context import Context
from hubbub.passwords import LEAST_COST, Passwords
from hubbub.postgres import Pool
from hubbub.redis import Connection


@pytest.fixture
def settings(servers: Settings, postgres_settings: PostgresSettings) -> Settings:
    """The owner's: a demo has servers of its own."""
    return Settings(postgres=postgres_settings, redis=servers.redis)


@pytest.fixture
async def hub(settings: Settings) -> AsyncIterator[Hub]:
    async with Hub(settings, passwords=Passwords(cost=LEAST_COST)) as hub:
        yield hub


@pytest.fixture
async def context(settings: Settings, hub: Hub, pool: Pool, tmp_path: Path) -> AsyncIterator[Context]:
    redis = Connection(settings.redis)
    await redis.start()
    yield Context(settings, tmp_path, hub, pool, redis, user_count=5, show=lambda _: None)
    await redis.close()


@pytest.fixture
def conversation() -> Iterator[ChatLog]:
    """The log that comes with hubbub."""
    with CONVERSATION.open("rb") as file:
        yield read("conversation", file)


@pytest.fixture
async def loaded(context: Context, conversation: ChatLog) -> Context:
    """After the log was imported."""
    await load(context, conversation)
    return context
