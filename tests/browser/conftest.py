"""A browser, the chat, and a network between them."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import async_playwright

from browser.chat import ARGUMENTS, Browsers, Server, Window, find_chromium
from browser.network import Network
from hubbub import Hub, Room, Settings, User
from waiting import HANGS_AFTER_SECONDS

Login = Callable[..., Awaitable[Window]]


@pytest.fixture
async def server(settings: Settings, tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(settings, tmp_path)
    await server.start()
    yield server
    await server.end(signal.SIGTERM)


@pytest.fixture
async def network(server: Server) -> AsyncIterator[Network]:
    async with Network("127.0.0.1", server.port) as network:
        yield network


@pytest.fixture
async def browsers() -> AsyncIterator[Browsers]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium: install Debian's package chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=ARGUMENTS, timeout=HANGS_AFTER_SECONDS * 1000
        )
        browsers = Browsers(browser)
        yield browsers
        await browser.close()
    # Violations of the Content-Security-Policy and errors of scripts are among the problems.
    assert [problem for window in browsers.windows for problem in window.problems] == []


@pytest.fixture
async def log_in(browsers: Browsers, network: Network, hub: Hub) -> Login:
    """Open a window in which this user is logged in, on a machine of its own."""

    async def log_in(user: User, **options: Any) -> Window:  # noqa: ANN401
        address = f"http://127.0.0.1:{network.port}/"
        token = await hub.sessions.create_session(user.id, {"device": "tests"})
        window = await browsers.window(await browsers.context(address, token, **options), address)
        await window.is_live()
        return window

    return log_in


@pytest.fixture
async def shared_room(hub: Hub, room: Room, bob: User) -> Room:
    await hub.room_users.add(room.id, bob.id)
    return room
