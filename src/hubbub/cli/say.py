"""`hubbub say`: messages from a terminal or a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final
from uuid import UUID

import click

from hubbub import hub
from hubbub.cli.terminal import printable
from hubbub.diagnostics.lookup import find_room, find_user
from hubbub.events import MemberLeft, MessageSent, RoomGone
from hubbub.hub import Hub
from hubbub.models import User
from hubbub.services.feed import Follower

READ_BYTES: Final = 65_536


@click.command()
@click.argument("room")
@click.argument("text", required=False)
@click.option(
    "--as", "user", required=True, envvar="HUBBUB_USER", show_envvar=True, help="The author: a member of the room."
)
def say(room: str, text: str | None, user: str) -> None:
    """Send TEXT to ROOM, or else each line of standard input.

    At a terminal it also shows what others say, until Ctrl-D. ROOM is an id, or the name of a public room. The
    author is an email address, a username, an id or an id in another system.
    """
    asyncio.run(_say(room, text, user))


async def _say(room_name: str, text: str | None, user_name: str) -> None:
    async with hub.open() as chat:
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
