"""`hubbub.web` in applications on Starlette, FastAPI and Litestar, which httpx calls without a network."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import httpx
import litestar
import pytest
from fastapi import Depends, FastAPI, WebSocket
from litestar.datastructures import State
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from hubbub import (
    Conflict,
    Forbidden,
    Hub,
    HubbubError,
    Invalid,
    NotAMember,
    NotFound,
    RateLimited,
    SchemaMismatch,
    Session,
    Unavailable,
    User,
    errors,
    web,
)
from hubbub.web import problems

HOST = "https://chat.example.org"
SECRET = "postgres-7.internal:5432 password=tiger"
ERRORS: dict[HubbubError, int] = {
    NotFound("room", UUID(int=1)): 404,
    Conflict("username"): 409,
    Invalid("content", "must not be empty"): 422,
    NotAMember(UUID(int=1), UUID(int=2)): 403,
    Forbidden("change this room", "it needs the role admin"): 403,
    RateLimited(6.2): 429,
    Unavailable("postgresql", SECRET): 503,
    Unavailable("redis", SECRET, outcome_unknown=True, retryable=False): 503,
    SchemaMismatch("0001", "0002", SECRET): 500,
    HubbubError(SECRET): 500,
}


def failing_starlette(error: Exception) -> Any:  # noqa: ANN401
    async def fail(_: Request) -> None:
        raise error

    return Starlette(routes=[Route("/", fail)], exception_handlers=web.exception_handlers)


def failing_fastapi(error: Exception) -> Any:  # noqa: ANN401
    app = FastAPI(exception_handlers=web.exception_handlers)

    @app.get("/")
    async def fail() -> None:
        raise error

    return app


def failing_litestar(error: Exception) -> Any:  # noqa: ANN401
    @litestar.get("/")
    async def fail() -> None:
        raise error

    return litestar.Litestar([fail], exception_handlers=web.litestar_exception_handlers)


every_framework = pytest.mark.parametrize("failing", [failing_starlette, failing_fastapi, failing_litestar])


def client(app: Any) -> httpx.AsyncClient:  # noqa: ANN401
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOST)


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
@every_framework
async def test_error_becomes_a_problem_without_the_names_of_servers(failing: Any, error: HubbubError) -> None:  # noqa: ANN401
    async with client(failing(error)) as http:
        response = await http.get("/")
    told = response.json()
    assert response.status_code == told["status"] == ERRORS[error]
    assert response.headers["content-type"].startswith("application/problem+json")
    assert told["type"].startswith("urn:hubbub:")
    assert told["title"]
    assert told["detail"]
    assert not [word for word in SECRET.split() if word in response.text + str(response.headers)]


def test_every_error_has_an_answer_of_its_own() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HubbubError)]
    assert {*kinds} - {SchemaMismatch} <= problems._ANSWERS.keys()
    assert {type(error) for error in ERRORS} >= {*kinds}


def test_problem_has_the_fields_that_a_client_needs() -> None:
    assert web.problem(Invalid("content", "must not be empty")).field == "content"
    assert web.problem(RateLimited(6.2)).headers["Retry-After"] == "7"
    assert web.problem(RateLimited(0.0)).headers["Retry-After"] == "1"
    assert web.problem(Unavailable("redis", "gone")).headers["Retry-After"] == "1"
    lasting = web.problem(Unavailable("redis", "gone", outcome_unknown=True, retryable=False))
    assert "Retry-After" not in lasting.headers
    assert lasting.outcome_unknown
    assert "unknown" in lasting.detail


def test_server_error_is_logged_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    web.problem(SchemaMismatch("0001", "0002", "migrate"))
    [record] = caplog.records
    assert (record.name, record.levelname) == ("hubbub.web", "ERROR")
    assert "0002" in record.getMessage()
    caplog.clear()


def test_cookie_is_kept_from_scripts_and_other_sites() -> None:
    token = "aZ09_-" * 8
    assert web.session_cookie(token) == f"__Host-session={token}; Path=/; Secure; HttpOnly; SameSite=Lax"
    assert "; Max-Age=3600;" in web.session_cookie(token, max_age_seconds=3_600)
    assert web.session_cookie(None).startswith("__Host-session=; Max-Age=0; ")
    for value in ("", "a;b", "a b", "a\r\nSet-Cookie: x=y", "é"):
        with pytest.raises(Invalid, match="token"):
            web.session_cookie(value)


def chat_on_fastapi(hub: Hub) -> Any:  # noqa: ANN401
    app = FastAPI(exception_handlers=web.exception_handlers)
    app.state.hub = hub

    @app.api_route("/session", methods=["GET", "POST", "DELETE"])
    async def session(session: Annotated[Session, Depends(web.current_session)]) -> Session:
        return session

    @app.get("/user")
    async def user(user: Annotated[User, Depends(web.current_user)]) -> User:
        return user

    return app


def chat_on_starlette(hub: Hub) -> Any:  # noqa: ANN401
    async def session(request: Request) -> JSONResponse:
        return JSONResponse({"id": (await web.current_session(request)).id})

    async def user(request: Request) -> JSONResponse:
        return JSONResponse({"id": str((await web.current_user(request)).id)})

    routes = [Route("/session", session, methods=["GET", "POST", "DELETE"]), Route("/user", user)]
    app = Starlette(routes=routes, exception_handlers=web.exception_handlers)
    app.state.hub = hub
    return app


def chat_on_litestar(hub: Hub) -> Any:  # noqa: ANN401
    @litestar.route("/session", http_method=["GET", "POST", "DELETE"], status_code=200)
    async def session(request: litestar.Request[Any, Any, Any]) -> Session:
        return await web.current_session(request)

    @litestar.get("/user")
    async def user(request: litestar.Request[Any, Any, Any]) -> User:
        return await web.current_user(request)

    return litestar.Litestar(
        [session, user], exception_handlers=web.litestar_exception_handlers, state=State({"hub": hub})
    )


@pytest.fixture(params=[chat_on_fastapi, chat_on_starlette, chat_on_litestar])
async def http(request: pytest.FixtureRequest, hub: Hub) -> AsyncIterator[httpx.AsyncClient]:
    async with client(request.param(hub)) as http:
        yield http


@pytest.fixture
async def ada(hub: Hub) -> User:
    return await hub.users.create("ada@example.org", "ada", "hash")


@pytest.fixture
async def token(hub: Hub, ada: User) -> str:
    return await hub.sessions.create_session(ada.id)


def cookie(token: str) -> dict[str, str]:
    return {"Cookie": f"theme=dark; {web.COOKIE}={token}"}


async def test_bearer_token_and_cookie_log_in(http: httpx.AsyncClient, token: str, ada: User) -> None:
    for headers in ({"Authorization": f"Bearer {token}"}, {"Authorization": f"bearer {token}"}, cookie(token)):
        assert (await http.get("/session", headers=headers)).status_code == 200
        assert (await http.get("/user", headers=headers)).json()["id"] == str(ada.id)


async def test_request_without_a_valid_session_is_refused(hub: Hub, http: httpx.AsyncClient, token: str) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic YTpi"},
        cookie(""),
        cookie("x" * 47),
    ):
        refused = await http.get("/session", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["type"] == "urn:hubbub:not-logged-in"
    await hub.sessions.delete_session(token)
    assert (await http.get("/user", headers=cookie(token))).status_code == 401


async def test_user_that_was_deleted_is_not_logged_in(
    hub: Hub, http: httpx.AsyncClient, token: str, ada: User
) -> None:
    await hub.users.delete(ada.id)
    assert (await http.get("/user", headers=cookie(token))).status_code == 401


ORIGINS = {
    HOST: 200,
    None: 403,
    "null": 403,
    "https://example.org": 403,
    "https://evil.example.org": 403,
    "https://chat.example.org.evil.org": 403,
    "http://chat.example.org": 403,
    "https://chat.example.org:8443": 403,
}


async def test_cookie_of_an_unsafe_method_needs_the_origin_of_this_host(
    http: httpx.AsyncClient, token: str
) -> None:
    for method in ("POST", "DELETE"):
        for origin, status in ORIGINS.items():
            headers = cookie(token) if origin is None else {**cookie(token), "Origin": origin}
            response = await http.request(method, "/session", headers=headers)
            assert response.status_code == status, (method, origin)


async def test_bearer_token_needs_no_origin(http: httpx.AsyncClient, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}", "Origin": "https://example.org"}
    assert (await http.post("/session", headers=headers)).status_code == 200
    assert (await http.get("/session", headers={**cookie(token), "Origin": "https://evil.org"})).status_code == 200


async def test_page_on_this_machine_needs_no_tls(http: httpx.AsyncClient, token: str) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        headers = {**cookie(token), "Host": host, "Origin": f"http://{host}"}
        assert (await http.post("/session", headers=headers)).status_code == 200
        headers["Origin"] = "http://localhost:1"
        assert (await http.post("/session", headers=headers)).status_code == 403


async def test_origins_of_the_application_are_accepted(hub: Hub, token: str) -> None:
    app = chat_on_starlette(hub)
    app.state.origins = {"https://app.example.org"}
    async with client(app) as http:
        allowed = {**cookie(token), "Origin": "https://app.example.org"}
        assert (await http.post("/session", headers=allowed)).status_code == 200
        assert (await http.post("/session", headers=cookie(token))).status_code == 403


async def test_cookie_that_a_neighbouring_host_has_set_does_not_count(http: httpx.AsyncClient, token: str) -> None:
    for value in (
        f"\xa0{web.COOKIE}={token}",
        f"{web.COOKIE}={token}; {web.COOKIE}={'x' * 47}",
        f"\t{web.COOKIE}={token}",
    ):
        refused = await http.get("/session", headers=[(b"Cookie", value.encode("latin-1"))])
        assert refused.status_code == 401, value


async def test_websocket_with_a_cookie_needs_an_origin(hub: Hub, token: str) -> None:
    scope: dict[str, Any] = {"type": "websocket", "app": chat_on_starlette(hub), "path": "/", "query_string": b""}
    scope["headers"] = [(b"host", b"chat.example.org"), (b"cookie", f"{web.COOKIE}={token}".encode())]
    with pytest.raises(web.Refused) as refused:
        await web.current_session(HTTPConnection(scope))
    assert refused.value.status_code == 403
    scope["headers"].append((b"origin", HOST.encode()))
    assert await web.current_session(HTTPConnection(scope))


async def closing_of(error: HubbubError, *, accepted: bool, extensions: dict[str, Any]) -> list[Any]:
    """The ASGI messages of a WebSocket whose endpoint raises this error."""
    app = FastAPI(exception_handlers=web.exception_handlers)

    @app.websocket("/")
    async def fail(websocket: WebSocket) -> None:
        if accepted:
            await websocket.accept()
        raise error

    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:  # noqa: ANN401
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "extensions": extensions}
    await app(scope, receive, send)
    return sent


async def test_websocket_is_refused_or_closed_with_the_error() -> None:
    gone, missing = Unavailable("redis", SECRET), NotFound("room", UUID(int=1))
    answers: dict[str, Any] = {"websocket.http.response": {}}
    start, body = await closing_of(missing, accepted=False, extensions=answers)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    assert json.loads(body["body"])["type"] == "urn:hubbub:not-found"
    for extensions in ({}, answers):
        closed = [(await closing_of(error, accepted=True, extensions=extensions))[-1] for error in (gone, missing)]
        assert [(message["type"], message["code"]) for message in closed] == [
            ("websocket.close", 1013),
            ("websocket.close", 1008),
        ]
    [closing] = await closing_of(SchemaMismatch("1", "2", SECRET), accepted=False, extensions={})
    assert (closing["code"], closing["reason"]) == (1011, "Server error")


async def test_hub_may_be_in_the_state_of_the_lifespan(hub: Hub, token: str) -> None:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "app": Starlette(), "state": {"hub": hub}}
    scope["headers"] = [(b"authorization", f"Bearer {token}".encode())]
    assert await web.current_session(HTTPConnection(scope))


async def test_application_without_a_hub_gets_an_error_that_names_it() -> None:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "app": Starlette(), "headers": []}
    scope["headers"] = [(b"authorization", b"Bearer x")]
    with pytest.raises(RuntimeError, match=r"app\.state\.hub"):
        await web.current_session(HTTPConnection(scope))


def test_module_without_starlette_names_the_extra() -> None:
    code = "import sys; sys.modules['starlette.exceptions'] = None; import hubbub.web"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "hubbub[web]" in ran.stderr


def test_server_of_a_gateway_does_not_import_the_console() -> None:
    """Its diagnostics would lengthen the start of each process."""
    code = "import sys, hubbub.web.serving; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    of_console = ("hubbub.diagnostics", "hubbub.web.console_app")
    assert not [name for name in ran.stdout.split() if name.startswith(of_console)]
