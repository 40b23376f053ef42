"""`hubbub rooms` and `hubbub say`: rooms, their members and messages to them, for an operator at a terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final
from uuid import UUID

import click
import msgspec

from hubbub import inputs
from hubbub.cli import in_hub, printable
from hubbub.diagnostics import find_room, find_user
from hubbub.events import MemberLeft, MessageSent, RoomGone
from hubbub.hub import Hub
from hubbub.models import Room, User
from hubbub.services.feed import Follower

COUNTED: Final = 10_000
READ_BYTES: Final = 65_536


@click.group()
def rooms() -> None:
    """Show rooms and their members.

    ROOM is an id, or the name of a public room. USER is an email address, a username, an id or an id in another
    system.
    """


@rooms.command("list")
@click.argument("prefix", default="")
@click.option("--user", help="The rooms of this user, private ones as well, the most recently active first.")
def list_rooms(prefix: str, user: str | None) -> None:
    """List the public rooms whose name starts with PREFIX, or all rooms of a user."""
    for line in in_hub(lambda chat: _list(chat, prefix, user)):
        click.echo(line)


@rooms.command()
@click.argument("room")
def show(room: str) -> None:
    """Show the room ROOM and its members."""
    for line in in_hub(lambda chat: _describe(chat, room)):
        click.echo(line)


async def _list(chat: Hub, prefix: str, user: str | None) -> list[str]:
    limit = inputs.PAGE_LIMIT
    if user is not None:
        page = await chat.rooms.list_for((await find_user(chat, user)).id, limit=limit)
        found, has_more = [summary.room for summary in page.items], page.has_more
    else:
        listed = await (chat.rooms.search(prefix, limit=limit) if prefix else chat.rooms.public(limit=limit))
        found, has_more = listed.items, listed.has_more
    found = [room for room in found if inputs.folded(room.name).startswith(inputs.folded(prefix))]
    counts = await chat.room_users.member_counts([room.id for room in found], cap=COUNTED)
    lines = [
        f"{room.id}  {_members(counts[room.id]):>14}  {_kind(room):7}  {printable(room.name)}" for room in found
    ]
    if has_more:
        lines.append(f"the first {limit} rooms; there are more")
    return lines or ["no rooms"]


async def _describe(chat: Hub, room_name: str) -> list[str]:
    room = await chat.rooms.get(await find_room(chat, room_name))
    count = (await chat.room_users.member_counts([room.id], cap=COUNTED))[room.id]
    page = await chat.room_users.members(room.id, limit=inputs.PAGE_LIMIT)
    users = await chat.users.get_many([member.user_id for member in page.items])
    lines = {
        "id": str(room.id),
        "name": room.name,
        "description": room.description,
        "kind": _kind(room),
        "created": f"{room.created_at:%Y-%m-%d %H:%M} UTC",
        "log": f"{room.last_seq:,} {'entry' if room.last_seq == 1 else 'entries'}",
        "metadata": None if room.metadata is None else msgspec.json.encode(room.metadata).decode(),
        "members": f"{count:,}{'+' if count == COUNTED else ''}",
    }
    shown = [f"{label:12} {printable(value)}" for label, value in lines.items() if value is not None]
    for member in page.items:
        user = users.get(member.user_id)
        name = "" if user is None else printable(user.username)
        shown.append(f"  {member.user_id}  {member.role:9}  joined {member.joined_at:%Y-%m-%d %H:%M} UTC  {name}")
    return [*shown, *(["  and more"] if page.has_more else [])]


def _members(count: int) -> str:
    return f"{count:,}{'+' if count == COUNTED else ''} {'member' if count == 1 else 'members'}"


def _kind(room: Room) -> str:
    return "direct" if room.is_direct else "private" if room.is_private else "public"


@click.command()
@click.argument("room")
@click.argument("text", required=False)
@click.option(
    "--as", "user", required=True, envvar="HUBBUB_USER", show_envvar=True, help="The author: a member of the room."
)
def say(room: str, text: str | None, user: str) -> None:
    """Send TEXT to ROOM. Without TEXT, send each line of standard input.

    At a terminal it also shows new messages of others, until Ctrl-D. ROOM is an id, or the name of a public room.
    The author is an email address, a username, an id or an id in another system.
    """
    in_hub(lambda chat: _say(chat, room, text, user))


async def _say(chat: Hub, room_name: str, text: str | None, user_name: str) -> None:
    user, room_id = await find_user(chat, user_name), await find_room(chat, room_name)
    if text is not None:
        await chat.messages.send(room_id, user.id, text)
    elif sys.stdin.isatty():
        await _talk(chat, room_id, user)
    else:
        await _send_lines(chat, room_id, user)


async def _talk(chat: Hub, room_id: UUID, user: User) -> None:
    """Send lines, and show those of others, until one of both ends."""
    async with chat.follow(user.id, rooms=[room_id]) as feed:
        tasks = [asyncio.create_task(one) for one in (_send_lines(chat, room_id, user), _show(chat, feed, user))]
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for task in done:
            task.result()


async def _send_lines(chat: Hub, room_id: UUID, user: User) -> None:
    async for line in _lines():
        if line.strip():
            await chat.messages.send(room_id, user.id, line)


async def _show(chat: Hub, feed: Follower, user: User) -> None:
    async for event in feed:
        if isinstance(event, MessageSent) and event.message.user_id not in (None, user.id):
            author = (await chat.users.get_many([event.message.user_id])).get(event.message.user_id)
            name = "?" if author is None else author.display_name or author.username
            click.echo(f"{event.at.astimezone():%H:%M}  {printable(name)}: {printable(event.message.content)}")
        elif isinstance(event, RoomGone) or (isinstance(event, MemberLeft) and event.user_id == user.id):
            raise click.ClickException("you are no longer a member of this room")


async def _lines() -> AsyncIterator[str]:
    """The lines of standard input, read when they are there. A thread that waits for them could not be ended."""
    rest = b""
    async for block in _blocks(sys.stdin.fileno()):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield _text(line)
    if rest:
        yield _text(rest)


async def _blocks(fd: int) -> AsyncGenerator[bytes, None]:
    """Blocks of input, as they arrive. A pipe that is faster than the sends has to wait."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()

    def on_readable() -> None:
        loop.remove_reader(fd)
        readable.set()

    try:
        while True:
            try:
                loop.add_reader(fd, on_readable)
            except PermissionError:  # a file, which is always there
                readable.set()
            await readable.wait()
            readable.clear()
            if not (block := os.read(fd, READ_BYTES)):
                return
            yield block
    finally:
        loop.remove_reader(fd)


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="replace")
