"""The import of a chat log through `hub.history`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from time import perf_counter
from typing import Final
from uuid import UUID

import msgspec

from hubbub.cli.demo.context import Context
from hubbub.cli.demo.report import Section
from hubbub.errors import NotFound
from hubbub.history import (
    Imported,
    JoinLine,
    LeaveLine,
    MessageLine,
    Refusals,
    Renamed,
    derive_room_id,
    derive_user_id,
    read_lines,
)
from hubbub.hub import Hub

CONVERSATION: Final = Path(__file__).with_name("conversation.jsonl")
"""A log with what a careless column, collation or length check trips over: names, scripts, emoji, long lines."""

SENTENCES: Final = 500
NOTED: Final = 3
"""Examples of renamed users and refused lines in a note."""

PlainLine = MessageLine | JoinLine | LeaveLine


@dataclass(slots=True)
class ChatLog:
    """Lines that have a room and a user, to be read once. `refusals` grows while they are read."""

    title: str
    lines: Iterator[PlainLine]
    refusals: Refusals = field(default_factory=Refusals)
    renamed: list[Renamed] = field(default_factory=list)


def read(title: str, file: BufferedReader) -> ChatLog:
    """The lines of an open file, which may be a pipe: it is read once and never as a whole."""
    refusals = Refusals()
    return ChatLog(title, _plain_lines(file, refusals), refusals)


def _plain_lines(file: BufferedReader, refusals: Refusals) -> Iterator[PlainLine]:
    for number, line in read_lines(file, refusals.add):
        match line:
            case MessageLine(room=str() as room, user=str() as user, content=content) if content:
                yield MessageLine(at=line.at, room=room, user=user, content=content)
            case JoinLine(room=str() as room, user=str() as user):
                yield JoinLine(at=line.at, room=room, user=user)
            case LeaveLine(room=str() as room, user=str() as user):
                yield LeaveLine(at=line.at, room=room, user=user)
            case _:
                refusals.add(number, "line: is not a message, join or leave with a room and a user")


async def load(context: Context, log: ChatLog) -> Section:
    """Import the log, and expect what it says. The checks at the end compare the two."""
    section = Section(f"Import of {log.title}")
    copy = context.folder / "log.jsonl"  # a pipe can be read once; the expectation is made from the same lines
    with copy.open("wb") as written:
        written.writelines(msgspec.json.encode(line) + b"\n" for line in log.lines)

    def show(imported: Imported) -> None:
        context.show(f"importing the log: {imported.lines:,} lines")

    begin = perf_counter()
    with copy.open("rb") as file:
        imported = await context.hub.history.load(file, progress=show)
    section.total("imported lines", imported.lines, perf_counter() - begin)
    section.total("created users", imported.users)
    with copy.open("rb") as file:
        await _expect(context, _plain_lines(file, Refusals()))
    log.renamed = imported.renamed
    names = [f"{one.nickname!a} is {one.username!a}" for one in imported.renamed]
    lines = [f"line {one.line:,}: {one.reason}" for one in log.refusals.first]
    section.notes += _note("nickname", "changed", imported.renamed_count, names)
    section.notes += _note("line", "refused", log.refusals.count, lines)
    return section


async def _expect(context: Context, lines: Iterator[PlainLine]) -> None:
    ids: dict[str, UUID] = {}
    sentences: dict[str, None] = {}
    for line in lines:
        nickname, name = line.user or "", line.room or ""
        user_id = ids.get(nickname) or ids.setdefault(nickname, await _find_user(context.hub, nickname))
        room = context.expect_room(derive_room_id(name), name)
        match line:
            case MessageLine():
                room.import_message(user_id, line.content)
                if len(sentences) < SENTENCES:
                    sentences[line.content] = None
            case JoinLine():
                room.join(user_id)
            case LeaveLine():
                room.leave(user_id)
    context.users += dict.fromkeys(ids.values())
    context.sentences += sentences


async def _find_user(hub: Hub, nickname: str) -> UUID:
    """The user that was made for the nickname, or else the one who has it as their username in another form."""
    try:
        return (await hub.users.get(derive_user_id(nickname))).id
    except NotFound:
        user = await hub.users.find_by_username(nickname)
        if user is None:
            raise
        return user.id


def _note(noun: str, verb: str, count: int, examples: list[str]) -> list[str]:
    if not count:
        return []
    more = "; ..." if count > NOTED else ""
    return [f"{count:,} {noun}{' was' if count == 1 else 's were'} {verb}: {'; '.join(examples[:NOTED])}{more}"]
