"""A hub with an instrumentation that records all reports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hubbub import Hub, Options, Settings
from instrumentation.recording import Recording
from rights import as_redis_user


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
async def hub(settings: Settings, recording: Recording) -> AsyncIterator[Hub]:
    on_any_channel = replace(settings, redis=as_redis_user(settings.redis, "on-any-channel"))
    # The read mark of an author would be announced a second after a message.
    options = Options(mark_read_on_send=False)
    async with Hub(on_any_channel, options=options, instrumentation=recording) as hub:
        yield hub
