"""Every public call of a hub, found by reflection, so that a new call is tested automatically."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from uuid import uuid4

from hubbub import Hub, new_id
from injection.operations import NOT_DRIVEN, NOT_PARTS, World, operations, use

Call = Callable[[], Awaitable[object]]

# Methods that are not called by reflection, and the place that calls them.
DRIVEN_ELSEWHERE = {
    "start": "the test opens another hub",
    "close": "the test closes another hub",
    "transaction": "here",
    "changes.end": "here",
    "on": "tests/test_on_connection.py, as it is the application's connection that fails",
}
PARTS_ELSEWHERE = {
    "settings": "values",
    "history": "here",
}
assert NOT_DRIVEN.keys() <= DRIVEN_ELSEWHERE.keys(), "a public method is not tested"
assert NOT_PARTS.keys() <= PARTS_ELSEWHERE.keys(), "a public part is not tested"

# Calls that change a table by one statement of their own.
CHANGES = {
    *("users.create", "users.create_anonymous", "users.upsert"),
    *("users.update_profile", "users.update_online_status"),
    *("users.set_online_many", "users.change_password_hash", "users.renew_password_hash"),
    *("rooms.create", "rooms.update", "rooms.delete"),
    *("room_users.add", "room_users.add_many", "room_users.remove", "room_users.set_role"),
    *("messages.send", "messages.send_many", "messages.edit", "messages.delete"),
    *("receipts.mark_read", "receipts.mark_unread"),
    *("changes.follow", "changes.forget"),
}
# The calls among these that change a room in turn. While one is in flight, the others wait unsent in the process.
CHANGES_IN_TURN = {
    *("rooms.update", "messages.edit", "messages.delete"),
    *("room_users.add", "room_users.add_many", "room_users.remove", "room_users.set_role"),
}
# Calls that hash a password or ask Redis first, and may not reach their statement in time.
CHANGES_AFTER_OTHER_WORK = {"register", "change_password"}
# Calls in a transaction: only the outcome of its COMMIT may be unknown.
TRANSACTIONS = {"users.delete", "delete_account"}


async def world_in(hub: Hub) -> World:
    """Two users, a room of theirs with a message, and a session, which no other world shares."""
    name = uuid4().hex[:20]
    ada = await hub.users.create(f"ada-{name}@example.org", f"ada-{name}", "not a hash")
    bob = await hub.users.create(f"bob-{name}@example.org", f"bob-{name}", "not a hash")
    room = await hub.rooms.create(name, created_by=ada.id)
    await hub.room_users.add(room.id, bob.id)
    message = await hub.messages.send(room.id, ada.id, "hello")
    world = World(hub, ada, bob, room, message, await hub.sessions.create_session(ada.id))
    # Values that are taken or meaningless would be refused before they reach a server.
    world.good |= {"username": f"grace-{name}", "email": f"grace-{name}@example.org", "login": ada.username}
    world.good |= {"session_id": (await hub.sessions.list(ada.id))[0].id, "deadline_seconds": 1.0}
    return world


def calls_in(world: World, folder: Path) -> dict[str, Call]:
    """Each call by its name. It can be made several times."""
    hub = world.hub
    calls = {
        operation.name: _call(operation.of(hub), {name: good[name] for name in operation.parameters})
        for operation in operations(hub)
        # Two accounts cannot have the same external id.
        for good in [world.good | {"external_id": f"{operation.name}-{world.ada.username}"}]
    }
    return calls | {
        "transaction": lambda: _transaction(world),
        "changes.end": hub.changes.end,
        "history.find": lambda: hub.history.find(world.room.name),
        "history.lines": lambda: _read_lines(world),
        "history.load": lambda: _load(world, folder),
    }


def _call(method: Callable[..., object], arguments: dict[str, object]) -> Call:
    async def call() -> object:
        return await use(method(**arguments))

    return call


async def _transaction(world: World) -> None:
    async with world.hub.transaction() as tx:
        await tx.users.get(world.ada.id)
        await tx.messages.send(world.room.id, world.ada.id, "first", id=new_id())
        async with tx.savepoint() as part:
            await part.messages.send(world.room.id, world.ada.id, "second")


async def _read_lines(world: World) -> None:
    async with aclosing(world.hub.history.lines(world.room.id)) as pieces:
        async for _ in pieces:
            pass


async def _load(world: World, folder: Path) -> None:
    """Load a line of history that was not loaded before."""
    path = folder / f"{uuid4().hex}.jsonl.gz"
    line = b'{"kind": "message", "room": "%s", "user": "eve", "at": "2020-01-01T00:00:00Z", "content": "hello"}\n'
    path.write_bytes(gzip.compress(line % uuid4().hex.encode()))
    with path.open("rb") as file:
        await world.hub.history.load(file)
