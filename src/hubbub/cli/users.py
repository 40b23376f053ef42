"""`hubbub users` and `hubbub sessions`: accounts and their sessions, for an operator at a terminal."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Final

import click
import msgspec

from hubbub import inputs
from hubbub.cli import in_hub, printable
from hubbub.diagnostics import find_user
from hubbub.errors import NotFound
from hubbub.hub import Hub
from hubbub.models import Session, User, UserKind

ROOMS_SHOWN: Final = 20
ID_CHARACTERS: Final = 12  # enough to be unique among the sessions of a user
DEVICE_CHARACTERS: Final = 30  # keeps a session on one line of 120 columns


@click.group()
def users() -> None:
    """Create, show and delete accounts, and set their passwords.

    USER is an email address, a username, an id or an id in another system. A password is read from the terminal
    without showing it, or from the first line of standard input.
    """


@users.command()
@click.argument("username")
@click.option("--email", help="An address to log in with, beside the username.")
@click.option("--display-name", help="A name to show, which others may have too.")
@click.option("--external-id", help="The id of the user in another system, which checks the login.")
@click.option("--bot", is_flag=True, help="The account is that of a program.")
def create(username: str, email: str | None, display_name: str | None, external_id: str | None, bot: bool) -> None:
    """Create the account USERNAME.

    The account gets a password, unless it is a bot or has an external id.
    """
    secret = None if bot or external_id is not None else _read_password()

    async def create(chat: Hub) -> User:
        if secret is not None:
            return await chat.register(email, username, secret, display_name=display_name)
        kind = UserKind.BOT if bot else UserKind.PERSON
        return await chat.users.create(
            email, username, None, display_name=display_name, external_id=external_id, kind=kind
        )

    user = in_hub(create)
    click.echo(f"created {printable(user.username)}  {user.id}")


@users.command()
@click.argument("user")
def password(user: str) -> None:
    """Set the password of USER, and end all sessions of the account."""
    found = in_hub(lambda chat: find_user(chat, user))  # the servers do not wait while a password is typed
    secret = _read_password()
    in_hub(lambda chat: chat.change_password(found.id, secret))
    click.echo(f"changed the password of {printable(found.username)}, and ended all sessions")


@users.command()
@click.argument("user")
def show(user: str) -> None:
    """Show the account USER, and the rooms that were active most recently."""
    for line in in_hub(lambda chat: _describe(chat, user)):
        click.echo(line)


@users.command()
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(user: str, yes: bool) -> None:
    """Delete the account USER, with its memberships, receipts and sessions.

    Its messages stay, without an author.
    """
    found = in_hub(lambda chat: find_user(chat, user))
    name = f"{printable(found.username)}  {found.id}"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("add --yes, because there is no terminal for the question")
        click.confirm(f"Delete the account {name}?", abort=True)
    in_hub(lambda chat: chat.delete_account(found.id))
    click.echo(f"deleted {name}")


@click.group()
def sessions() -> None:
    """Show the sessions of a user on all devices, and end them.

    USER is an email address, a username, an id or an id in another system.
    """


@sessions.command("list")
@click.argument("user")
def list_sessions(user: str) -> None:
    """Show the sessions of USER, the most recently seen first."""

    async def find(chat: Hub) -> list[Session]:
        return await chat.sessions.list((await find_user(chat, user)).id)

    found = in_hub(find)
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
    """End the session of USER whose id, as shown by `list`, starts with SESSION."""

    async def revoke(chat: Hub) -> str:
        found = await find_user(chat, user)
        ids = [one.id for one in await chat.sessions.list(found.id)]
        # A complete id may be that of a session beyond the first page.
        matching = [id for id in ids if id.startswith(session)] or [session]
        if len(matching) > 1:
            raise click.ClickException(f"{len(matching)} sessions start with {session}")
        if not await chat.sessions.revoke(found.id, matching[0]):
            raise NotFound("session", "of that id")  # not what was typed, which may be a token
        return matching[0]

    click.echo(f"ended {in_hub(revoke)[:ID_CHARACTERS]}")


@sessions.command()
@click.argument("user")
def revoke_all(user: str) -> None:
    """End all sessions of USER."""

    async def revoke(chat: Hub) -> int:
        return await chat.sessions.revoke_all((await find_user(chat, user)).id)

    ended = in_hub(revoke)
    click.echo(f"ended {ended} {'session' if ended == 1 else 'sessions'}")


def _read_password() -> str:
    if sys.stdin.isatty():
        entered: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return entered
    return sys.stdin.readline().removesuffix("\n")


async def _describe(chat: Hub, user: str) -> list[str]:
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


def _line(session: Session) -> str:
    device = printable(str(session.data.get("device", "-"))[:DEVICE_CHARACTERS])
    times = {"created": session.created_at, "seen": session.seen_at, "ends": session.expires_at}
    columns = "  ".join(f"{label} {time:%Y-%m-%d %H:%M}" for label, time in times.items())
    return f"{session.id[:ID_CHARACTERS]}  {device:{DEVICE_CHARACTERS}}  {columns} UTC"


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
