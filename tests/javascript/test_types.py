"""The types of hubbub.js, compared with the documents that the gateway makes from its frames."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from hubbub.web import documents
from hubbub.web.commands import COMMANDS

CLIENT = Path(__file__).parents[2] / "src" / "hubbub" / "web" / "client"
TYPES = (CLIENT / "hubbub.d.ts").read_text()
SCRIPT = (CLIENT / "hubbub.js").read_text()
DOCUMENT = documents.asyncapi(COMMANDS)
SCHEMAS: Final[dict[str, Any]] = DOCUMENT["components"]["schemas"]
MESSAGES: Final[dict[str, Any]] = DOCUMENT["channels"]["socket"]["messages"]

NAMES: Final = {"Message": "StoredMessage"}
"""Types that have another name in hubbub.d.ts."""


def interface(name: str) -> dict[str, str]:
    """The fields that an interface declares, with their types."""
    found = re.search(
        rf"^(?:export )?interface {name} (?:extends \w+ )?\{{\n(.*?)^\}}", TYPES, re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"hubbub.d.ts has no interface {name}"
    return dict(re.findall(r"^  readonly (\w+)\??: (.+);$", found[1], re.MULTILINE))


def union(name: str) -> set[str]:
    """The texts of a type."""
    found = re.search(rf"^export type {name} =(.*?);", TYPES, re.DOTALL | re.MULTILINE)
    assert found is not None, f"hubbub.d.ts has no type {name}"
    return set(re.findall(r'"(\w+)"', found[1]))


def typescript(schema: dict[str, Any]) -> str:
    """The type of a schema as hubbub.d.ts writes it."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return NAMES.get(name, name)
    if "anyOf" in schema:
        kinds = [typescript(kind) for kind in schema["anyOf"]]
        return " | ".join(sorted(kinds, key=lambda kind: kind == "null"))
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if schema["type"] == "object":
        return "Readonly<Record<string, unknown>>"
    return "number" if schema["type"] == "integer" else str(schema["type"])


@pytest.mark.parametrize(
    ("name", "schema"),
    [("User", "PublicUser"), ("StoredMessage", "Message"), ("RoomInfo", "Room"), ("Session", "Session")],
)
def test_values_have_the_fields_and_types_of_the_server(name: str, schema: str) -> None:
    assert interface(name) == {field: typescript(kind) for field, kind in SCHEMAS[schema]["properties"].items()}


@pytest.mark.parametrize("name", ["Role", "MessageType"])
def test_texts_are_those_of_the_server(name: str) -> None:
    assert union(name) == set(SCHEMAS[name]["enum"])


def test_commands_are_those_of_the_gateway() -> None:
    assert union("CommandType") == set(COMMANDS)


def test_entries_have_the_fields_and_types_of_the_frames() -> None:
    entries = {name for name, schema in SCHEMAS.items() if {"cursor", "seq"} <= set(schema.get("properties", {}))}
    found = re.search(r"^export type Entry =(.*?);", TYPES, re.DOTALL | re.MULTILINE)
    assert found is not None
    assert set(re.findall(r"\w+", found[1])) == entries
    placed = interface("Placed")
    for name in entries:
        expected = {field: typescript(kind) for field, kind in SCHEMAS[name]["properties"].items()}
        assert {**placed, **interface(name)} == expected, name


def test_client_knows_every_frame_of_the_server() -> None:
    frames = {name for name in MESSAGES if name not in COMMANDS and name not in {"hello", "positions"}}
    of_the_connection = set(re.findall(r'frame\.type === "(\w+)"', SCRIPT)) | {"ping"}
    table = re.search(r"#frames = \{\n(.*?)^  \};", SCRIPT, re.DOTALL | re.MULTILINE)
    assert table is not None
    of_the_client = set(re.findall(r"^    (\w+): \(", table[1], re.MULTILINE))
    assert frames - of_the_connection - of_the_client == set()
    assert of_the_client - frames == {"online"}, "frames between tabs only"
    commands = set(re.findall(r'\btype: "(\w+)"', SCRIPT)) - {
        "hello",
        "positions",
        "ack",
        "error",
        "ready",
        "online",
    }
    assert commands - set(COMMANDS) == set()
    assert set(COMMANDS) - commands - {"me"} == set(), "commands without a method"


def test_types_are_valid_and_useful(tmp_path: Path) -> None:
    tsc = shutil.which("tsc")
    if tsc is None:
        pytest.skip("TypeScript is not installed: npm install --global typescript")
    program = tmp_path / "program.mts"
    program.write_text(PROGRAM % (CLIENT / "hubbub.js").as_posix())
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", str(program)]
    run = subprocess.run([tsc, *options], capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


PROGRAM = """
import { Client, type Entry } from "%s";

const client = new Client({ url: "/chat" });
client.on("entry", (entry: Entry) => {
  if (entry.type === "member_joined") entry.role satisfies "admin" | "moderator" | "member";
  if (entry.type === "message_sent") entry.message.content satisfies string;
  // @ts-expect-error: there is no such entry
  if (entry.type === "message_lost") return;
});
client.on("message", (room, message) => room.markUnread(message.seq));
await client.request({ type: "me" });
await client.request({ type: "of_the_application", field: 1 });
"""
