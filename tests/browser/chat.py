"""The chat of examples/chat in a process of its own, and windows of a browser that show it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from playwright._impl._api_structures import SetCookieParam
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page

from browser.shown import entry_of, shown_errors
from faults.checker import stored_in
from hubbub import Settings
from hubbub.testing import LogEntry
from hubbub.web import COOKIE
from waiting import HANGS_AFTER_SECONDS, until_it_answers

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat"

# Without these Chromium asks the network for updates. Without a sandbox it also runs as root in a container.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

RECORD_ENTRIES = """
    window.entries = [];
    Object.defineProperty(window, "chat", {
        get() { return this.client; },
        set(client) {
            this.client = client;
            client.on("entry", (entry) => window.entries.push(entry));
        },
    });
"""

NETWORK_ERRORS = ("net::ERR_", "Failed to load resource", "WebSocket connection to")


def find_chromium() -> Path | None:
    """An installed browser."""
    installed = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next((Path(path) for path in installed if path is not None), None)


class Server:
    """The chat on a port of its own, which it keeps when it is started again."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            self.port: int = reserved.getsockname()[1]

    async def start(self) -> None:
        command = ["-m", "uvicorn", "--app-dir", str(EXAMPLE), "--port", str(self.port), "--log-level", "warning"]
        options = ["--ws", "websockets-sansio", "--ws-max-size", "65536", "--timeout-graceful-shutdown", "60"]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            *options,
            "app:app",
            cwd=self._folder,
            env={**self._settings.to_env(), "PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            stderr=asyncio.subprocess.PIPE,
        )
        async with httpx.AsyncClient() as http:

            async def answers() -> bool:
                assert self._process is not None
                assert self._process.returncode is None
                try:
                    return (await http.get(f"http://127.0.0.1:{self.port}/api/me")).status_code == 401
                except httpx.TransportError:
                    return False

            await until_it_answers(answers)

    async def end(self, by: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(by)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            _, errors = await self._process.communicate()
        self._process = None
        assert b"Traceback" not in errors, errors.decode()


class Window:
    """A window in which one user is logged in."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._note_problem)
        page.set_default_timeout(HANGS_AFTER_SECONDS * 1000)

    def _note_problem(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(words in message.text for words in NETWORK_ERRORS):
            self.problems.append(message.text)

    @property
    def field(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    async def open(self, room: str) -> None:
        """Open a room of the list by its name."""
        name = self.page.locator("strong", has_text=room)
        # Without the mouse: the row may be redrawn between press and release, and then there is no click.
        await self.page.locator(".sidebar .rooms button").filter(has=name).first.dispatch_event("click")
        await self.page.locator(".title h1").filter(has_text=room).wait_for()
        await self.until("chat.rooms.some((room) => location.hash === '#' + room.id && room.isLoaded)")

    async def write(self, words: str) -> None:
        await self.field.fill(words)
        await self.field.press("Enter")

    async def until(self, condition: str, argument: object = None) -> None:
        # The page's policy forbids `eval`, with which Playwright's own method of waiting would work.
        async def holds() -> bool:
            return bool(await self.page.evaluate(condition, argument))

        await until_it_answers(holds)

    async def sees(self, words: str) -> Locator:
        """The message with this text, once it is on the screen."""
        message = self.page.locator(".message").filter(has=self.page.locator(".text", has_text=words)).last
        await message.wait_for()
        return message

    async def fails(self, words: str) -> None:
        """Wait until the chat reports that a change was not made."""
        await self.page.get_by_role("alert").filter(has_text=words).wait_for()

    async def is_live(self) -> None:
        await self.until("window.chat?.state === 'live'")

    async def shown(self, room_id: UUID) -> list[dict[str, Any]]:
        """The messages of a room that the client shows."""
        messages: list[dict[str, Any]] = await self.page.evaluate("(id) => chat.room(id).messages", str(room_id))
        return messages

    async def on_screen(self) -> list[str]:
        """The ids of the messages that have an element, from top to bottom."""
        script = "(nodes) => nodes.map((node) => node.dataset.id)"
        ids: list[str] = await self.page.locator(".message").evaluate_all(script)
        return ids

    async def entries(self, room_id: UUID) -> list[LogEntry]:
        """The entries of this room's log that were received as events."""
        entries: list[dict[str, Any]] = await self.page.evaluate("window.entries")
        return [entry_of(event) for event in entries if event["room_id"] == str(room_id)]


async def errors_of(settings: Settings, room_id: UUID, windows: Iterable[Window]) -> list[str]:
    """Differences between the log in PostgreSQL and the entries that the windows received and show."""
    stored = await stored_in(settings.postgres)
    errors: list[str] = []
    for window in windows:
        errors += shown_errors(stored, room_id, await window.entries(room_id), await window.shown(room_id))
    return errors


async def everything_sent(settings: Settings, room_id: UUID, windows: Iterable[Window]) -> None:
    """Wait until each window has sent all typed messages and shows the newest message of the log."""
    for window in windows:
        await window.is_live()
        await window.until("(id) => chat.room(id).messages.every((one) => one.status === 'sent')", str(room_id))
    stored = await stored_in(settings.postgres)
    newest = [str(entry.message_id) for entry in stored.logs[room_id] if entry.kind == "sent"][-1]
    for window in windows:
        await window.until("([room, id]) => chat.room(room).messages.at(-1)?.id === id", [str(room_id), newest])
        # An acknowledgement may come before the event.
        await window.until("(id) => window.entries.some((entry) => entry.message?.id === id)", newest)


class Browsers:
    """Contexts of one browser. Each has its own cookies and storage, like a separate machine."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.windows: list[Window] = []

    async def context(self, address: str, token: str | None = None, **options: Any) -> BrowserContext:  # noqa: ANN401
        context = await self._browser.new_context(**{"viewport": {"width": 1180, "height": 760}, **options})
        await context.add_init_script(RECORD_ENTRIES)
        if token is not None:
            # A secure cookie, which Chromium also sends to this machine without TLS.
            cookie = {
                "name": COOKIE,
                "value": token,
                "url": "https://127.0.0.1/",
                "secure": True,
                "httpOnly": True,
            }
            await context.add_cookies([cast(SetCookieParam, cookie)])
        return context

    async def window(self, context: BrowserContext, address: str) -> Window:
        window = Window(await context.new_page(), address)
        self.windows.append(window)
        await window.page.goto(address)
        return window
