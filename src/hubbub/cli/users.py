"""`hubbub users`: accounts, for an operator at a terminal."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import Final, NamedTuple

import click
import msgspec

from hubbub import hub
from hubbub.cli.terminal import printable
from hubbub.diagnostics.lookup import find_user
from hubbub.models import User, UserKind

ROOMS_SHOWN: Final = 20


class Options(NamedTuple):
    """Of a new account."""

    email: str | None
    display_name: str | None
    external_id: str | None
    is_bot: bool


@click.group()
def users() -> None:
    """Create, show and delete accounts, and set their passwords.

    USER is an email address, a username, an id or an id in another system. A password is read from the terminal
    without being shown, or else from the first line of standard input.
    """


@users.command()
@click.argument("username")
@click.option("--email", help="An address to log in with, beside the username.")
@click.option("--display-name", help="A name to show, which others may have too.")
@click.option("--external-id", help="The id of the user in another system, which checks the login.")
@click.option("--bot", is_flag=True, help="The account is that of a program.")
def create(username: str, email: str | None, display_name: str | None, external_id: str | None, bot: bool) -> None:
    """Create the account USERNAME.

    It has a password, unless it is a bot or has an external id.
    """
    options = Options(email, display_name, external_id, is_bot=bot)
    secret = None if bot or external_id is not None else _read_password()
    user = asyncio.run(_create(username, options, secret))
    click.echo(f"created {printable(user.username)}  {user.id}")


@users.command()
@click.argument("user")
def password(user: str) -> None:
    """Set the password of USER, and end all sessions of the account."""
    found = asyncio.run(_find(user))  # the servers do not wait while a password is typed
    asyncio.run(_set_password(found, _read_password()))
    click.echo(f"changed the password of {printable(found.username)}, and ended all sessions")


@users.command()
@click.argument("user")
def show(user: str) -> None:
    """Show the account USER, and the rooms that were active most recently."""
    for line in asyncio.run(_show(user)):
        click.echo(line)


@users.command()
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(user: str, yes: bool) -> None:
    """Delete the account USER, with its memberships, receipts and sessions.

    Its messages stay, without an author.
    """
    found = asyncio.run(_find(user))
    name = f"{printable(found.username)}  {found.id}"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("add --yes, because there is no terminal to ask at")
        click.confirm(f"Delete the account {name}?", abort=True)
    asyncio.run(_delete(found))
    click.echo(f"deleted {name}")


def _read_password() -> str:
    if sys.stdin.isatty():
        entered: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return entered
    return sys.stdin.readline().removesuffix("\n")


async def _create(username: str, options: Options, secret: str | None) -> User:
    async with hub.open() as chat:
        if secret is not None:
            return await chat.register(options.email, username, secret, display_name=options.display_name)
        return await chat.users.create(
            options.email,
            username,
            None,
            display_name=options.display_name,
            external_id=options.external_id,
            kind=UserKind.BOT if options.is_bot else UserKind.PERSON,
        )


async def _find(user: str) -> User:
    async with hub.open() as chat:
        return await find_user(chat, user)


async def _set_password(user: User, secret: str) -> None:
    async with hub.open() as chat:
        await chat.change_password(user.id, secret)


async def _show(user: str) -> list[str]:
    async with hub.open() as chat:
        found = await find_user(chat, user)
        online = (await chat.presence.is_online([found.id]))[found.id]
        rooms = await chat.rooms.list_for(found.id, limit=ROOMS_SHOWN)
        credentials = await chat.users.find_credentials(found.username)
    state = {True: "online", False: "offline", None: "unknown, without Redis"}[online]
    seen = "" if found.last_seen is None else f", last seen {_time(found.last_seen)}"
    lines = {
        "id": str(found.id),
        "username": found.username,
        "display name": found.display_name,
        "email": found.email,
        "external id": found.external_id,
        "kind": found.kind.value,
        "password": "none" if credentials is None else "set",
        "state": state + seen,
        "created": _time(found.created_at),
        "picture": found.avatar_url,
        "metadata": None if found.metadata is None else msgspec.json.encode(found.metadata).decode(),
    }
    shown = [f"{label:13} {printable(value)}" for label, value in lines.items() if value is not None]
    names = [f"  {one.room.id}  {printable(one.room.name)}  {one.role}" for one in rooms.items]
    more = ["  and more"] if rooms.has_more else []
    return [*shown, "rooms" if names else "no rooms", *names, *more]


async def _delete(user: User) -> None:
    async with hub.open() as chat:
        await chat.delete_account(user.id)


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
