"""A stage as `hubbub demo` makes it, on a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hubbub import Hub, PostgresSettings, Settings
from hubbub.cli._demo.conversation import made_up
from hubbub.cli._demo.people import People
from hubbub.cli._demo.stage import Stage
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
async def stage(settings: Settings, hub: Hub, pool: Pool) -> AsyncIterator[Stage]:
    redis = Connection(settings.redis)
    await redis.start()
    yield Stage(
        settings=settings,
        hub=hub,
        pool=pool,
        redis=redis,
        log=made_up(150),
        users=5,
        tell=lambda _: None,
        people=People(hub.users),
    )
    await redis.close()
