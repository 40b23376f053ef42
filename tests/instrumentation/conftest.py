"""A hub whose doings are remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hubbub import Hub, Settings
from instrumentation.recording import Recording


@pytest.fixture
def told() -> Recording:
    return Recording()


@pytest.fixture
async def hub(settings: Settings, told: Recording) -> AsyncIterator[Hub]:
    async with Hub(settings, instrumentation=told) as hub:
        yield hub
