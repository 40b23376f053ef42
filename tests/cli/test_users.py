from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from cli.running import Terminal, answer, run
from hubbub import Hub, NotFound, Role, Room, Settings, User, UserKind

SECRET = "a passphrase typed at a terminal"
OTHER = "another passphrase for the same account"


async def test_password_of_a_new_account_is_read_without_being_shown(settings: Settings, hub: Hub) -> None:
    words = ("users", "create", "grace", "--email", "grace@example.org", "--display-name", "Grace Hopper")
    async with Terminal(settings, *words) as terminal:
        questions = [("Password", f"{SECRET}\n"), ("Repeat", f"{SECRET}\n")]
        assert await answer(terminal, questions) == 0
        await terminal.until("created grace")
    assert SECRET not in terminal.shown
    user = await hub.authenticate("grace@example.org", SECRET)
    assert user is not None
    assert user.display_name == "Grace Hopper"


async def test_password_is_the_first_line_of_standard_input(settings: Settings, hub: Hub) -> None:
    output = await run(settings, "users", "create", "grace", stdin=f"{SECRET}\nmore\n")
    user = await hub.users.find_by_username("grace")
    assert user is not None
    assert output == (0, f"created grace  {user.id}\n", "")
    assert user.email is None
    assert await hub.authenticate("grace", SECRET) == user


@pytest.mark.parametrize("stdin", ["", "\n", "x" * 73])
async def test_unusable_password_creates_no_account(settings: Settings, hub: Hub, stdin: str) -> None:
    output = await run(settings, "users", "create", "grace", stdin=stdin)
    assert output.status == 1
    assert "password" in output.error
    assert "Traceback" not in output.error
    assert await hub.users.find_by_username("grace") is None


async def test_bot_and_user_of_another_system_have_no_password(settings: Settings, hub: Hub) -> None:
    assert (await run(settings, "users", "create", "weather", "--bot")).status == 0
    assert (await run(settings, "users", "create", "grace", "--external-id", "google|7")).status == 0
    bot, user = await hub.users.find_by_username("weather"), await hub.users.find_by_external_id("google|7")
    assert bot is not None
    assert user is not None
    assert (bot.kind, user.username) == (UserKind.BOT, "grace")
    for name in ("weather", "grace"):
        assert await hub.users.find_credentials(name) is None
    shown = await run(settings, "users", "show", "google|7")
    assert str(user.id) in shown.out
    await hub.users.create(None, "linus", None, external_id=str(bot.id))
    assert "weather" in (await run(settings, "users", "show", str(bot.id))).out  # an id of hubbub is tried first
    await hub.users.create(None, "42", None, external_id="google|42")
    await hub.users.create(None, "ken", None, external_id="42")
    ambiguous = await run(settings, "users", "delete", "42", "--yes")
    assert ambiguous.status == 1
    assert "use an id" in ambiguous.error
    assert await hub.users.find_by_username("42") is not None
    for unknown in ("google|8", "x" * 256, "7@example.org"):
        assert "there is no user" in (await run(settings, "users", "show", unknown)).error


async def test_password_that_is_set_ends_all_sessions(settings: Settings, hub: Hub) -> None:
    user = await hub.register("grace@example.org", "grace", SECRET)
    token = await hub.sessions.create_session(user.id)
    async with Terminal(settings, "users", "password", "GRACE") as terminal:
        assert await answer(terminal, [("Password", f"{OTHER}\n"), ("Repeat", f"{OTHER}\n")]) == 0
    assert OTHER not in terminal.shown
    assert await hub.authenticate("grace", SECRET) is None
    changed = await hub.authenticate("grace", OTHER)
    assert changed is not None
    assert changed.id == user.id
    assert await hub.sessions.get_session(token) is None


async def test_account_is_shown_with_its_rooms_and_without_control_characters(
    settings: Settings, hub: Hub, room: Room, ada: User
) -> None:
    await hub.users.update_profile(ada.id, display_name="Ada", metadata={"note": "\u202egpj.exe"})
    await hub.rooms.update(room.id, name="\x1b[2Jroom")
    shown = []
    for name in ("ada", "ADA@example.org", str(ada.id)):
        output = await run(settings, "users", "show", name)
        assert (output.status, output.error) == (0, "")
        shown.append(output.out)
    assert len(set(shown)) == 1
    lines = shown[0].splitlines()
    for part in (str(ada.id), "ada@example.org", "Ada", "person", "?[2Jroom", Role.ADMIN):
        assert part in shown[0]
    assert all(line.isprintable() for line in lines)
    assert "not a hash" not in shown[0]


async def test_account_is_deleted_after_a_question(settings: Settings, hub: Hub, bob: User) -> None:
    output = await run(settings, "users", "delete", "bob")
    assert output.status == 2
    assert "--yes" in output.error
    async with Terminal(settings, "users", "delete", "bob") as terminal:
        assert await answer(terminal, [("Delete the account bob", "n\n")]) == 1
    assert await hub.users.get(bob.id) == bob
    async with Terminal(settings, "users", "delete", "bob") as terminal:
        assert await answer(terminal, [("Delete the account bob", "y\n")]) == 0
    with pytest.raises(NotFound):
        await hub.users.get(bob.id)


async def test_account_is_deleted_without_a_terminal(settings: Settings, hub: Hub, bob: User) -> None:
    assert await run(settings, "users", "delete", "bob", "--yes") == (0, f"deleted bob  {bob.id}\n", "")
    assert await hub.users.find_by_username("bob") is None


async def test_unknown_user_is_an_error_without_a_traceback(settings: Settings) -> None:
    commands = (("show", "stranger"), ("password", "x@example.org"), ("delete", str(uuid4()), "--yes"))
    outputs = await asyncio.gather(*(run(settings, "users", *words) for words in commands))
    for words, output in zip(commands, outputs, strict=True):
        assert output.status == 1
        assert f"there is no user {words[1]}" in output.error
        assert "Traceback" not in output.error
