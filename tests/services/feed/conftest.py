from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hubbub import Hub, Options, PostgresSettings, Settings
from hubbub.postgres import Pool

# Longer than any test: what is delivered was rung for.
NEVER = Options(follow_heartbeat_seconds=600)
OFTEN = Options(follow_heartbeat_seconds=0.05)


@pytest.fixture
async def pool(postgres_settings: PostgresSettings) -> AsyncIterator[Pool]:
    """The owner's, who locks tables and takes away what a restored database has lost."""
    pool = Pool(postgres_settings)
    await pool.open()
    yield pool
    await pool.close()


@pytest.fixture
def options() -> Options:
    """Of `hub` and `elsewhere`; a module of tests may have its own."""
    return NEVER


@pytest.fixture
async def hub(settings: Settings, options: Options, no_task_is_left: None) -> AsyncIterator[Hub]:
    """A process of the chat that compares no heads: what it delivers live, it was told."""
    async with Hub(settings, options=options) as hub:
        yield hub


@pytest.fixture
async def elsewhere(settings: Settings, options: Options, no_task_is_left: None) -> AsyncIterator[Hub]:
    """Another process, as the first."""
    async with Hub(settings, options=options) as hub:
        yield hub


@pytest.fixture
async def watchful(settings: Settings, no_task_is_left: None) -> AsyncIterator[Hub]:
    """A process that compares heads twenty times a second."""
    async with Hub(settings, options=OFTEN) as hub:
        yield hub


@pytest.fixture
async def mute(settings: Settings, no_task_is_left: None) -> AsyncIterator[Hub]:
    """A process that cannot reach Redis: what it does, nobody is told."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        redis = replace(
            settings.redis, host="127.0.0.1", port=closed.getsockname()[1], connect_timeout_seconds=0.2
        )
        async with Hub(replace(settings, redis=redis), options=OFTEN) as hub:
            yield hub
