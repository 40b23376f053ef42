"""The types of hubbub.js, compared with the types of the gateway's frames."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from hubbub.events import KINDS
from hubbub.web import documents
from hubbub.web.commands import COMMANDS
from javascript.typescript import typescript

CLIENT = Path(__file__).parents[2] / "src" / "hubbub" / "web" / "client"
SCRIPT = (CLIENT / "hubbub.js").read_text()
DOCUMENT = documents.asyncapi(COMMANDS)
MESSAGES: Final[dict[str, Any]] = DOCUMENT["channels"]["socket"]["messages"]


def test_types_of_the_frames_are_those_of_the_server() -> None:
    assert (CLIENT / "frames.d.ts").read_text() == typescript(COMMANDS), "run: make types"


def test_types_of_all_entries_are_exported() -> None:
    exports = re.findall(r"^export type \{(.*?)\}", (CLIENT / "hubbub.d.ts").read_text(), re.MULTILINE)
    assert {kind.__name__ for kind in KINDS.values()} <= set(re.findall(r"\w+", " ".join(exports)))


def test_client_knows_every_frame_of_the_server() -> None:
    frames = {name for name in MESSAGES if name not in COMMANDS and name not in {"hello", "positions"}}
    of_the_connection = set(re.findall(r'frame\.type === "(\w+)"', SCRIPT)) | {"ping"}
    table = re.search(r"#frames = \{\n(.*?)^  \};", SCRIPT, re.DOTALL | re.MULTILINE)
    assert table is not None
    of_the_client = set(re.findall(r"^    (\w+): \(", table[1], re.MULTILINE))
    assert frames - of_the_connection - of_the_client == set()
    assert of_the_client - frames == {"online", "listed"}, "frames between tabs only"
    commands = set(re.findall(r'\btype: "(\w+)"', SCRIPT)) - {
        "hello",
        "positions",
        "ack",
        "error",
        "ready",
        "online",
        "listed",
        "probe",  # on purpose: the gateway answers `unknown-frame` at once
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
(await client.request({ type: "me" })).username satisfies string;
(await client.request({ type: "page", room_id: "1", limit: 10 })).items[0].reply_to satisfies string | null;
// @ts-expect-error: the result has no such field
(await client.request({ type: "me" })).password;
await client.request({ type: "of_the_application", field: 1 });
"""
