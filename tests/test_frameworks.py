"""Every value that hubbub returns is a type for FastAPI, Pydantic, Litestar and the schemas of msgspec."""

# ruff: noqa: ANN401 - the subject here is annotations themselves, which have no type of their own

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import httpx
import litestar
import msgspec
import pytest
from fastapi import Body, FastAPI
from fastapi.exceptions import FastAPIError
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model

import hubbub
from hubbub import (
    Credentials,
    FeedEvent,
    Gap,
    Hub,
    LogPage,
    Message,
    MessageSent,
    NewMessage,
    Page,
    Room,
    RoomGone,
    Settings,
    User,
)
from hubbub.models import Value
from hubbub.services.cache import Counts
from injection.operations import PARTS

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
ONE = UUID(int=1)
MESSAGE = Message(
    ONE, ONE, 1, None, "hello", hubbub.MessageType.IMAGE, False, NOW, NOW, None, None, {"a": [1, None]}
)
SENT = MessageSent(ONE, 1, MESSAGE.cursor, NOW, MESSAGE)

NOT_FOR_CLIENTS = [Credentials]


def types_in(annotation: object) -> Iterator[type[Any]]:
    for part in get_args(annotation):
        yield from types_in(part)
    if inspect.isclass(annotation):
        yield annotation


def results_of(part: object) -> Iterator[type[Any]]:
    """The result types of the public methods of a class, and the types of its public attributes."""
    for name, method in inspect.getmembers(part, inspect.ismethod):
        if not name.startswith("_"):
            yield from types_in(get_type_hints(method).get("return"))
    yield from (type(value) for name, value in vars(part).items() if not name.startswith("_"))


def public_values() -> list[type[Any]]:
    """The structs among the public names, in the results of operations, and in their fields."""
    hub = Hub(Settings.from_urls("postgresql://ada@localhost/chat", "redis://localhost"))
    found = [kind for name in hubbub.__all__ for kind in types_in(getattr(hubbub, name))]
    for owner in (hub, *(getattr(hub, part) for part in PARTS)):
        found += results_of(owner)
    structs = {kind for kind in found if issubclass(kind, msgspec.Struct)}
    for kind in tuple(structs):
        structs |= {each for hint in get_type_hints(kind).values() for each in types_in(hint)}
    return sorted({kind for kind in structs if issubclass(kind, msgspec.Struct)}, key=lambda kind: kind.__name__)


VALUES = [kind for kind in public_values() if kind not in NOT_FOR_CLIENTS]
of_each_value = pytest.mark.parametrize("kind", VALUES)


def example(annotation: Any) -> Any:
    """An example of a field's type."""
    arguments = get_args(annotation)
    if isinstance(annotation, TypeVar):
        return "anything"
    if get_origin(annotation) in {Union, UnionType}:
        return example(arguments[0])
    if get_origin(annotation) is list:
        return [example(kind) for kind in arguments for kind in get_args(kind) or [kind]]
    if get_origin(annotation) is abc.Mapping:
        return {"a": [1, None, {"b": "c"}]}
    if get_origin(annotation) is Literal:
        return arguments[0]
    if issubclass(annotation, msgspec.Struct):
        return annotation(**{field.name: example(field.type) for field in msgspec.structs.fields(annotation)})
    if issubclass(annotation, Enum):
        return next(iter(annotation))
    return {str: "hello", int: 7, float: 0.5, bool: True, UUID: ONE, datetime: NOW}[annotation]


def app_of(annotation: Any, value: object) -> FastAPI:
    app = FastAPI()

    @app.get("/", response_model=annotation)
    async def answer() -> object:
        return value

    return app


async def get(app: Any, path: str = "/") -> Any:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://chat") as client:
        response = await client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


def schema_of_answer(api: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = api["paths"]["/"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    return schema


def resolved(api: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if (reference := schema.get("$ref")) is None:
        return schema
    assert reference.startswith("#/components/schemas/")
    found: dict[str, Any] = api["components"]["schemas"][reference.removeprefix("#/components/schemas/")]
    return found


def references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
        for inner in schema.values():
            yield from references(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from references(inner)


def test_values_are_found() -> None:
    assert {Message, MessageSent, LogPage, Page, User, hubbub.Health, hubbub.Device, hubbub.PoolUse} <= set(VALUES)


@of_each_value
def test_every_value_is_a_type_for_pydantic(kind: type[Any]) -> None:
    assert issubclass(kind, Value), "a value that travels to clients derives from hubbub.models.Value"


@of_each_value
def test_json_of_pydantic_is_that_of_msgspec_in_both_directions(kind: type[Any]) -> None:
    value, adapter = example(kind), TypeAdapter(kind)
    encoded = msgspec.json.encode(value)
    assert adapter.validate_python(value) is value
    assert adapter.dump_json(value) == encoded
    assert adapter.validate_json(encoded) == value
    assert adapter.validate_python(adapter.dump_python(value)) == value
    assert adapter.dump_python(value, mode="json", exclude={"no such field"}) == msgspec.to_builtins(value)


@of_each_value
async def test_fastapi_answers_with_a_value_alone_in_a_list_and_in_a_model(kind: type[Any]) -> None:
    value = example(kind)
    expected = msgspec.to_builtins(value)
    several: Any = list[kind]  # type: ignore[valid-type]
    optional: Any = kind | None
    model = create_model("Answer", one=(kind, ...), many=(several, ...), none=(optional, None))
    app = FastAPI()
    app.get("/one", response_model=kind)(lambda: value)
    app.get("/many", response_model=several)(lambda: [value])
    app.get("/model", response_model=model)(lambda: model(one=value, many=[value]))
    assert await get(app, "/one") == expected
    assert await get(app, "/many") == [expected]
    assert await get(app, "/model") == {"one": expected, "many": [expected], "none": None}


@of_each_value
async def test_openapi_of_fastapi_describes_each_field(kind: type[Any]) -> None:
    several: Any = list[kind]  # type: ignore[valid-type]
    api = await get(app_of(several, []), "/openapi.json")
    schema = resolved(api, schema_of_answer(api)["items"])
    names = [*filter(None, [kind.__struct_config__.tag_field]), *kind.__struct_fields__]
    assert schema["title"] == kind.__name__
    assert list(schema["properties"]) == schema["required"] == names
    assert schema["description"].split() == (inspect.getdoc(kind) or "").split()
    for reference in references(api):
        resolved(api, {"$ref": reference})


@of_each_value
async def test_litestar_answers_with_a_value_and_describes_it(kind: type[Any]) -> None:
    value = example(kind)

    async def answer() -> Any:
        return value

    answer.__annotations__["return"] = kind
    app = litestar.Litestar(
        [litestar.get("/")(answer)], openapi_config=litestar.openapi.OpenAPIConfig("chat", "1")
    )
    assert await get(app) == msgspec.to_builtins(value)
    assert schema_of_answer(await get(app, "/schema/openapi.json"))


@of_each_value
def test_msgspec_describes_every_value(kind: type[Any]) -> None:
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    assert set(schema["properties"]) >= set(kind.__struct_fields__)


@pytest.mark.parametrize("kind", NOT_FOR_CLIENTS)
def test_secret_is_refused_as_the_type_of_an_answer(kind: type[Any]) -> None:
    with pytest.raises(FastAPIError):
        app_of(kind, None)


async def test_page_of_a_type_is_described_with_its_items() -> None:
    api = await get(app_of(Page[Message], Page([MESSAGE], None)), "/openapi.json")
    page = resolved(api, schema_of_answer(api))
    assert resolved(api, page["properties"]["items"]["items"])["title"] == "Message"
    other = await get(app_of(dict[str, Page[Room] | Page[User] | Page[FeedEvent]], {}), "/openapi.json")
    assert {name for name in other["components"]["schemas"] if name.startswith("Page")} > {
        "Page_Room_",
        "Page_User_",
    }


async def test_event_is_described_by_its_type() -> None:
    annotation = Annotated[FeedEvent, Field(discriminator="type")]
    app = app_of(list[annotation], [SENT, RoomGone(ONE)])
    assert [event["type"] for event in await get(app)] == ["message_sent", "room_gone"]
    api = await get(app, "/openapi.json")
    mapping = schema_of_answer(api)["items"]["discriminator"]["mapping"]
    assert mapping.keys() == {event.__struct_config__.tag for event in get_args(FeedEvent)}
    assert resolved(api, {"$ref": mapping["message_sent"]})["properties"]["type"]["const"] == "message_sent"
    event = TypeAdapter[FeedEvent](annotation).validate_json(msgspec.json.encode(SENT))
    assert event == SENT
    assert event.type == "message_sent"


async def test_draft_in_the_body_of_a_request_is_checked() -> None:
    app = FastAPI()
    received = []

    @app.post("/")
    async def send(draft: Annotated[NewMessage, Body()]) -> None:
        received.append(draft)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://chat") as client:
        assert (await client.post("/", json={"content": "hello", "reply_to": str(ONE)})).status_code == 200
        refused = await client.post("/", json={"content": 1})
    assert received == [NewMessage("hello", reply_to=ONE)]
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "content"]


def test_fields_can_be_left_out_of_an_answer() -> None:
    class Answer(BaseModel):
        message: Message

    answer = Answer(message=MESSAGE)
    assert "content" not in answer.model_dump(mode="json", exclude={"message": {"content"}})["message"]
    assert answer.model_dump(include={"message": {"seq"}}) == {"message": {"seq": 1}}
    assert "deleted_at" not in answer.model_dump(mode="json", exclude_none=True)["message"]
    assert answer.model_dump()["message"]["message_type"] is hubbub.MessageType.IMAGE


def test_value_of_another_type_is_refused() -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Message).validate_python(SENT)
    with pytest.raises(ValidationError, match="content"):
        TypeAdapter(Message).validate_python({**msgspec.to_builtins(MESSAGE), "content": None})


@pytest.mark.parametrize("value", [Gap("overflow", 3), Counts(1, 2, 3, 4, 5)], ids=["gap", "counts"])
async def test_dataclass_is_a_type_for_every_framework(value: object) -> None:
    assert await get(app_of(type(value), value)) == msgspec.to_builtins(value)
    assert msgspec.json.schema(type(value))
