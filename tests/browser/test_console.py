"""The console in Chromium: live figures, hostile names as text, sessions that are revoked, and its picture."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from browser.chat import Browsers, Window
from hubbub import Hub, PostgresSettings, Room, Settings, User
from hubbub.web.console_app import TokenLogin
from web.serving import running

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "console.png"
HOSTILE = "<img src=x onerror=alert(1)>\u202egnirts"

Open = Callable[..., Awaitable[Window]]


@pytest.fixture
async def hub(servers: Settings, postgres_settings: PostgresSettings) -> AsyncIterator[Hub]:
    """A hub with the rights of an operator, which the figures need."""
    async with Hub(Settings(postgres=postgres_settings, redis=servers.redis)) as hub:
        yield hub


@pytest.fixture
async def open_console(hub: Hub, browsers: Browsers) -> AsyncIterator[Open]:
    """Open a window at the address that `hubbub console` prints."""
    login = TokenLogin(hub, 80, allow_changes=True)
    async with running(login) as port, AsyncExitStack() as stack:

        async def open_console(**options: Any) -> Window:  # noqa: ANN401
            address = f"http://127.0.0.1:{port}/"
            context = await browsers.context(address, **options)
            stack.push_async_callback(context.close)
            window = await browsers.window(context, f"{address}?token={login.token}")
            await window.page.locator("#state", has_text="live").wait_for()
            assert window.page.url == address
            return window

        yield open_console


async def test_console_shows_hostile_names_as_text_and_revokes_a_session(
    open_console: Open, hub: Hub, ada: User, bob: User
) -> None:
    room = await hub.rooms.create(HOSTILE[:100], created_by=ada.id)
    await hub.room_users.add(room.id, bob.id)
    message = await hub.messages.send(room.id, ada.id, HOSTILE)
    await hub.receipts.mark_read(room.id, bob.id, up_to=message.seq)
    token = await hub.sessions.create_session(ada.id, {"device": HOSTILE})
    page = (await open_console()).page
    # Without the mouse: the button is replaced each second, also between press and release.
    await page.locator("#busiest button", has_text="<img src=x").dispatch_event("click")
    entry = page.locator("#log li", has_text="<img src=x")
    await entry.get_by_text("read by bob").wait_for()
    assert await page.locator("img[src=x]").count() == 0
    assert await entry.locator("p bdi").first.inner_text() == HOSTILE
    await entry.get_by_role("button", name="ada").click()
    session = page.locator("#sessions li", has_text="<img src=x")
    await session.get_by_role("button", name="Revoke").click()
    await session.wait_for(state="detached")
    assert await hub.sessions.get_session(token) is None


TALK = [
    ("launch", "Grace Hopper", "The countdown is at T minus two hours."),
    ("launch", "Ada", "Fuel pressure is steady. The left valve was exchanged this morning."),
    ("launch", "Linus", "Weather says go."),
    ("engine-room", "Ada", "Which valve?"),
    ("kitchen", "Bob", "There is cake."),
    ("لوحة القيادة", "Sara", "مرحبا بالجميع"),
]


async def test_screenshot_of_the_console_of_a_busy_chat(open_console: Open, hub: Hub, tmp_path: Path) -> None:
    """The picture of the docs. `SCREENSHOTS=1 make test ARGS="tests/browser -k screenshot"` makes a new one."""
    people: dict[str, User] = {}
    rooms: dict[str, Room] = {}
    for name in dict.fromkeys(name for _, name, _ in TALK):
        people[name] = await hub.users.create(None, name.split()[0].lower(), "not a hash")
        await hub.sessions.create_session(people[name].id, {"device": "Firefox on Linux"})
    linus = people["Linus"]
    await hub.sessions.create_session(linus.id, {"device": "Phone"})
    for title in dict.fromkeys(title for title, _, _ in TALK):
        rooms[title] = await hub.rooms.create(title, created_by=people["Ada"].id)
        await hub.room_users.add_many(rooms[title].id, [user.id for user in people.values()])
    is_over = asyncio.Event()

    async def talk() -> None:
        turn = 0
        while not is_over.is_set():
            for title, name, words in TALK[: 2 + turn % 5]:
                message = await hub.messages.send(rooms[title].id, people[name].id, words)
            await hub.receipts.mark_read(message.room_id, linus.id, up_to=message.seq)
            await hub.typing.start(rooms["launch"].id, people["Bob"].id)
            turn += 1
            await asyncio.sleep(0.1 + 0.05 * (turn // 20 % 4))

    async with AsyncExitStack() as stack:
        for user in people.values():
            await stack.enter_async_context(hub.presence.online(user.id))
            await stack.enter_async_context(hub.follow(user.id))
        talking = asyncio.create_task(talk())
        light = await open_console(viewport={"width": 1200, "height": 680})
        dark = await open_console(viewport={"width": 1200, "height": 680}, color_scheme="dark")
        narrow = await open_console(viewport={"width": 800, "height": 600})
        windows = {"console": light, "dark": dark, "narrow": narrow}
        shows = 40 if "SCREENSHOTS" in os.environ else 0
        await asyncio.sleep(shows)
        is_over.set()
        await talking
        for name, window in windows.items():
            page = window.page
            await page.locator("#room_form input").fill("launch")
            await page.locator("#room_form button").click()
            await page.locator("#log li").first.wait_for()
            await page.locator("#user_form input").fill("linus")
            await page.locator("#user_form button").click()
            await page.locator("#sessions li").first.wait_for()
            await page.locator("#findings .finding").first.wait_for()
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            await page.evaluate("scrollTo(0, 0)")
            path = IMAGE if window is light and shows else tmp_path / f"{name}.png"
            await page.screenshot(path=path)
            assert path.stat().st_size < 120_000
            if "SCREENSHOTS_IN" in os.environ:
                await page.screenshot(path=Path(os.environ["SCREENSHOTS_IN"]) / f"{name}.png", full_page=True)
