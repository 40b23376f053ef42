"""`hubbub sessions`: the sessions of a user, by device."""

from __future__ import annotations

import asyncio

import click

from hubbub import hub, inputs
from hubbub.cli.terminal import printable
from hubbub.diagnostics.lookup import find_user
from hubbub.errors import NotFound
from hubbub.models import Session

ID_CHARACTERS = 12  # enough to be unique among the sessions of a user
DEVICE_CHARACTERS = 30  # keeps a session on one line of 120 columns


@click.group()
def sessions() -> None:
    """Show the sessions of a user on all devices, and end them.

    USER is an email address, a username, an id or an id in another system.
    """


@sessions.command("list")
@click.argument("user")
def show(user: str) -> None:
    """Show the sessions of USER, the most recently seen first."""
    found = asyncio.run(_list(user))
    for session in found:
        click.echo(_line(session))
    if not found:
        click.echo("no sessions")
    if len(found) == inputs.PAGE_LIMIT:
        click.echo(f"the first {inputs.PAGE_LIMIT} sessions; there may be more")


@sessions.command()
@click.argument("user")
@click.argument("session")
def revoke(user: str, session: str) -> None:
    """End the session of USER whose id starts with SESSION, as `list` shows it."""
    session_id = asyncio.run(_revoke(user, session))
    click.echo(f"ended {session_id[:ID_CHARACTERS]}")


@sessions.command()
@click.argument("user")
def revoke_all(user: str) -> None:
    """End all sessions of USER."""
    ended = asyncio.run(_revoke_all(user))
    click.echo(f"ended {ended} {'session' if ended == 1 else 'sessions'}")


async def _list(user: str) -> list[Session]:
    async with hub.open() as chat:
        return await chat.sessions.list((await find_user(chat, user)).id)


async def _revoke(user: str, start_of_id: str) -> str:
    async with hub.open() as chat:
        found = await find_user(chat, user)
        ids = [session.id for session in await chat.sessions.list(found.id)]
        # A complete id may be that of a session beyond the first page.
        matching = [id for id in ids if id.startswith(start_of_id)] or [start_of_id]
        if len(matching) > 1:
            raise click.ClickException(f"{len(matching)} sessions start with {start_of_id}")
        if not await chat.sessions.revoke(found.id, matching[0]):
            raise NotFound("session", "of that id")  # not what was typed, which may be a token
        return matching[0]


async def _revoke_all(user: str) -> int:
    async with hub.open() as chat:
        return await chat.sessions.revoke_all((await find_user(chat, user)).id)


def _line(session: Session) -> str:
    device = printable(str(session.data.get("device", "-"))[:DEVICE_CHARACTERS])
    times = {"created": session.created_at, "seen": session.seen_at, "ends": session.expires_at}
    columns = "  ".join(f"{label} {time:%Y-%m-%d %H:%M}" for label, time in times.items())
    return f"{session.id[:ID_CHARACTERS]}  {device:{DEVICE_CHARACTERS}}  {columns} UTC"
