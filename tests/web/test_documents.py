"""The OpenAPI and AsyncAPI documents are made from the types, are true, and drive a fuzzer."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from hubbub import Hub, Room, User
from hubbub.web import Call, Gateway, Limits, documents
from hubbub.web.commands import COMMANDS
from hubbub.web.documents import FROM_SERVER, asyncapi, openapi
from hubbub.web.http import READS
from waiting import HANGS_AFTER_SECONDS
from web.serving import serving


def references(value: Any) -> set[str]:  # noqa: ANN401 - JSON
    """The targets of the references in a document."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_documents_have_every_frame_and_no_loose_reference() -> None:
    of_http, of_socket = openapi(COMMANDS, READS), asyncapi(COMMANDS)
    for document in (of_http, of_socket):
        for reference in references(document):
            found = document
            for name in reference.removeprefix("#/").split("/"):
                found = found[name]
            assert found
    names = {str(kind.__struct_config__.tag) for kind in FROM_SERVER} | {"hello", "positions", *COMMANDS}
    assert set(of_socket["channels"]["socket"]["messages"]) == names
    assert set(of_http["paths"]["/events"]) == {"get", "post"}
    assert set(of_http["paths"]) == {*READS, "/commands", "/events", "/sessions/{session_id}"}
    assert '"email":' not in json.dumps(of_http)


class Vote(msgspec.Struct):
    choice: int


class Votes(msgspec.Struct):
    number: int


async def test_documents_are_served_with_the_commands_of_the_application(hub: Hub) -> None:
    gateway = Gateway(hub)

    @gateway.command("vote")
    async def vote(call: Call, frame: Vote) -> Votes:
        raise NotImplementedError

    async with serving(gateway) as port, httpx.AsyncClient(timeout=HANGS_AFTER_SECONDS) as http:
        http.base_url = f"http://127.0.0.1:{port}/chat"
        described = (await http.get("/openapi.json")).json()
        assert described["servers"] == [{"url": "/chat"}]
        assert {"Vote", "Votes"} <= set(described["components"]["schemas"])
        assert "vote" in (await http.get("/asyncapi.json")).json()["channels"]["socket"]["messages"]


async def test_documents_are_made_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(name: str, make: Callable[..., object]) -> Callable[..., object]:
        def count(*given: object) -> object:
            made.append(name)
            return make(*given)

        return count

    for name in ("openapi", "asyncapi"):
        monkeypatch.setattr(f"hubbub.web.http.{name}", counted(name, getattr(documents, name)))
    gateway = Gateway(hub)
    async with serving(gateway) as port, httpx.AsyncClient(timeout=HANGS_AFTER_SECONDS) as http:
        http.base_url = f"http://127.0.0.1:{port}/chat"
        for _ in range(3):
            assert (await http.get("/openapi.json")).json()["openapi"] == "3.1.0"
            assert (await http.get("/asyncapi.json")).json()["asyncapi"] == "3.0.0"
        assert sorted(made) == ["asyncapi", "openapi"]


async def test_requests_made_from_the_document_get_the_answers_it_promises(
    hub: Hub, ada: User, room: Room, tmp_path: Path
) -> None:
    await hub.messages.send(room.id, ada.id, "hello")
    token = await hub.sessions.create_session(ada.id)
    gateway = Gateway(hub, limits=Limits(frames_per_second=100_000, burst=1_000_000))
    async with serving(gateway) as port:
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).parent / "schemathesis", "run", f"http://127.0.0.1:{port}/chat/openapi.json"),
            *("--header", f"Authorization: Bearer {token}", "--exclude-path", "/events", "--no-color"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1"),
            *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance"),
            *("--checks", "response_schema_conformance"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
