"""A member who sends a message has read what is before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from hubbub import Hub, NewMessage, NotAMember, Options, Room, Settings, Unavailable, User
from hubbub import author_marks as module
from hubbub.author_marks import MAX_KNOWN, AuthorMarks
from hubbub.commits import Commits, MessagesSent, ReadMarkMoved, RoomRewound
from hubbub.events import ReadMarkChanged
from hubbub.models import Message, MessageType
from hubbub.postgres import connect
from reports import reports
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

pytestmark = pytest.mark.usefixtures("marks_are_awaited")

Mark = tuple[UUID, UUID, int]


class Marks:
    """Stands in for `receipts.mark_read`: keeps the calls, and fails or waits as it is told."""

    def __init__(self) -> None:
        self.made: list[Mark] = []
        self.failures: list[Exception] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.held: dict[int, asyncio.Event] = {}  # by seq

    async def mark_read(self, room_id: UUID, user_id: UUID, seq: int) -> None:
        await self.may_answer.wait()
        if seq in self.held:
            await self.held[seq].wait()
        if self.failures:
            raise self.failures.pop(0)
        self.made.append((room_id, user_id, seq))


@pytest.fixture
def marks() -> Marks:
    return Marks()


@pytest.fixture
def commits() -> Commits:
    return Commits()


@pytest.fixture
async def author_marks(marks: Marks, commits: Commits) -> AsyncIterator[AuthorMarks]:
    author_marks = AuthorMarks(marks.mark_read)
    author_marks.register(commits)
    author_marks.start()
    yield author_marks
    marks.may_answer.set()
    await author_marks.close()


def sent(room_id: UUID, user_id: UUID | None, *seqs: int) -> MessagesSent:
    at = datetime.now(UTC)
    return MessagesSent(
        [Message(uuid4(), room_id, seq, user_id, "hello", MessageType.TEXT, False, at, at, None) for seq in seqs]
    )


ROOM, OTHER, ADA, BOB = uuid4(), uuid4(), uuid4(), uuid4()


def later() -> float:
    """A deadline that no test reaches."""
    return asyncio.get_running_loop().time() + HANGS_AFTER_SECONDS


@pytest.fixture
async def question(hub: Hub, ada: User, bob: User, room: Room) -> Message:
    """A message of Ada's, in a room with Bob."""
    await hub.room_users.add(room.id, bob.id)
    return await hub.messages.send(room.id, ada.id, "is anybody there?")


async def read_mark(hub: Hub, room: Room, user: User) -> int:
    return (await hub.room_users.get(room.id, user.id)).last_read_seq


async def until_marked(hub: Hub, room: Room, user: User, seq: int) -> None:
    async def is_marked() -> bool:
        return await read_mark(hub, room, user) == seq

    await until_it_answers(is_marked)


async def test_author_has_read_what_is_before_the_message(
    hub: Hub, bob: User, room: Room, question: Message
) -> None:
    answer = await hub.messages.send(room.id, bob.id, "yes", reply_to=question.id)
    [receipt] = (await hub.receipts.readers(question.id)).items
    assert receipt.user_id == bob.id
    assert receipt.read_at is not None
    assert await hub.receipts.unread_count(room.id, bob.id) == 0
    member = await hub.room_users.get(room.id, bob.id)
    assert (member.last_read_seq, member.last_read_message_id) == (answer.seq, answer.id)


async def test_each_read_of_the_read_state_waits_for_marks_of_its_process(
    hub: Hub, ada: User, bob: User, room: Room, question: Message
) -> None:
    async def counts() -> int:
        return (await hub.receipts.unread_counts(bob.id))[room.id]

    async def in_list() -> int:
        [summary] = (await hub.rooms.list_for(bob.id)).items
        return summary.unread

    async def in_summary() -> int:
        return (await hub.rooms.summary(room.id, bob.id)).unread

    async def after_read_mark() -> int:
        members = {member.user_id: member for member in (await hub.room_users.members(room.id)).items}
        page = await hub.messages.page(room.id, after=members[bob.id].last_read_seq)
        return len([message for message in page.items if message.user_id == ada.id])

    async def of_one() -> int:
        return await hub.receipts.unread_count(room.id, bob.id)

    await hub.receipts.mark_read(room.id, bob.id, up_to=question.seq)
    for unread in (counts, of_one, in_list, in_summary, after_read_mark):
        await hub.messages.send(room.id, ada.id, "and now?")
        assert await unread() == 1
        await hub.messages.send_many(room.id, bob.id, [NewMessage("yes"), NewMessage("still")])
        assert await unread() == 0


async def test_other_process_and_other_devices_see_it_soon(
    hub: Hub, settings: Settings, ada: User, bob: User, room: Room, question: Message
) -> None:
    async with (
        Hub(settings) as elsewhere,
        elsewhere.follow(bob.id, read_marks=True) as device,
        elsewhere.follow(ada.id, read_marks=True) as member,
    ):
        answer = await hub.messages.send(room.id, bob.id, "yes")
        expected = ReadMarkChanged(room.id, bob.id, answer.seq)
        for feed in (device, member):
            async with asyncio.timeout(HANGS_AFTER_SECONDS):
                async for event in feed:
                    if event == expected:
                        break
        assert await elsewhere.receipts.unread_count(room.id, bob.id) == 0


async def test_messages_of_a_transaction_mark_after_its_commit(
    hub: Hub, bob: User, room: Room, question: Message
) -> None:
    with suppress(LookupError):
        async with hub.transaction() as transaction:
            await transaction.messages.send(room.id, bob.id, "undone")
            raise LookupError
    assert await hub.receipts.unread_count(room.id, bob.id) == 1
    async with hub.transaction() as transaction:
        await transaction.messages.send(room.id, bob.id, "yes")
        assert await transaction.receipts.unread_count(room.id, bob.id) == 1
        assert await hub.receipts.unread_count(room.id, bob.id) == 1
    assert await hub.receipts.unread_count(room.id, bob.id) == 0


async def test_read_in_a_transaction_does_not_wait_for_a_membership_that_it_has_locked(
    hub: Hub, bob: User, room: Room, question: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_call(**_: object) -> None:
        pytest.fail("it would wait for itself")

    await hub.messages.send(room.id, bob.id, "yes")
    async with hub.transaction() as transaction:
        await transaction.receipts.mark_read(room.id, bob.id, up_to=question.seq)
        with monkeypatch.context() as patch:
            patch.setattr(hub._author_marks, "settle", no_call)
            await hub.receipts.unread_count(room.id, bob.id)
    assert await hub.receipts.unread_count(room.id, bob.id) == 0


async def test_read_does_not_wait_for_long_for_a_membership_that_another_connection_has_locked(
    hub: Hub, settings: Settings, bob: User, room: Room, question: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAIT_SECONDS", 0.1)
    holder = await connect(settings.postgres)
    try:
        async with holder.transaction():
            await holder.execute(
                "SELECT 1 FROM room_users WHERE room_id = $1 AND user_id = $2 FOR UPDATE", room.id, bob.id
            )
            answer = await hub.messages.send(room.id, bob.id, "yes")  # does not wait at all
            assert await hub.receipts.unread_count(room.id, bob.id) == 1
            assert len((await hub.room_users.members(room.id)).items) == 2
    finally:
        await holder.close()
    await until_marked(hub, room, bob, answer.seq)


async def test_room_marked_as_unread_after_the_message_stays_unread_until_the_next(
    hub: Hub, bob: User, room: Room, question: Message
) -> None:
    await hub.messages.send(room.id, bob.id, "yes")
    assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=question.seq) == question.seq - 1
    assert await hub.receipts.unread_count(room.id, bob.id) == 1
    await hub.messages.send(room.id, bob.id, "I am here")
    assert await hub.receipts.unread_count(room.id, bob.id) == 0


async def test_close_makes_and_announces_the_marks_that_wait(
    hub: Hub, settings: Settings, bob: User, room: Room, question: Message
) -> None:
    async with hub.follow(bob.id, read_marks=True) as device:
        async with Hub(settings) as elsewhere:
            answer = await elsewhere.messages.send(room.id, bob.id, "yes")
        assert await read_mark(hub, room, bob) == answer.seq
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            async for event in device:
                if event == ReadMarkChanged(room.id, bob.id, answer.seq):
                    break


async def test_unread_mark_of_a_transaction_is_not_undone(
    hub: Hub, bob: User, room: Room, question: Message
) -> None:
    answer = await hub.messages.send(room.id, bob.id, "yes")
    await hub.receipts.mark_read(room.id, bob.id, up_to=answer.seq)
    async with hub.transaction() as transaction:
        await transaction.receipts.mark_unread(room.id, bob.id, from_seq=question.seq)
    assert await hub.receipts.unread_count(room.id, bob.id) == 1
    await hub.messages.send(room.id, bob.id, "I am here")
    assert await hub.receipts.unread_count(room.id, bob.id) == 0


async def test_author_who_has_left_gets_no_mark_and_no_report(
    hub: Hub, bob: User, room: Room, question: Message
) -> None:
    with reports() as reported:
        await hub.messages.send(room.id, bob.id, "bye")
        await hub.room_users.remove(room.id, bob.id)
        await hub.receipts.readers(question.id)
        await until(lambda: not hub._author_marks._tasks)
    assert not hub._author_marks.has_pending()
    assert reported == []


async def test_application_may_do_without(
    hub: Hub, settings: Settings, bob: User, room: Room, question: Message
) -> None:
    async with Hub(settings, options=Options(mark_read_on_send=False)) as elsewhere:
        await elsewhere.messages.send(room.id, bob.id, "yes")
        assert await elsewhere.receipts.unread_count(room.id, bob.id) == 1
    assert await hub.receipts.unread_count(room.id, bob.id) == 1


async def test_many_messages_of_an_author_get_one_mark(
    author_marks: AuthorMarks, commits: Commits, marks: Marks
) -> None:
    for seq in range(2, 100, 2):  # others write in between
        commits(sent(ROOM, ADA, seq))
    await until(lambda: bool(marks.made))
    assert marks.made == [(ROOM, ADA, 98)]


async def test_message_that_follows_the_previous_one_or_a_read_mark_needs_no_mark(
    author_marks: AuthorMarks, commits: Commits, marks: Marks
) -> None:
    commits(sent(ROOM, ADA, 5, 6))
    await author_marks.settle(user_id=ADA, deadline=later())
    commits(sent(ROOM, ADA, 7))
    commits(sent(ROOM, ADA, 7))  # found by a retry
    commits(ReadMarkMoved(ROOM, ADA, 5, True))  # the mark of the first one, announced late
    commits(sent(ROOM, ADA, 8))
    commits(ReadMarkMoved(ROOM, ADA, 20, True))
    commits(sent(ROOM, ADA, 21))
    await author_marks.settle(user_id=ADA, deadline=later())
    assert marks.made == [(ROOM, ADA, 6)]


async def test_read_mark_of_the_user_takes_the_place_of_one_that_waits(
    author_marks: AuthorMarks, commits: Commits, marks: Marks
) -> None:
    commits(sent(ROOM, ADA, 5))
    commits(sent(ROOM, BOB, 6))
    commits(ReadMarkMoved(ROOM, ADA, 6, True))
    await author_marks.settle(room_id=ROOM, deadline=later())
    assert marks.made == [(ROOM, BOB, 6)]
    assert not author_marks.has_pending()


async def test_room_whose_log_went_back_is_marked_again(
    author_marks: AuthorMarks, commits: Commits, marks: Marks
) -> None:
    commits(sent(ROOM, ADA, 900))
    await author_marks.settle(user_id=ADA, deadline=later())
    commits(sent(ROOM, ADA, 7))
    await author_marks.settle(user_id=ADA, deadline=later())
    commits(RoomRewound(ROOM))
    commits(sent(ROOM, ADA, 8))
    await author_marks.settle(user_id=ADA, deadline=later())
    assert marks.made == [(ROOM, ADA, 900), (ROOM, ADA, 7), (ROOM, ADA, 8)]


async def test_only_marks_that_a_read_concerns_are_made_before_it(
    author_marks: AuthorMarks, commits: Commits, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARK_AFTER_SECONDS", HANGS_AFTER_SECONDS)
    for room_id in (ROOM, OTHER):
        for user_id in (ADA, BOB):
            commits(sent(room_id, user_id, 5))
    await author_marks.settle(room_id=ROOM, user_id=ADA, deadline=later())
    assert marks.made == [(ROOM, ADA, 5)]
    await author_marks.settle(user_id=ADA, deadline=later())
    assert marks.made[1:] == [(OTHER, ADA, 5)]
    await author_marks.settle(room_id=ROOM, deadline=later())
    assert marks.made[2:] == [(ROOM, BOB, 5)]


async def test_read_waits_for_the_newest_of_two_marks_in_flight(
    author_marks: AuthorMarks, commits: Commits, marks: Marks
) -> None:
    marks.held = {5: asyncio.Event(), 9: asyncio.Event()}
    commits(sent(ROOM, ADA, 5))
    first = asyncio.create_task(author_marks.settle(user_id=ADA, deadline=later()))
    await until(lambda: bool(author_marks._tasks))
    commits(sent(ROOM, ADA, 9))
    second = asyncio.create_task(author_marks.settle(user_id=ADA, deadline=later()))
    await until(lambda: len(author_marks._tasks) == 2)
    marks.held[5].set()
    await first
    await until(lambda: len(author_marks._tasks) == 1)
    assert not second.done()
    marks.held[9].set()
    await second
    assert marks.made == [(ROOM, ADA, 5), (ROOM, ADA, 9)]
    assert not author_marks.has_pending()


async def test_read_waits_for_a_part_of_its_time_only(
    author_marks: AuthorMarks, commits: Commits, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARK_WAIT_DIVISOR", 1_000)
    marks.may_answer.clear()
    commits(sent(ROOM, ADA, 5))
    deadline = later()
    await author_marks.settle(user_id=ADA, deadline=deadline)
    assert asyncio.get_running_loop().time() < deadline
    assert author_marks.has_pending()


async def test_room_marked_as_unread_after_the_message_loses_the_mark_that_waits_and_the_next_message_is_marked(
    author_marks: AuthorMarks, commits: Commits, marks: Marks
) -> None:
    commits(sent(ROOM, ADA, 5))
    commits(ReadMarkMoved(ROOM, ADA, 3, True, is_back=True))
    assert not author_marks.has_pending()
    commits(sent(ROOM, ADA, 6))
    await author_marks.settle(user_id=ADA, deadline=later())
    assert marks.made == [(ROOM, ADA, 6)]


@pytest.mark.parametrize(
    ("failure", "is_reported"),
    [(Unavailable("postgresql", "is gone"), False), (NotAMember(ROOM, ADA), False), (LookupError(), True)],
)
async def test_mark_that_failed_is_not_repeated_and_the_next_message_is_marked(
    author_marks: AuthorMarks, commits: Commits, marks: Marks, failure: Exception, *, is_reported: bool
) -> None:
    marks.failures = [failure]
    commits(sent(ROOM, ADA, 5))
    with reports() as reported:
        await author_marks.settle(user_id=ADA, deadline=later())
    assert (marks.made, bool(reported)) == ([], is_reported)
    assert not author_marks.has_pending()
    commits(sent(ROOM, ADA, 6))
    await author_marks.settle(user_id=ADA, deadline=later())
    assert marks.made == [(ROOM, ADA, 6)]


async def test_author_whose_account_was_deleted_gets_no_mark(
    author_marks: AuthorMarks, commits: Commits, marks: Marks
) -> None:
    commits(sent(ROOM, None, 6))
    assert not author_marks.has_pending()


async def test_read_in_another_event_loop_does_not_wait(
    author_marks: AuthorMarks, commits: Commits, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read() -> None:
        await author_marks.settle(user_id=ADA, deadline=later())

    monkeypatch.setattr(module, "MARK_AFTER_SECONDS", HANGS_AFTER_SECONDS)
    marks.may_answer.clear()
    commits(sent(ROOM, ADA, 5))
    await asyncio.to_thread(asyncio.run, read())
    assert author_marks.has_pending()
    assert not author_marks._tasks


async def test_close_does_not_wait_for_a_server_that_is_silent(
    author_marks: AuthorMarks, commits: Commits, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAIT_SECONDS", 0.1)
    marks.may_answer.clear()
    commits(sent(ROOM, ADA, 5))
    before = asyncio.all_tasks()
    await author_marks.close()
    await until(lambda: asyncio.all_tasks() <= before)
    assert marks.made == []


async def test_memory_is_bounded(author_marks: AuthorMarks, commits: Commits) -> None:
    for _ in range(MAX_KNOWN + 10):
        commits(sent(uuid4(), ADA, 1))
    assert len(author_marks._known) == MAX_KNOWN
    assert not author_marks.has_pending()
