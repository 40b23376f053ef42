"""The protocol as OpenAPI and AsyncAPI documents, made from the types of the frames and of the results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final, get_args, get_type_hints

import msgspec

from hubbub.events import FeedEvent
from hubbub.web import frames
from hubbub.web.commands import Command
from hubbub.web.problems import Problem

REFERENCE: Final = "#/components/schemas/{name}"
FROM_SERVER: Final = (
    frames.Ask,
    frames.Ready,
    frames.Ack,
    frames.Error,
    frames.Ping,
    frames.Bye,
    *get_args(FeedEvent),
)
REF: Final = {"type": "integer", "minimum": 0, "maximum": frames.MAX_REF}
BEARER: Final[list[dict[str, list[str]]]] = [{"bearer": []}]
PROBLEM: Final = {
    "description": "An error.",
    "content": {"application/problem+json": {"schema": {"$ref": REFERENCE.format(name=Problem.__name__)}}},
}


def openapi(commands: Mapping[str, Command], reads: Mapping[str, str]) -> dict[str, Any]:
    """The requests of clients, by OpenAPI 3.1. `reads` has the names of the commands that only read, by path."""
    by_post = {name: command for name, command in commands.items() if name != "auth"}
    kinds = [Problem, frames.Subscription, *[one.frame for one in commands.values()]]
    kinds += map(result_of, commands.values())
    schemas, components = _schemas(kinds)

    def operation(command: Command, path: str) -> dict[str, Any]:
        return {
            "operationId": command.name,
            "security": BEARER,
            "parameters": _parameters(command, path),
            "responses": _responses(schemas[result_of(command)]),
        }

    give = {
        "operationId": "command",
        "security": BEARER,
        "requestBody": _body({"anyOf": [_with_type(schemas[one.frame], name) for name, one in by_post.items()]}),
        "responses": _responses({"anyOf": [schemas[result_of(one)] for one in by_post.values()]}),
    }
    stream = {"200": {"description": "Frames without an end.", "content": {"text/event-stream": {}}}}
    watch = _query("watch", {"type": "string"}, is_required=False)
    last_id = {"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "string"}}
    follow = {"security": BEARER, "responses": _responses({}) | stream}
    events = {
        "get": {"operationId": "event_source", "parameters": [watch, last_id], **follow},
        "post": {
            "operationId": "events",
            "parameters": [watch],
            "requestBody": _body(schemas[frames.Subscription]),
            **follow,
        },
    }
    one_session = "/sessions/{session_id}"
    return {
        "openapi": "3.1.0",
        "info": {"title": "hubbub gateway", "version": version("hubbub")},
        "paths": {
            **{path: {"get": operation(commands[name], path)} for path, name in reads.items()},
            one_session: {"delete": operation(commands["revoke"], one_session)},
            "/commands": {"post": give},
            "/events": events,
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def asyncapi(commands: Mapping[str, Command]) -> dict[str, Any]:
    """The WebSocket, by AsyncAPI 3."""
    from_client = {"hello": frames.Hello, "positions": frames.Positions}
    of_commands = {name: command.frame for name, command in commands.items()}
    kinds = [*from_client.values(), *of_commands.values(), *FROM_SERVER]
    schemas, components = _schemas([*kinds, *[result_of(command) for command in commands.values()]])
    payloads = {name: schemas[kind] for name, kind in from_client.items()}
    payloads |= {
        name: {"allOf": [_with_type(schemas[kind], name), {"properties": {"ref": REF}, "required": ["ref"]}]}
        for name, kind in of_commands.items()
    }
    from_server = {str(kind.__struct_config__.tag): schemas[kind] for kind in FROM_SERVER}
    messages = {name: {"payload": payload} for name, payload in {**payloads, **from_server}.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "hubbub gateway", "version": version("hubbub")},
        "channels": {"socket": {"address": "/socket", "messages": messages}},
        "operations": {
            "receiveFrame": {"action": "receive", **_channel(payloads)},
            "sendFrame": {"action": "send", **_channel(from_server)},
        },
        "components": {"schemas": components},
    }


def _channel(names: Iterable[str]) -> dict[str, Any]:
    return {
        "channel": {"$ref": "#/channels/socket"},
        "messages": [{"$ref": f"#/channels/socket/messages/{name}"} for name in names],
    }


def _schemas(kinds: Iterable[Any]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """The schema of each type, and those that they refer to."""
    unique = list(dict.fromkeys(kinds))
    schemas, components = msgspec.json.schema_components(unique, ref_template=REFERENCE)
    return dict(zip(unique, schemas, strict=True)), components


def result_of(command: Command) -> Any:  # noqa: ANN401 - a type
    """The type of the result, from the annotations of the handler."""
    found = get_type_hints(command.call).get("return", Any)
    return Any if found is object else found


def _with_type(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """A frame of the application may have no tag of its own."""
    return {"allOf": [schema, {"properties": {"type": {"const": name}}, "required": ["type"]}]}


def _responses(result: dict[str, Any]) -> dict[str, Any]:
    done = {"description": "The result.", "content": {"application/json": {"schema": result}}}
    return {"200": done, "4XX": PROBLEM, "503": PROBLEM}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _parameters(command: Command, path: str) -> list[dict[str, Any]]:
    """The fields of a command that are in its path, and in the query."""
    in_path = set(re.findall(r"{(\w+)}", path))
    fields = msgspec.structs.fields(command.frame)
    return [
        {"name": field.name, "in": "path", "required": True, "schema": msgspec.json.schema(field.type)}
        if field.name in in_path
        else _query(field.name, _in_query(msgspec.json.schema(field.type)), is_required=field.required)
        for field in fields
    ]


def _query(name: str, schema: dict[str, Any], *, is_required: bool) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": is_required, "schema": schema, "explode": False}


def _in_query(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without null, which a query cannot say."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if not kinds:
        return schema
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
