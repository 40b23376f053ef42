"""`hubbub rooms`: rooms and their members, for an operator at a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import click
import msgspec

from hubbub import hub, inputs
from hubbub.cli.terminal import printable
from hubbub.diagnostics.lookup import find_room, find_user
from hubbub.hub import Hub
from hubbub.models import Room

COUNTED = 10_000


@click.group()
def rooms() -> None:
    """Show rooms and their members.

    ROOM is an id, or the name of a public room. USER is an email address, a username, an id or an id in another
    system.
    """


@rooms.command("list")
@click.argument("prefix", default="")
@click.option("--user", help="The rooms of this user, private ones as well, the most recently active first.")
def show_list(prefix: str, user: str | None) -> None:
    """List the public rooms whose name starts with PREFIX, or all rooms of a user."""
    for line in asyncio.run(_list(prefix, user)):
        click.echo(line)


@rooms.command()
@click.argument("room")
def show(room: str) -> None:
    """Show the room ROOM and its members."""
    for line in asyncio.run(_show(room)):
        click.echo(line)


async def _list(prefix: str, user: str | None) -> list[str]:
    async with hub.open() as chat:
        limit = inputs.PAGE_LIMIT
        if user is not None:
            page = await chat.rooms.list_for((await find_user(chat, user)).id, limit=limit)
            found, has_more = [summary.room for summary in page.items], page.has_more
        else:
            listed = await (chat.rooms.search(prefix, limit=limit) if prefix else chat.rooms.public(limit=limit))
            found, has_more = listed.items, listed.has_more
        found = [room for room in found if inputs.folded(room.name).startswith(inputs.folded(prefix))]
        lines = await _lines(chat, found)
    if has_more:
        lines.append(f"the first {limit} rooms; there are more")
    return lines or ["no rooms"]


async def _lines(chat: Hub, found: Iterable[Room]) -> list[str]:
    counts = await chat.room_users.member_counts([room.id for room in found], cap=COUNTED)
    return [
        f"{room.id}  {_members(counts[room.id]):>14}  {_kind(room):7}  {printable(room.name)}" for room in found
    ]


async def _show(room_name: str) -> list[str]:
    async with hub.open() as chat:
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
