"""Commands and streams of events over HTTP, with the same answers as over a WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import httpx
import pytest

from hubbub import Hub, Room, Settings, User, new_id
from hubbub.web import COOKIE, Gateway, Limits, Refused
from hubbub.web import gateway as gateways
from waiting import HANGS_AFTER_SECONDS
from web.serving import serving


@pytest.fixture
async def port(hub: Hub) -> AsyncIterator[int]:
    async with serving(Gateway(hub)) as port:
        yield port


@pytest.fixture
async def token(hub: Hub, ada: User) -> str:
    return await hub.sessions.create_session(ada.id)


@pytest.fixture
async def http(port: int, token: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client(port, token) as http:
        yield http


def client(port: int, token: str | None = None) -> httpx.AsyncClient:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}/chat", headers=headers, timeout=HANGS_AFTER_SECONDS
    )


async def test_commands_and_reads_answer_as_on_a_websocket(
    hub: Hub, http: httpx.AsyncClient, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    frame = {"type": "send", "room_id": str(room.id), "content": "hello", "id": str(new_id())}
    sent = await http.post("/commands", json=frame)
    assert sent.status_code == 200
    assert sent.headers["cache-control"] == "no-store"
    assert (await http.post("/commands", json=frame)).json() == sent.json()
    page = (await http.get(f"/rooms/{room.id}/messages", params={"limit": 1})).json()
    assert page["items"] == [sent.json()]
    assert [user["username"] for user in page["users"]] == ["ada"]
    assert (await http.get("/rooms", params={"limit": 10})).json()["items"][0]["room"]["id"] == str(room.id)
    assert (await http.get(f"/rooms/{room.id}")).json()["role"] == "admin"
    assert len((await http.get(f"/rooms/{room.id}/members")).json()["users"]) == 2
    assert (await http.get("/public_rooms")).json()["items"][0]["id"] == str(room.id)
    assert (await http.get("/me")).json()["username"] == "ada"
    found = (await http.get("/users", params={"prefix": "bo"})).json()
    assert found == (await http.get("/users", params={"user_ids": f"{bob.id},{new_id()}"})).json()
    assert [user["username"] for user in found["items"]] == ["bob"]


async def test_sessions_are_listed_and_revoked(hub: Hub, http: httpx.AsyncClient, token: str, ada: User) -> None:
    other = await hub.sessions.create_session(ada.id)
    listed = (await http.get("/sessions")).json()
    [id] = [one["id"] for one in listed["items"] if one["id"] != listed["current"]]
    assert (await http.delete(f"/sessions/{id}")).json() == {"revoked": True}
    assert (await http.delete(f"/sessions/{id}")).json() == {"revoked": False}
    assert await hub.sessions.get_session(other) is None
    assert await hub.sessions.get_session(token)


READ = b'{"type": "read", "room_id": "01970000-0000-7000-8000-000000000001", "up_to": 1}'


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/commands", b"", 422),
        ("POST", "/commands", b"{", 422),
        ("POST", "/commands", b"\xff", 422),
        ("POST", "/commands", b"[" * 10_000, 422),
        ("POST", "/commands", b'{"type": "poll"}', 422),
        ("POST", "/commands", b'{"type": "watch", "room_ids": [1]}', 422),
        ("POST", "/events?watch=x", b"{}", 422),
        ("POST", "/commands", b'{"type": "auth", "token": "x"}', 422),
        ("POST", "/commands", b'{"type": "send"}', 422),
        ("POST", "/commands", READ, 403),
        ("POST", "/commands", b" " * 65_537, 413),
        ("POST", "/events", b"[]", 422),
        ("POST", "/events", b'{"positions": {"x": "y"}}', 422),
        ("GET", "/rooms?limit=x", None, 422),
        ("GET", "/rooms?limit=0", None, 422),
        ("GET", "/rooms/x", None, 422),
        ("GET", "/rooms/01970000-0000-7000-8000-000000000001/messages", None, 403),
        ("GET", "/users", None, 422),
        ("GET", "/commands", None, 405),
        ("HEAD", "/events", None, 405),
        ("POST", "/events", b'{"device": " "}', 422),
        ("POST", "/events?watch=" + ",".join(["01970000-0000-7000-8000-000000000001"] * 11), b"{}", 422),
        ("GET", "/nothing", None, 404),
    ],
)
async def test_bad_request_has_a_typed_answer(
    http: httpx.AsyncClient, method: str, path: str, body: bytes | None, status: int
) -> None:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    response = await http.request(method, path, content=body, headers=headers)
    assert response.status_code == status, response.text
    if status != 404:
        assert response.headers["content-type"] == "application/problem+json"


async def test_cookie_needs_an_own_origin_to_change_anything(port: int, token: str, ada: User) -> None:
    own = f"http://127.0.0.1:{port}"
    frame = {"type": "create", "name": "launch"}
    async with client(port) as http:
        for origin, status in ((own, 200), (None, 401), ("https://evil.example.org", 403), ("null", 403)):
            headers = {"Cookie": f"{COOKIE}={token}"} | ({} if origin is None else {"Origin": origin})
            assert (await http.post("/commands", json=frame, headers=headers)).status_code == status, origin
        cookie = {"Cookie": f"{COOKIE}={token}"}
        assert (await http.get("/me", headers=cookie)).status_code == 200
        for site, status in (("same-origin", 200), ("cross-site", 401)):
            assert (await http.get("/me", headers=cookie | {"Sec-Fetch-Site": site})).status_code == status
        simple = cookie | {"Origin": own, "Content-Type": "text/plain"}
        assert (await http.post("/commands", content=json.dumps(frame), headers=simple)).status_code == 415
        assert (await http.get("/me")).status_code == 401
        assert (await http.get("/me", headers={"Authorization": "Bearer x.y"})).status_code == 401


@pytest.fixture
def long_redis_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine Redis may answer after the usual deadline, and the gateway then accepts the request."""
    monkeypatch.setattr("hubbub.services.rate_limits.FAIL_OPEN_SECONDS", HANGS_AFTER_SECONDS)


@pytest.mark.usefixtures("long_redis_deadline")
async def test_requests_of_a_user_are_limited_over_all_processes(hub: Hub, settings: Settings, token: str) -> None:
    limits = Limits(frames_per_second=0.01, burst=3)
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(Hub(settings))
        ports = [await stack.enter_async_context(serving(Gateway(one, limits=limits))) for one in (hub, other)]
        http, elsewhere = [await stack.enter_async_context(client(port, token)) for port in ports]
        for one in (http, elsewhere, http):
            assert (await one.get("/me")).status_code == 200
        refused = await elsewhere.get("/me")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 1


@pytest.mark.usefixtures("long_redis_deadline")
async def test_bans_are_asked_about_within_the_rate(hub: Hub, token: str) -> None:
    asked = 0

    def banned(user_ids: Collection[UUID]) -> Collection[UUID]:
        nonlocal asked
        asked += 1
        return user_ids

    gateway = Gateway(hub, banned=banned, limits=Limits(frames_per_second=0.01, burst=3))
    async with serving(gateway) as port, client(port, token) as http:
        answers = [await http.get("/me"), *[await http.post("/events", json={}) for _ in range(3)]]
    assert [answer.status_code for answer in answers] == [403, 403, 403, 429]
    assert asked == 3


class Stream:
    """The frames of a stream, and its newest id."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.id: str | None = None

    async def next(self, *types: str) -> dict[str, Any]:
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            found: dict[str, Any] | None = None
            async for line in self._lines:
                if line.startswith("data: "):
                    frame = json.loads(line.removeprefix("data: "))
                    found = frame if frame["type"] in types else found
                elif line.startswith("id: "):
                    self.id = line.removeprefix("id: ")
                elif found is not None:
                    return found
        raise AssertionError("the stream has ended")

    async def silences(self, number: int) -> None:
        """Return after this many comments."""
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            async for line in self._lines:
                number -= line == ":"
                if not number:
                    return
        raise AssertionError("the stream has ended")


async def test_stream_resumes_from_positions(hub: Hub, http: httpx.AsyncClient, ada: User, room: Room) -> None:
    async with http.stream("POST", "/events", json={"device": "tablet"}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        stream = Stream(response.aiter_lines())
        ready = await stream.next("ready")
        assert ready["resumed"] is False
        await hub.messages.send(room.id, ada.id, "one")
        event = await stream.next("message_sent")
        assert event["message"]["content"] == "one"
        assert stream.id is None
    await hub.messages.send(room.id, ada.id, "two")
    positions = {**ready["positions"], str(room.id): event["cursor"]}
    async with http.stream("POST", "/events", json={"positions": positions}) as response:
        stream = Stream(response.aiter_lines())
        assert (await stream.next("ready"))["resumed"] is True
        assert (await stream.next("message_sent"))["message"]["content"] == "two"


async def test_stream_has_the_presence_of_watched_rooms(
    hub: Hub, http: httpx.AsyncClient, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with http.stream("POST", f"/events?watch={room.id}", json={}) as response:
        stream = Stream(response.aiter_lines())
        await stream.next("ready")
        async with hub.presence.online(bob.id):
            assert (await stream.next("presence_changed"))["user_id"] == str(bob.id)
            answer = await http.post("/commands", json={"type": "watch", "room_ids": [str(room.id)]})
            assert set(answer.json()["online"]) == {str(ada.id), str(bob.id)}


async def test_plain_event_source_resumes_from_its_last_id(
    hub: Hub, http: httpx.AsyncClient, ada: User, room: Room
) -> None:
    quiet = await hub.rooms.create("quiet", created_by=ada.id)
    async with http.stream("GET", "/events") as response:
        stream = Stream(response.aiter_lines())
        await stream.next("ready")
        await hub.messages.send(room.id, ada.id, "one")
        await stream.next("message_sent")
        assert stream.id is not None
    await hub.messages.send(quiet.id, ada.id, "two")
    async with http.stream("GET", "/events", headers={"Last-Event-ID": stream.id}) as response:
        stream = Stream(response.aiter_lines())
        ready = await stream.next("ready")
        assert ready["resumed"] is True
        assert (await stream.next("message_sent"))["message"]["content"] == "two"
    for odd in (b"x", b"AAAA", b"\xc3\xa9"):
        async with http.stream("GET", "/events", headers=[(b"last-event-id", odd)]) as response:
            assert (await Stream(response.aiter_lines()).next("ready"))["resumed"] is False


async def test_event_source_in_too_many_rooms_forgets_its_last_id(
    hub: Hub, http: httpx.AsyncClient, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubbub.web.http.MAX_ROOMS_IN_ID", 1)
    async with http.stream("GET", "/events") as response:
        stream = Stream(response.aiter_lines())
        await stream.next("ready")
        assert stream.id
        await hub.rooms.create("second", created_by=ada.id)
        await stream.next("member_joined")
        assert stream.id == ""  # so that a browser sends no id instead of an old one


async def test_event_sources_come_back_at_different_times(hub: Hub, token: str, room: Room) -> None:
    pauses: list[int] = []
    async with AsyncExitStack() as stack, AsyncExitStack() as server:
        port = await server.enter_async_context(serving(gateway := Gateway(hub, spread_seconds=6_000_000)))
        lines = []
        for _ in range(4):
            http = await stack.enter_async_context(client(port, token))
            response = await stack.enter_async_context(http.stream("GET", "/events"))
            lines.append(response.aiter_lines())
        for stream in map(Stream, lines):
            await stream.next("ready")
        await gateway.close()
        for one in lines:
            pauses += [int(line.removeprefix("retry: ")) async for line in one if line.startswith("retry: ")]
    assert len(pauses) == len(set(pauses)) == 4  # of 6 billion values
    assert all(0 <= pause <= 6_000_000_000 for pause in pauses)


async def test_stream_ends_with_its_session_and_with_the_server(
    hub: Hub, token: str, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 0.05)
    async with AsyncExitStack() as server:
        # Without a deadline the server would wait for an open stream indefinitely.
        port = await server.enter_async_context(serving(Gateway(hub), timeout_graceful_shutdown=None))
        async with client(port, token) as http, http.stream("POST", "/events", json={}) as response:
            stream = Stream(response.aiter_lines())
            await stream.next("ready")
            other = await hub.sessions.create_session(ada.id)
            bearer = {"Authorization": f"Bearer {other}"}
            async with http.stream("POST", "/events", json={}, headers=bearer) as second:
                ending = Stream(second.aiter_lines())
                await ending.next("ready")
                await hub.sessions.delete_session(other)
                assert (await ending.next("bye"))["code"] == 4401
            await server.aclose()
            assert (await stream.next("bye"))["code"] == 1012


async def test_stream_ends_with_a_server_that_waits_for_a_short_time_only(
    hub: Hub, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 24)  # longer than the server waits
    async with AsyncExitStack() as server:
        port = await server.enter_async_context(serving(Gateway(hub), timeout_graceful_shutdown=20))
        async with client(port, token) as http, http.stream("POST", "/events", json={}) as response:
            stream = Stream(response.aiter_lines())
            await stream.next("ready")
            await server.aclose()
            assert (await stream.next("bye"))["code"] == 1012


async def test_silent_stream_has_comments(
    hub: Hub, token: str, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 0.05)
    async with serving(Gateway(hub, ping_seconds=0.1)) as port, AsyncExitStack() as stack:
        http = await stack.enter_async_context(client(port, token))
        response = await stack.enter_async_context(http.stream("POST", "/events", json={}))
        stream = Stream(response.aiter_lines())
        await stream.next("ready")
        await stream.silences(3)


async def test_path_that_does_not_exist_gets_a_problem(http: httpx.AsyncClient) -> None:
    for path in ("", "/", "/nothing", "/rooms/1/2/3"):
        answer = await http.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:hubbub:not-found"
        assert "there is no path /chat" in answer.json()["detail"]


APP = "https://app.example.org"


async def test_pages_of_named_origins_may_send_requests_and_read_the_answers(
    hub: Hub, token: str, room: Room
) -> None:
    async with serving(Gateway(hub, origins={APP})) as port, client(port) as http:
        asking = {"Origin": APP, "Access-Control-Request-Method": "POST"}
        for path in ("/commands", "/events"):
            allowed = await http.options(path, headers=asking)
            assert allowed.status_code == 204
            assert allowed.headers["access-control-allow-origin"] == APP
            assert {"Authorization", "Content-Type"} <= set(
                allowed.headers["access-control-allow-headers"].split(", ")
            )
            assert "POST" in allowed.headers["access-control-allow-methods"]
        bearer = {"Origin": APP, "Authorization": f"Bearer {token}"}
        found = await http.get("/me", headers=bearer)
        refused = await http.get("/me", headers=bearer | {"Authorization": "Bearer x"})
        missing = await http.get("/nothing", headers=bearer)
        async with http.stream("POST", "/events", json={}, headers=bearer) as stream:
            answers = {200: found, 401: refused, 404: missing}
            for answer in (*answers.values(), stream):
                assert answer.headers["access-control-allow-origin"] == APP
                assert "Origin" in answer.headers["vary"]
            await Stream(stream.aiter_lines()).next("ready")
        assert {status: answer.status_code for status, answer in answers.items()} == {one: one for one in answers}


async def test_pages_of_other_origins_may_not(hub: Hub, token: str) -> None:
    async with serving(Gateway(hub, origins={APP})) as port, client(port, token) as http:
        for origin in ("https://evil.example.org", "null", APP + ".evil.example.org"):
            asked = await http.options(
                "/commands", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
            )
            sent = await http.post("/commands", json={"type": "me"}, headers={"Origin": origin})
            assert (asked.status_code, sent.status_code) == (405, 403)
            for answer in (asked, sent):
                assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await http.options("/commands", headers={"Origin": APP})).status_code == 405  # not a preflight


async def test_error_of_the_application_is_a_problem_and_is_reported(hub: Hub, token: str) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["exception"])))
    fault = "no rights"

    def may(*_: object) -> bool:
        if fault == "teapot":
            raise Refused(418, "a teapot")
        raise RuntimeError(fault)

    def banned(user_ids: Collection[UUID]) -> Collection[UUID]:
        if fault == "no bans":
            raise RuntimeError(fault)
        return ()

    async with serving(Gateway(hub, authorize=may, banned=banned)) as port, client(port, token) as http:
        answers = [await http.get("/me"), await http.post("/commands", json={"type": "me"})]
        fault = "no bans"
        answers += [await http.get("/me"), await http.post("/events", json={})]
        for answer in answers:
            assert (answer.status_code, answer.json()["type"]) == (500, "urn:hubbub:server-error")
        fault = "teapot"
        assert (await http.get("/me")).json()["detail"] == "a teapot"
    assert reported == ["no rights"] * 2 + ["no bans"] * 2
