"""The tutorial, followed step by step in its own virtual environment."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright

from browser.chat import ARGUMENTS, find_chromium
from docs.blocks import ROOT, Block, blocks, matches, run_shell
from waiting import HANGS_AFTER_SECONDS, until_it_answers

pytestmark = pytest.mark.timeout(480)  # an installation, with all cores in use by other tests
MILLISECONDS = HANGS_AFTER_SECONDS * 1000
PAGE = ROOT / "docs/tutorial.md"
SOURCES = ("pyproject.toml", "README.md", "LICENSE")


class Reader:
    """A reader of the tutorial, with a folder, a shell, and a clone of the project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clone = folder / "hubbub"
        clone.mkdir()
        for name in SOURCES:
            shutil.copy(ROOT / name, clone / name)
        for name in ("src", "examples"):
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        path = f"{folder / '.venv/bin'}:{os.environ['PATH']}"
        kept = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "SSL_", "HOME"))}
        self.env = {**kept, "PATH": path, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            self.port = reserved.getsockname()[1]
        self.printed = ""

    async def do(self, block: Block) -> None:
        if block.title is not None:
            (self.folder / block.title).write_text(block.code)
        elif block.language == "sh":
            self.printed = await run_shell(self.here(block.code), self.folder, self.env)
        elif block.language == "text":
            assert matches(self.printed, block.code), (
                f"{block} shows\n{block.code}\nbut this is printed:\n{self.printed}"
            )
        else:
            pytest.fail(f"{block} is of a kind that this test does not know")

    def here(self, code: str) -> str:
        """The code with a free port, because the port of the page may be taken."""
        return code.replace("8000", str(self.port))

    async def _answers(self) -> bool:
        with suppress(ConnectionRefusedError):
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.close()
            await writer.wait_closed()
            return True
        return False

    @asynccontextmanager
    async def serving(self, block: Block) -> AsyncIterator[str]:
        """Run a block whose last command serves."""
        *before, command = self.here(block.code).splitlines()
        await run_shell("\n".join(before), self.folder, self.env)
        process = await asyncio.create_subprocess_exec(*command.split(), cwd=self.folder, env=self.env)
        try:
            await until_it_answers(self._answers)
            yield f"http://127.0.0.1:{self.port}"
        finally:
            process.terminate()
            await process.wait()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium: install Debian's package chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS, timeout=MILLISECONDS)
        yield browser
        await browser.close()


async def log_in(browser: Browser, address: str, name: str, password: str) -> Page:
    """Open a window with its own cookies."""
    page = await browser.new_page(viewport={"width": 380, "height": 260})
    page.set_default_timeout(MILLISECONDS)
    await page.goto(address)
    await page.fill("[name=name]", name)
    await page.fill("[name=password]", password)
    await page.click("button")
    await page.wait_for_selector("h1:text('lounge')")
    return page


async def write(page: Page, text: str) -> None:
    await page.fill("[name=text]", text)
    await page.press("[name=text]", "Enter")


async def test_tutorial_leads_to_a_chat_in_two_windows(tmp_path: Path, browser: Browser) -> None:
    reader = Reader(tmp_path)
    serving = []
    try:
        for block in blocks(PAGE):
            if not block.code.endswith("uvicorn app:app --port 8000\n"):
                await reader.do(block)
                continue
            serving.append(block)
            async with reader.serving(block) as address:
                ada = await log_in(browser, address, "ada", "correct horse")
                bob = await log_in(browser, address, "bob", "battery staple")
                if len(serving) == 1:
                    await bob.wait_for_selector("li:text('ada: Is there coffee?')")
                    await write(bob, "Fresh!")
                    await ada.wait_for_selector("li:text('bob: Fresh!')")
                    if (folder := os.environ.get("TUTORIAL_PICTURES")) is not None:
                        for name, window in (("ada", ada), ("bob", bob)):
                            await window.screenshot(path=Path(folder) / f"{name}.png")
                else:
                    await write(ada, "/me waves")
                    await bob.wait_for_selector("li:text('ada: * waves *')")
                    await write(bob, "/roll")
                    await ada.wait_for_selector("li:text('bob: rolls')")
                    await write(bob, "/nothing")
                    await bob.wait_for_selector("li:text('(not sent: there is no command /nothing)')")
        assert len(serving) == 2
    finally:
        if shutil.which("hubbub", path=reader.env["PATH"]):
            await run_shell("hubbub down", tmp_path, reader.env)
