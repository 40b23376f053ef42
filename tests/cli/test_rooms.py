from __future__ import annotations

from uuid import uuid4

from cli.running import run
from hubbub import Hub, Room, Settings, User


async def test_list_has_public_rooms_by_the_start_of_their_name(
    settings: Settings, hub: Hub, room: Room, ada: User
) -> None:
    hidden = await hub.rooms.create("engine control", created_by=ada.id, is_private=True)
    news = await hub.rooms.create("\x1b[2Jnews", created_by=ada.id)
    output = await run(settings, "rooms", "list")
    assert (output.status, output.error) == (0, "")
    assert {line.split()[0] for line in output.out.splitlines()} == {str(room.id), str(news.id)}
    assert all(line.isprintable() for line in output.out.splitlines())
    assert [line.split()[0] for line in (await run(settings, "rooms", "list", "ENG")).out.splitlines()] == [
        str(room.id)
    ]
    of_ada = await run(settings, "rooms", "list", "--user", "ada")
    assert {line.split()[0] for line in of_ada.out.splitlines()} == {str(room.id), str(news.id), str(hidden.id)}
    assert (await run(settings, "rooms", "list", "none")).out == "no rooms\n"


async def test_room_is_shown_with_its_members(
    settings: Settings, hub: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    await hub.rooms.update(room.id, description="steam", metadata={"topic": "steam"})
    for name in (str(room.id), "engine-room"):
        output = await run(settings, "rooms", "show", name)
        assert (output.status, output.error) == (0, "")
        for part in ("engine-room", "public", "steam", '{"topic":"steam"}', "ada", "bob", "admin", "3 entries"):
            assert part in output.out


async def test_unknown_room_is_an_error_without_a_traceback(settings: Settings) -> None:
    for room in ("nothing", str(uuid4())):
        output = await run(settings, "rooms", "show", room)
        assert output.status == 1
        assert "there is no" in output.error
        assert "Traceback" not in output.error
