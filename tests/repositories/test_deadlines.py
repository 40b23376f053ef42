"""A call of several statements has one deadline, which each statement gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest

from commands import ON_CITUS
from hubbub import Hub, HubbubError, NewMessage, Options, PostgresSettings, Room, Settings, User
from hubbub.commits import ignore
from hubbub.hub import Repositories
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.postgres import Pool, Statement

T = TypeVar("T")


class Watched(Pool):
    """A pool that records the deadline of each statement."""

    def __init__(self, settings: PostgresSettings, instrumentation: Instrumentation = SILENT) -> None:
        super().__init__(settings, instrumentation)
        self.deadlines: list[tuple[str, float | None]] = []

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        self.deadlines.append((statement.name, deadline))
        return await super().fetch_all(statement, *args, deadline=deadline)

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        self.deadlines.append((statement.name, deadline))
        return await super().fetch_one(statement, *args, deadline=deadline)

    async def execute(self, statement: Statement[T], *args: object) -> int:
        self.deadlines.append((statement.name, None))
        return await super().execute(statement, *args)

    fetch_in_savepoint = fetch_all


@pytest.fixture
async def watched(settings: Settings, database_on_citus: PostgresSettings | None) -> AsyncIterator[Watched]:
    pool = Watched(settings.postgres)
    if database_on_citus is not None:
        pool.distribute()
    await pool.open()
    yield pool
    await pool.close()


Call = Callable[[Repositories, UUID, UUID], Awaitable[Any]]
CALLS: dict[str, tuple[int, Call]] = {
    "room_users.add": (2, lambda of, room, user: of.room_users.add(room, user)),
    "room_users.add_many": (2, lambda of, room, user: of.room_users.add_many(room, [user])),
    "room_users.remove": (2, lambda of, room, user: of.room_users.remove(room, uuid4())),
    "room_users.set_role": (2, lambda of, room, user: of.room_users.set_role(room, user, "admin")),
    "rooms.direct": (2, lambda of, room, user: of.rooms.direct(user, uuid4())),
    "receipts.readers": (2, lambda of, room, user: of.receipts.readers(uuid4())),
    "receipts.readers in a room": (2, lambda of, room, user: of.receipts.readers(uuid4(), room_id=room)),
    "messages.since": (2, lambda of, room, user: of.messages.since(uuid4(), None)),
    "messages.edit": (2, lambda of, room, user: of.messages.edit(uuid4(), "x", by=user)),
    "messages.delete": (2, lambda of, room, user: of.messages.delete(uuid4(), by=user)),
    "messages.edit in a room": (2, lambda of, room, user: of.messages.edit(uuid4(), "x", by=user, room_id=room)),
    "messages.delete in a room": (2, lambda of, room, user: of.messages.delete(uuid4(), by=user, room_id=room)),
    "messages.page": (2, lambda of, room, user: of.messages.page(uuid4())),
}

# Where rooms are distributed, the statement that finds no room is the only one.
BY_ID = {"messages.edit", "messages.delete", "receipts.readers"}
LOOKS_UP = pytest.mark.one_server("looks the room up first there")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[LOOKS_UP] if name in BY_ID else []) for name in CALLS],
)
async def test_all_statements_of_a_call_have_one_deadline(
    watched: Watched, room: Room, ada: User, name: str
) -> None:
    """A first statement without a deadline sets one of the default length."""
    statements, call = CALLS[name]
    with suppress(HubbubError):
        await call(Repositories(watched, ignore), room.id, ada.id)
    first, *others = [deadline for _, deadline in watched.deadlines]
    assert len(others) == statements - 1 + (ON_CITUS and name == "rooms.direct")  # which asks one node first
    [deadline] = set(others)
    assert deadline is not None
    assert first in {None, deadline}


async def test_all_statements_of_an_entering_follower_have_one_deadline(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, room: Room, ada: User
) -> None:
    monkeypatch.setattr("hubbub.hub.Pool", Watched)
    async with Hub(settings, options=Options(follow_heartbeat_seconds=600, follow_at_most_behind=1)) as hub:
        cursor = (await hub.messages.since(room.id, None)).cursor
        await hub.messages.send_many(room.id, ada.id, [NewMessage("hello")] * 3)
        watched = hub._pool
        assert isinstance(watched, Watched)
        watched.deadlines.clear()
        async with hub.follow(ada.id, after={room.id: cursor}):
            entering = [
                deadline for name, deadline in watched.deadlines if name in {"memberships.rooms_of", "log.heads"}
            ]
            assert len(entering) == 3
            assert len(set(entering)) == 1
            assert None not in entering
