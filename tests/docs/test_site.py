"""The site: `make docs` builds it without a broken link, and a browser loads nothing from other hosts."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext, async_playwright

from browser.chat import ARGUMENTS, find_chromium
from waiting import HANGS_AFTER_SECONDS

ROOT = Path(__file__).parents[2]
MILLISECONDS = HANGS_AFTER_SECONDS * 1000
# Addresses of scripts, styles, pictures and fonts. A link for readers is `<a href>`.
ASSET = re.compile(
    r"<(?:script|img|link|iframe|source|video)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
)


pytestmark = pytest.mark.timeout(360)  # the fixture builds the site, with all cores in use by other tests


@pytest.fixture(scope="module")
def site() -> Path:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm, from which the site has the script of its diagrams")
    built = subprocess.run(
        [sys.executable, ROOT / "docs/build.py"], capture_output=True, text=True, timeout=300, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return ROOT / ".venv/docs/site"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:  # noqa: ANN401
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
async def context() -> AsyncIterator[BrowserContext]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium: install Debian's package chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS, timeout=MILLISECONDS)
        context = await browser.new_context(color_scheme="dark")
        context.set_default_timeout(MILLISECONDS)
        yield context
        await browser.close()


def test_no_page_has_an_asset_of_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {asset for page in pages if page.is_file() for asset in ASSET.findall(page.read_text())} == set()


async def test_browser_asks_no_other_host_and_finds_no_error(address: str, context: BrowserContext) -> None:
    page = await context.new_page()
    requested: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))

    await page.goto(f"{address}log/")
    await page.wait_for_selector("div.mermaid")  # a `pre` until it is drawn
    assert await page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
    await page.keyboard.press("Control+k")
    await page.keyboard.type("idempotency key")
    await page.wait_for_selector("text=Retries >> visible=true")

    assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []
    assert problems == []


@pytest.mark.parametrize("width", [390, 820, 1440])
async def test_page_is_no_wider_than_the_screen(address: str, context: BrowserContext, width: int) -> None:
    page = await context.new_page()
    await page.set_viewport_size({"width": width, "height": 900})
    for path in ("", "permissions/", "performance/", "schema/", "reference/hub/"):
        await page.goto(address + path)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
