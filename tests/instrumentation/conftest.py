"""A hub with an instrumentation that records all reports."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hubbub import Hub, Settings
from instrumentation.recording import Recording


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
async def hub(settings: Settings, recording: Recording) -> AsyncIterator[Hub]:
    async with Hub(settings, instrumentation=recording) as hub:
        yield hub
