"""Batches of messages: effects of a locked room, a repeated id or a cancelled sender on the other senders."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import TypeVar
from uuid import UUID, uuid4

import pytest

from hubbub import Conflict, Hub, Invalid, Message, MessageType, NotFound, PostgresSettings, Room, Settings, User
from hubbub.commits import Change, MessagesSent
from hubbub.postgres import Pool, Statement, connect
from hubbub.repositories.messages import Messages, MessageWriter, writer
from hubbub.repositories.messages.send import Draft
from log import log_of
from waiting import HANGS_AFTER_SECONDS

T = TypeVar("T")


class Recorded(Pool):
    """A pool that records the name and the deadline of each statement."""

    def __init__(self, settings: PostgresSettings) -> None:
        super().__init__(settings)
        self.names: list[str] = []
        self.deadlines: set[float | None] = set()
        self.last_args: tuple[object, ...] = ()

    def _note(self, statement: Statement[T], deadline: float | None) -> None:
        self.names.append(statement.name)
        self.deadlines.add(deadline)

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        self._note(statement, deadline)
        return await super().fetch_all(statement, *args, deadline=deadline)

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        self._note(statement, deadline)
        return await super().fetch_one(statement, *args, deadline=deadline)

    async def fetch_in_savepoint(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> list[T]:
        self._note(statement, deadline)
        self.last_args = args
        return await super().fetch_in_savepoint(statement, *args, deadline=deadline)


@pytest.fixture
async def recorded(settings: Settings) -> AsyncIterator[Recorded]:
    pool = Recorded(settings.postgres)
    await pool.open()
    yield pool
    await pool.close()


def drafts(user: User, *rooms: Room) -> list[Draft]:
    """One draft per room. Its content is its number in the list."""
    return [Draft(uuid4(), room.id, user.id, f"{n}", MessageType.TEXT) for n, room in enumerate(rooms)]


async def make_rooms(hub: Hub, ada: User, count: int) -> list[Room]:
    return [await hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(count)]


# Locked rooms


async def test_locked_room_does_not_hold_up_the_rest_of_its_batch(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    others = await make_rooms(hub, ada, 3)
    async with hub.transaction() as tx:
        await tx.messages.send(room.id, ada.id, "holds the lock on the room")
        first = asyncio.create_task(hub.messages.send(others[0].id, ada.id, "keeps the writer busy"))
        await asyncio.sleep(0)
        stuck = [asyncio.create_task(hub.messages.send(room.id, ada.id, f"{n}")) for n in range(3)]
        elsewhere = [asyncio.create_task(hub.messages.send(other.id, ada.id, "elsewhere")) for other in others]
        stuck += [asyncio.create_task(hub.messages.send(room.id, ada.id, f"{n}")) for n in range(3, 6)]
        await asyncio.gather(first, *elsewhere)  # otherwise each would fail at the deadline of the stuck statement
        assert not any(send.done() for send in stuck)
    sent = await asyncio.gather(*stuck)
    assert [(message.content, message.seq) for message in sent] == [(f"{n}", n + 3) for n in range(6)]
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * 7


@pytest.mark.one_server("a batch is one room there")
@pytest.mark.parametrize(("seconds", "longest"), [(60, 100), (0.4, 50)])
async def test_wait_for_a_locked_room_leaves_time_for_the_other_rooms(
    hub: Hub, recorded: Recorded, ada: User, room: Room, seconds: float, longest: int
) -> None:
    others = await make_rooms(hub, ada, 2)
    deadline = asyncio.get_running_loop().time() + seconds
    await writer.IndependentSends(recorded).send(drafts(ada, room, *others), deadline=deadline)
    [milliseconds] = [int(arg[:-2]) for arg in recorded.last_args if isinstance(arg, str) and arg.endswith("ms")]
    assert 0 < milliseconds <= longest


async def test_sender_that_waits_for_a_locked_room_can_be_cancelled(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    """Senders are cancelled while the room is locked. Messages in flight may be sent, and the log has no gap."""
    [other] = await make_rooms(hub, ada, 1)
    async with hub.transaction() as tx:
        await tx.messages.send(room.id, ada.id, "locked")
        stuck = [asyncio.create_task(hub.messages.send(room.id, ada.id, f"{n}")) for n in range(20)]
        for _ in range(5):
            await hub.messages.send(other.id, ada.id, "elsewhere")
        for send in stuck[::2]:
            send.cancel()
        await asyncio.wait(stuck[::2])
    sent = await asyncio.gather(*stuck[1::2])
    assert [message.content for message in sent] == [f"{n}" for n in range(1, 20, 2)]
    assert [message.seq for message in sent] == sorted(message.seq for message in sent)
    last = await hub.messages.send(room.id, ada.id, "after")
    assert len(await log_of(pool, room.id)) == last.seq


TOUCH = Statement("test.touch", int, "UPDATE rooms SET description = 'locked' WHERE id = $1")


class LockingPool(Recorded):
    """A pool that locks a room before the second of four sending statements, and unlocks it before the fourth."""

    def __init__(self, settings: PostgresSettings, locked: Room) -> None:
        super().__init__(settings)
        self._locked = locked
        self._lock = AsyncExitStack()

    async def fetch_in_savepoint(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> list[T]:
        match self.names.count("messages.send_many"):
            case 1:
                transaction = await self._lock.enter_async_context(self.transaction())
                await transaction.execute(TOUCH, self._locked.id)
            case 3:
                await self._lock.aclose()
        return await super().fetch_in_savepoint(statement, *args, deadline=deadline)


@pytest.mark.one_server("a batch is one room there")
async def test_batch_in_halves_keeps_the_order_of_a_room_that_was_locked(
    settings: Settings, pool: Pool, postgres_settings: PostgresSettings, hub: Hub, ada: User, room: Room
) -> None:
    [other] = await make_rooms(hub, ada, 1)
    owner = await connect(postgres_settings)
    await owner.execute("ALTER TABLE messages ADD CONSTRAINT no_fifteen CHECK (content <> '15')")
    await owner.close()
    locking = LockingPool(settings.postgres, room)
    together = drafts(ada, *[room, other] * 8)  # the last draft is number 15
    outcomes = await writer.IndependentSends(locking).send(together, deadline=locking.deadline())
    await locking.close()
    assert locking.names[:5] == [
        "messages.send_many",
        "messages.send_many",
        "rooms.not_locked",
        "messages.send_many",
        "messages.send_many",
    ]
    assert [draft.content for draft in together if draft.id not in outcomes] == [f"{n}" for n in range(0, 16, 2)]
    assert isinstance(outcomes, dict)
    assert isinstance(outcomes[together[-1].id], Exception)
    assert await log_of(pool, room.id) == ["joined"]
    assert await log_of(pool, other.id) == ["joined"] + ["sent"] * 7


# Repeated ids


@pytest.mark.one_server("names the statements of one server")
async def test_ids_are_looked_up_first_after_one_was_repeated(
    recorded: Recorded, hub: Hub, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHECK_IDS_FIRST_SECONDS", HANGS_AFTER_SECONDS)
    sender = writer.IndependentSends(recorded)
    before = drafts(ada, *[room] * 10)
    first = await sender.send(before, deadline=recorded.deadline())
    recorded.names.clear()

    again = await sender.send([*before[:3], *drafts(ada, room, room)], deadline=recorded.deadline())
    assert recorded.names == ["messages.send_many", "messages.earlier_sends", "messages.send_many"]
    assert isinstance(first, list)
    assert isinstance(again, dict)
    assert [again[draft.id] for draft in before[:3]] == first[:3]
    recorded.names.clear()

    edited = await hub.messages.edit(before[4].id, "edited", by=ada.id)
    again = await sender.send([*before[3:6], *drafts(ada, room, room)], deadline=recorded.deadline())
    assert recorded.names == ["messages.earlier_sends", "messages.send_many"]
    assert isinstance(again, dict)
    assert again[edited.id] == edited
    assert len(again) == 5


@pytest.mark.one_server("names the statements of one server")
async def test_ids_are_not_looked_up_when_none_was_repeated(recorded: Recorded, ada: User, room: Room) -> None:
    sender = writer.IndependentSends(recorded)
    for _ in range(3):
        await sender.send(drafts(ada, *[room] * 3), deadline=recorded.deadline())
    assert recorded.names == ["messages.send_many"] * 3


async def test_every_sender_gets_its_first_message_under_many_retries(hub: Hub, pool: Pool, ada: User) -> None:
    """Two processes repeat each other's sends, and one id is reused for a different message."""
    rooms = await make_rooms(hub, ada, 5)
    pick = random.Random(11)
    ids = [uuid4() for _ in range(120)]
    first: dict[UUID, Message] = {}

    async def send(hub: Hub, n: int) -> None:
        message = await hub.messages.send(rooms[n % 5].id, ada.id, f"{n}", id=ids[n])
        assert first.setdefault(message.id, message) == message

    async with Hub(hub.settings) as other:
        sends = [send(each, n) for each in (hub, other) for n in range(120) for _ in range(2)]
        pick.shuffle(sends)
        await asyncio.gather(*sends)
        with pytest.raises(Conflict):
            await other.messages.send(rooms[0].id, ada.id, "something else", id=ids[0])
    for one in rooms:
        assert await log_of(pool, one.id) == ["joined"] + ["sent"] * 24


# Cancelled senders


async def test_committed_message_of_a_cancelled_direct_send_is_reported(
    pool: Pool, ada: User, room: Room, hub: Hub
) -> None:
    reported: set[UUID] = set()

    def note(change: Change) -> None:
        assert isinstance(change, MessagesSent)
        reported.update(message.id for message in change.messages)

    messages = MessageWriter(pool, note, deadline_seconds=10)
    pick = random.Random(5)
    sent = drafts(ada, *[room] * 150)
    for draft in sent:
        sending = asyncio.create_task(messages.send(draft))
        for _ in range(pick.randrange(8)):
            await asyncio.sleep(0)
        if pick.random() < 0.5:
            await asyncio.wait([sending], timeout=pick.uniform(0, 0.005))
        sending.cancel()
        await asyncio.wait([sending])
    await messages.drain()
    stored = await hub.messages.get_many(draft.id for draft in sent)
    assert set(stored) == reported
    assert len(await log_of(pool, room.id)) == 1 + len(stored)


async def test_cancelled_direct_send_stays_ahead_of_later_messages(hub: Hub, ada: User, room: Room) -> None:
    async with hub.transaction() as tx:
        await tx.rooms.update(room.id, description="locked")
        gone = asyncio.create_task(hub.messages.send(room.id, ada.id, "first"))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        second = asyncio.create_task(hub.messages.send(room.id, ada.id, "second"))
        await asyncio.sleep(0)
    await second
    assert [message.content for message in (await hub.messages.page(room.id)).items] == ["first", "second"]


# Deadlines


@pytest.mark.one_server("names the statements of one server")
async def test_call_of_several_statements_has_one_deadline(recorded: Recorded, ada: User, room: Room) -> None:
    messages = Messages(recorded, writer=MessageWriter(recorded, lambda _: None, deadline_seconds=10))
    id, nothing = uuid4(), uuid4()
    await messages.send(room.id, ada.id, "hello", id=id)
    calls = {
        "a retry": messages.send(room.id, ada.id, "hello", id=id),
        "a refused reply": messages.send(room.id, ada.id, "to nothing", reply_to=nothing),
        "an edit that changes nothing": messages.edit(id, "hello", by=ada.id),
        "a page around a message": messages.page(room.id, around=id),
        "a page of no room": messages.page(nothing),
    }
    for name, call in calls.items():
        recorded.names.clear()
        recorded.deadlines.clear()
        with suppress(Invalid, NotFound):
            await call
        assert len(recorded.names) > 1, name
        assert len(recorded.deadlines) == 1, name
        assert None not in recorded.deadlines, name
