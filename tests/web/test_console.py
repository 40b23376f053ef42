"""The console on a real server: access, content, and changes only if they are allowed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

import hubbub
from hubbub import Hub, Invalid, NewMessage, PostgresSettings, Room, Settings, User, new_id
from hubbub.events import KINDS, MEMBERSHIPS_CHANNEL, MessageSent
from hubbub.services.feed.announcements import sign
from hubbub.web import console
from hubbub.web.console_app import TokenLogin
from waiting import HANGS_AFTER_SECONDS
from web.serving import running

HOSTILE = "<script>alert(1)</script>\u202e\"'&"


@pytest.fixture
async def hub(servers: Settings, postgres_settings: PostgresSettings) -> AsyncIterator[Hub]:
    """A hub with the rights of an operator, which the figures need."""
    async with Hub(Settings(postgres=postgres_settings, redis=servers.redis)) as hub:
        yield hub


def http(port: int, path: str = "") -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}{path}", timeout=HANGS_AFTER_SECONDS)


@pytest.fixture
async def looking(hub: Hub) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a console that only reads."""
    async with running(console(hub, authorize=lambda _: True)) as port, http(port) as client:
        yield client


async def answer(client: httpx.AsyncClient, path: str) -> Any:  # noqa: ANN401
    found = await client.get(path)
    assert found.status_code == 200, found.text
    return found.json()


async def test_token_of_the_address_becomes_a_cookie(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "httpx")  # the client of this test writes addresses to its log
    login: TokenLogin

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        await login(scope, receive, send)

    async with running(app) as port, http(port) as client:
        login = TokenLogin(hub, port, allow_changes=False)
        assert (await client.get("/")).status_code == 403
        entered = await client.get(f"/?token={login.token}")
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        assert "; HttpOnly; SameSite=Lax" in entered.headers["set-cookie"]
        assert login.token not in entered.headers["set-cookie"]
        page = await client.get("/")
        assert page.status_code == 200
        assert login.token not in page.text
        for path in ("figures", "console.js", "icon.svg"):
            assert (await client.get(f"/{path}")).status_code == 200


@pytest.mark.parametrize("wrong", ["?token=", "?token=%00", "?token=%C3%A4%FF", "?token=" + "x" * 43, "?tokens=1"])
async def test_wrong_token_and_wrong_cookie_are_refused(
    hub: Hub, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr("hubbub.web.console_app.secrets.compare_digest", compare)
    login = TokenLogin(hub, 80, allow_changes=True)
    async with running(login) as port, http(port) as client:
        refused = await client.get(f"/{wrong}")
        assert refused.status_code == 403
        assert "set-cookie" not in refused.headers
        cookie = {b"cookie": b"hubbub-console-80=\xe4"}
        for path in ("/", "/figures", "/console.js", "/rooms/x/log", "/nothing"):
            assert (await client.get(path, headers=cookie)).status_code == 403, path
        revoking = await client.delete(f"/users/{new_id()}/sessions/x", headers=cookie)
        assert revoking.status_code == 403
    assert len(compared) == 7  # in constant time


async def test_every_answer_has_the_headers_that_keep_scripts_out(looking: httpx.AsyncClient) -> None:
    for path in (
        "/",
        "/console.js",
        "/plot.js",
        "/style.css",
        "/icon.svg",
        "/figures",
        "/rooms/x/log",
        "/nothing",
    ):
        headers = (await looking.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
    page = (await looking.get("/")).text
    assert "style=" not in page
    assert "onclick=" not in page


async def test_application_decides_who_may_look_below_its_mount(hub: Hub) -> None:
    asked: list[str] = []

    async def authorize(request: Request) -> bool:
        asked.append(request.url.path)
        return request.headers.get("x-admin") == "yes"

    app = Starlette(routes=[Mount("/admin/console", console(authorize=authorize))])
    app.state.hub = hub
    async with running(app) as port, http(port, "/admin/console") as client:
        for path in ("/", "/figures", "/console.js"):
            assert (await client.get(path)).status_code == 403
        admin = {"X-Admin": "yes"}
        page = await client.get("/", headers=admin)
        assert 'src="/admin/console/console.js"' in page.text
        assert (
            (await client.get("/console.js", headers=admin)).headers["content-type"].startswith("text/javascript")
        )
        assert (await client.get("/figures", headers=admin)).status_code == 200
    assert len(asked) == 6


async def test_former_name_of_authorize_works_and_one_of_both_is_needed(hub: Hub) -> None:
    with pytest.warns(DeprecationWarning, match="may= is now called authorize="):
        app = console(hub, may=lambda _: False)
    async with running(app) as port, http(port) as client:
        assert (await client.get("/")).status_code == 403
    with pytest.raises(Invalid) as refused:
        console(hub)
    assert refused.value.field == "authorize"


async def test_figures_follow_what_happens(looking: httpx.AsyncClient, hub: Hub, ada: User, room: Room) -> None:
    await answer(looking, "/figures")
    async with hub.presence.online(ada.id):
        await hub.messages.send(room.id, ada.id, "hello")
        await hub.sessions.create_session(ada.id)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            while True:
                await hub.typing.start(room.id, ada.id)
                figures = await answer(looking, "/figures")
                if figures["rooms"] and figures["typing"][0] and figures["points"][-1][1] is not None:
                    break
                await asyncio.sleep(0.1)
    assert figures["rooms"] == [[str(room.id), "engine-room", 1.0]]
    assert figures["redis"]["error"] is figures["postgresql"]["error"] is None
    state = figures["redis"]["state"]  # all tests share this server
    assert state["online"] >= 1
    assert state["sessions"] >= 1
    assert figures["postgresql"]["state"]["connections"] > 0
    assert figures["pool"]["limit"] == hub.settings.postgres.pool_size
    assert figures["statements"] is None


async def test_figures_have_followers_and_sends_of_all_processes(
    looking: httpx.AsyncClient,
    settings: Settings,
    ada: User,
    bob: User,
    room: Room,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Hub(settings) as one, Hub(settings) as other:
        async with one.follow(ada.id), other.follow(ada.id), other.follow(bob.id):
            async with asyncio.timeout(HANGS_AFTER_SECONDS):
                while True:
                    await other.messages.send(room.id, ada.id, "hello")
                    processes = (await answer(looking, "/figures"))["processes"]
                    if processes["followers"] == 3 and processes["sends_p99"]:
                        break
        assert processes["number"] == 2
        assert 0 < processes["sends_p50"] <= processes["sends_p99"] < HANGS_AFTER_SECONDS
    assert "raised" not in caplog.text  # the answers also reach processes that did not ask


async def test_forged_figures_are_ignored(looking: httpx.AsyncClient, hub: Hub) -> None:
    await answer(looking, "/figures")  # from here on the hub accepts figures of other processes
    forged = {"from": "x", "users": [], "figures": {"followers": 7, "sends": {}}, "asks": True}
    for payload in (msgspec.json.encode(forged), sign(b"the key of another", msgspec.json.encode(forged))):
        await hub._connection.execute("PUBLISH", MEMBERSHIPS_CHANNEL, payload)
    async with await hub.realtime.listen("after") as after:
        await hub.realtime.publish("after", "the forged ones have come before")
        await anext(after)
    assert hub._feed.figures().keys() == {""}
    assert (await answer(looking, "/figures"))["processes"]["followers"] == 0


async def test_server_that_refuses_is_named_beside_the_figures_of_the_other(settings: Settings) -> None:
    """The Redis user of an application may not read the figures of Redis."""
    async with Hub(settings) as hub, running(console(hub, authorize=lambda _: True)) as port, http(port) as client:
        figures = await answer(client, "/figures")
    assert "NOPERM" in figures["redis"]["error"]
    assert figures["postgresql"]["error"] is None


async def test_findings_are_those_of_doctor(looking: httpx.AsyncClient) -> None:
    report = await answer(looking, "/findings")
    assert [section["kind"] for section in report["sections"]] == ["postgresql", "redis", "together"]
    assert await answer(looking, "/findings") == report  # the report of the last minute


async def test_log_shows_entries_and_readers(
    looking: httpx.AsyncClient, hub: Hub, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    hostile = await hub.messages.send(room.id, ada.id, HOSTILE)
    gone = await hub.messages.send(room.id, ada.id, "to be deleted")
    await hub.receipts.mark_read(room.id, bob.id, up_to=hostile.seq)
    await hub.messages.delete(gone.id, by=ada.id)
    found = await answer(looking, f"/rooms/{room.id}/log")
    kinds = [entry["type"] for entry in found["entries"]]
    assert kinds == ["member_joined", "member_joined", "message_sent", "message_sent", "message_deleted"]
    assert found["entries"][2]["message"]["content"] == HOSTILE
    assert "to be deleted" not in str(found)
    assert found["readers"] == {str(hostile.id): {"user_ids": [str(bob.id)], "more": False}}
    assert found["users"] == {str(ada.id): "ada", str(bob.id): "bob"}
    assert found["older"] is None
    assert (await answer(looking, "/rooms/engine-room/log"))["room"]["id"] == str(room.id)


async def test_log_of_large_entries_ends_with_the_newest(
    looking: httpx.AsyncClient, hub: Hub, ada: User, room: Room
) -> None:
    drafts = [NewMessage("large", metadata={"a": "x" * 8_000}) for _ in range(45)]
    last = (await hub.messages.send_many(room.id, ada.id, drafts))[-1].seq
    found = await answer(looking, f"/rooms/{room.id}/log")
    assert [entry["seq"] for entry in found["entries"]] == [*range(last - 39, last + 1)]


def test_console_page_describes_every_change_in_a_log() -> None:
    script = (Path(hubbub.__file__).parent / "web/console_app/page/console.js").read_text()
    [table] = re.findall(r"^const CHANGES = \{\n(.*?)^\};", script, re.DOTALL | re.MULTILINE)
    changes = {str(event.__struct_config__.tag) for event in KINDS.values() if event is not MessageSent}
    assert set(re.findall(r"^  (\w+):", table, re.MULTILINE)) == changes


async def test_room_is_found_by_a_name_with_slashes(looking: httpx.AsyncClient, hub: Hub, ada: User) -> None:
    room = await hub.rooms.create("ops/log?#1", created_by=ada.id)
    assert (await answer(looking, "/rooms/ops%2Flog%3F%231/log"))["room"]["id"] == str(room.id)


async def test_websocket_is_refused(hub: Hub) -> None:
    async with running(console(hub, authorize=lambda _: True)) as port:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}/figures")
    assert refused.value.response.status_code == 403


async def test_log_goes_back_entry_by_entry_without_gap_or_repeat(
    looking: httpx.AsyncClient, hub: Hub, ada: User, room: Room
) -> None:
    for number in range(100):
        await hub.messages.send(room.id, ada.id, f"{number}")
    seqs: list[int] = []
    before = ""
    while True:
        found = await answer(looking, f"/rooms/{room.id}/log{before}")
        seqs = [entry["seq"] for entry in found["entries"]] + seqs
        if found["older"] is None:
            break
        before = f"?before={found['older']}"
    assert seqs == list(range(1, 102))


@pytest.mark.parametrize("before", ["", "-1", "x", "1e3", "9" * 30, "\u0663"])
async def test_log_before_no_seq_is_refused(looking: httpx.AsyncClient, room: Room, before: str) -> None:
    refused = await looking.get(f"/rooms/{room.id}/log", params={"before": before})
    assert (refused.status_code, refused.json()["field"]) == (422, "before")


@pytest.mark.parametrize(
    "path", ["/rooms/nowhere/log", "/rooms/01999999-0000-7000-8000-000000000000/log", "/users/none/sessions"]
)
async def test_unknown_room_or_user_is_not_found(looking: httpx.AsyncClient, path: str) -> None:
    assert (await looking.get(path)).status_code == 404


async def test_sessions_are_listed_without_tokens_and_other_data(
    looking: httpx.AsyncClient, hub: Hub, ada: User
) -> None:
    token = await hub.sessions.create_session(ada.id, {"device": HOSTILE, "csrf": "of the application"})
    for name in ("ada", "ada@example.org", str(ada.id)):
        found = await answer(looking, f"/users/{name}/sessions")
        assert [session["device"] for session in found["sessions"]] == [HOSTILE]
        assert token not in str(found)
        assert "of the application" not in str(found)


async def revoke(client: httpx.AsyncClient, user_id: UUID, origin: str | None) -> int:
    [session] = (await answer(client, f"/users/{user_id}/sessions"))["sessions"]
    headers = {} if origin is None else {"Origin": origin}
    return (await client.delete(f"/users/{user_id}/sessions/{session['id']}", headers=headers)).status_code


async def test_console_that_only_reads_revokes_nothing(looking: httpx.AsyncClient, hub: Hub, ada: User) -> None:
    token = await hub.sessions.create_session(ada.id)
    assert await revoke(looking, ada.id, str(looking.base_url).rstrip("/")) == 403
    assert await hub.sessions.get_session(token) is not None
    assert 'data-changes="no"' in (await looking.get("/")).text


async def test_session_is_revoked_from_the_own_page_only(hub: Hub, ada: User) -> None:
    token = await hub.sessions.create_session(ada.id)
    async with running(console(hub, authorize=lambda _: True, allow_changes=True)) as port, http(port) as client:
        assert await revoke(client, ada.id, None) == 403
        assert await revoke(client, ada.id, "https://evil.example") == 403
        assert await hub.sessions.get_session(token) is not None
        assert await revoke(client, ada.id, f"http://127.0.0.1:{port}") == 200
        assert await hub.sessions.get_session(token) is None
        own = {"Origin": f"http://127.0.0.1:{port}"}
        assert (await client.delete(f"/users/{ada.id}/sessions/x", headers=own)).status_code == 404
