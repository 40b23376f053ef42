from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hubbub import Hub, Options, PostgresSettings, Settings
from hubbub.postgres import Pool
from waiting import HANGS_AFTER_SECONDS

# Longer than any test, so that everything that is delivered was announced.
# Read marks of authors would come a second after a message, between the events that a test expects.
NO_HEARTBEAT = Options(follow_heartbeat_seconds=600, typing_seconds=600, mark_read_on_send=False)
FAST_HEARTBEAT = Options(follow_heartbeat_seconds=0.05, mark_read_on_send=False)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with a long connect timeout. On a busy machine twenty connections at once may take over 2 s."""
    return replace(settings, postgres=replace(settings.postgres, connect_timeout_seconds=30))


@pytest.fixture(autouse=True)
def long_wait_for_subscriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that has entered without its subscriptions gets a `Missed` when Redis confirms them."""
    monkeypatch.setattr("hubbub.services.feed.followers.CONFIRM_SECONDS", HANGS_AFTER_SECONDS)


@pytest.fixture
async def pool(postgres_settings: PostgresSettings) -> AsyncIterator[Pool]:
    """A pool of the owner of the tables, who may lock them and delete rows that a restored database has lost."""
    pool = Pool(postgres_settings)
    await pool.open()
    yield pool
    await pool.close()


@pytest.fixture
def options() -> Options:
    """The options of `hub` and `elsewhere`. A test module may have its own."""
    return NO_HEARTBEAT


@pytest.fixture
async def hub(settings: Settings, options: Options, no_task_is_left: None) -> AsyncIterator[Hub]:
    """A process of the chat that compares no heads, so that everything it delivers live was announced."""
    async with Hub(settings, options=options) as hub:
        yield hub


@pytest.fixture
async def elsewhere(settings: Settings, options: Options, no_task_is_left: None) -> AsyncIterator[Hub]:
    """Another process like the first."""
    async with Hub(settings, options=options) as hub:
        yield hub


@pytest.fixture
async def comparing(settings: Settings, no_task_is_left: None) -> AsyncIterator[Hub]:
    """A process that compares heads twenty times a second."""
    async with Hub(settings, options=FAST_HEARTBEAT) as hub:
        yield hub


@pytest.fixture
async def without_redis(settings: Settings, no_task_is_left: None) -> AsyncIterator[Hub]:
    """A process that cannot reach Redis, so that its changes are not announced."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening
        redis = replace(
            settings.redis, host="127.0.0.1", port=closed.getsockname()[1], connect_timeout_seconds=0.2
        )
        async with Hub(replace(settings, redis=redis), options=FAST_HEARTBEAT) as hub:
            yield hub
