"""The example of a login at another provider, which runs in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from examples.provider import CLIENT_ID, CLIENT_SECRET, Provider, serving_provider
from examples.test_examples import EXAMPLES, running
from hubbub import Hub, Settings
from ports import free_port
from waiting import HANGS_AFTER_SECONDS, until_it_answers


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with serving_provider(free_port()) as provider:
        yield provider


class Browser:
    """A browser that keeps cookies and follows the redirects between the chat and the provider."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.cookies: dict[str, str] = {}
        self.http = httpx.AsyncClient(timeout=HANGS_AFTER_SECONDS)

    async def get(self, url: str) -> httpx.Response:
        headers = {}
        if url.startswith("/"):
            url = self.origin + url
        if url.startswith(self.origin):
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        response = await self.http.get(url, headers=headers)
        for line in response.headers.get_list("set-cookie"):
            assert {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(line.split("; "))
            for name, morsel in SimpleCookie(line).items():
                self.cookies[name] = morsel.value
                if morsel["max-age"] == "0":
                    del self.cookies[name]
        return response

    async def log_in(self) -> httpx.Response:
        response = await self.get("/login")
        while "location" in response.headers and not response.headers["location"].endswith("/me"):
            response = await self.get(response.headers["location"])
        return response if response.is_error else await self.get("/me")


@pytest.fixture
async def browser(settings: Settings, provider: Provider, tmp_path: Path) -> AsyncIterator[Browser]:
    port = free_port()
    environment = {
        "OAUTH_ISSUER": provider.issuer,
        "OAUTH_CLIENT_ID": CLIENT_ID,
        "OAUTH_CLIENT_SECRET": CLIENT_SECRET,
    }
    arguments = (
        "-m",
        "uvicorn",
        "--app-dir",
        EXAMPLES,
        "--port",
        str(port),
        "--log-level",
        "warning",
        "oauth:app",
    )
    async with running(settings, *arguments, folder=tmp_path, environment=environment):
        browser = Browser(f"http://127.0.0.1:{port}")
        async with browser.http:

            async def answers() -> bool:
                try:
                    return (await browser.get("/me")).status_code == 401
                except httpx.TransportError:
                    return False

            await until_it_answers(answers)
            yield browser


async def test_user_of_a_provider_has_one_account_whatever_changes_there(
    browser: Browser, provider: Provider, hub: Hub
) -> None:
    await hub.users.create("ada@example.org", "ada", "!")  # the name and the email of another person
    provider.claims = {
        "sub": "42",
        "preferred_username": "ada",
        "name": "Ada Lovelace",
        "email": "ada@example.org",
        "picture": "https://pictures.example.org/ada.png",
    }
    first = (await browser.log_in()).json()
    assert first["username"].startswith("ada-")
    assert (first["display_name"], first["email"]) == ("Ada Lovelace", None)
    assert browser.cookies.keys() == {"__Host-session"}
    assert await hub.authenticate(first["username"], "") is None
    provider.claims = {"sub": "42", "preferred_username": "countess"}
    assert (await browser.log_in()).json() == first
    provider.claims = {"sub": "43", "name": "\N{ZERO WIDTH SPACE}", "picture": "javascript:alert(1)"}
    other = (await browser.log_in()).json()
    assert other["id"] != first["id"]
    assert other["username"].startswith("user-")


async def test_callback_is_refused_in_another_browser_and_for_a_used_or_invented_code(
    browser: Browser, provider: Provider
) -> None:
    provider.claims = {"sub": "42"}
    begun = await browser.get("/login")
    back = (await browser.get(begun.headers["location"])).headers["location"]
    stranger = Browser(browser.origin)
    async with stranger.http:
        assert (await stranger.get(back)).status_code == 403
        await stranger.get("/login")
        assert (await stranger.get(back)).status_code == 403
    state = parse_qs(urlsplit(back).query)["state"][0]
    kept = dict(browser.cookies)
    assert (await browser.get(f"/callback?code=invented&state={state}")).status_code == 401
    assert (await browser.get("/callback?error=access_denied")).status_code == 403
    assert (await browser.get(back)).status_code == 303
    browser.cookies = kept
    assert (await browser.get(back)).status_code == 401
