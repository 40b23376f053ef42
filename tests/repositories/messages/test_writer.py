"""Sends that share statements: the outcome of each when a draft is refused or the server fails."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from hubbub import (
    Conflict,
    Hub,
    Invalid,
    Message,
    MessageType,
    NotAMember,
    PostgresSettings,
    Room,
    Settings,
    Unavailable,
    User,
    batching,
)
from hubbub.batching import LOAD
from hubbub.commits import Change, MessagesSent
from hubbub.postgres import Pool, connect
from hubbub.repositories.messages import writer
from hubbub.repositories.messages.send import Draft
from log import log_of
from waiting import until


async def add_users(hub: Hub, room: Room, count: int) -> list[User]:
    users = [await hub.users.create(f"p{n}@example.org", f"p{n}", "hash") for n in range(count)]
    await hub.room_users.add_many(room.id, [one.id for one in users])
    return users


async def commits(pool: Pool, hub: Hub) -> int:
    """The number of transactions that have written messages. Messages of one commit share an xmin."""
    connection = await connect(hub.settings.postgres)
    try:
        return int(await connection.fetchval("SELECT count(DISTINCT xmin::text) FROM messages"))
    finally:
        await connection.close()


async def test_concurrent_sends_share_commits(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    sent = await asyncio.gather(*(hub.messages.send(room.id, ada.id, f"message {n}") for n in range(200)))
    assert [message.content for message in sorted(sent, key=lambda message: message.seq)] == [
        f"message {n}" for n in range(200)
    ]
    assert await commits(pool, hub) <= 3
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * 200
    assert await hub.messages.get_many([message.id for message in sent]) == {
        message.id: message for message in sent
    }


async def test_sequential_sends_commit_separately(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    for n in range(5):
        await hub.messages.send(room.id, ada.id, f"message {n}")
    assert await commits(pool, hub) == 5


async def test_each_draft_of_a_batch_has_its_own_outcome(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    retried, taken = uuid4(), uuid4()
    first = await hub.messages.send(room.id, ada.id, "sent before", id=retried)
    await hub.messages.send(room.id, ada.id, "something", id=taken)
    twice = uuid4()

    async def outcome(room_id: UUID, user_id: UUID, content: str, id: UUID | None = None) -> object:
        try:
            return await hub.messages.send(room_id, user_id, content, id=id)
        except (NotAMember, Conflict, Invalid) as refusal:
            return type(refusal)

    outcomes = await asyncio.gather(
        *(outcome(room.id, ada.id, f"good {n}") for n in range(20)),
        outcome(room.id, bob.id, "not a member"),
        outcome(uuid4(), ada.id, "no such room"),
        outcome(room.id, ada.id, "sent before", retried),
        outcome(room.id, ada.id, "something else", taken),
        outcome(room.id, ada.id, "nul\0"),
        outcome(room.id, ada.id, "twice", twice),
        outcome(room.id, ada.id, "twice", twice),
        *(outcome(room.id, ada.id, f"good {n}") for n in range(20, 40)),
    )

    good = [outcome for outcome in outcomes if isinstance(outcome, Message)]
    assert Counter(outcome for outcome in outcomes if not isinstance(outcome, Message)) == {
        NotAMember: 2,
        Conflict: 1,
        Invalid: 1,
    }
    assert first in good
    assert len({message.id for message in good}) == 42
    assert [message.content for message in good if message.content.startswith("good")] == [
        f"good {n}" for n in range(40)
    ]
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * 43


async def test_one_draft_that_cannot_be_stored_fails_alone(
    hub: Hub, postgres_settings: PostgresSettings, pool: Pool, ada: User, room: Room
) -> None:
    """A CHECK that is unknown to `inputs` stands for any unforeseen refusal by the database."""
    connection = await connect(postgres_settings)
    await connection.execute(
        "ALTER TABLE messages ADD CONSTRAINT messages_seq_check2 CHECK (content NOT LIKE 'bad%')"
    )
    await connection.close()
    results = await asyncio.gather(
        *(hub.messages.send(room.id, ada.id, f"{'bad' if n % 10 == 3 else 'good'} {n}") for n in range(60)),
        return_exceptions=True,
    )
    assert [n for n, result in enumerate(results) if isinstance(result, BaseException)] == [3, 13, 23, 33, 43, 53]
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * 54


async def test_cancelled_senders_leave_no_gap_and_others_succeed(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    pick = random.Random(7)
    sends = [asyncio.create_task(hub.messages.send(room.id, ada.id, f"message {n}")) for n in range(300)]
    for _ in range(3):
        await asyncio.sleep(0)
    cancelled = pick.sample(sends, 100)
    for send in cancelled:
        send.cancel()
    results = await asyncio.gather(*sends, return_exceptions=True)

    acknowledged = [result for result in results if isinstance(result, Message)]
    assert len(acknowledged) >= 200
    kinds = await log_of(pool, room.id)
    assert kinds.count("sent") >= len(acknowledged)
    assert set(await hub.messages.get_many([message.id for message in acknowledged])) == {
        message.id for message in acknowledged
    }
    assert (await hub.messages.send(room.id, ada.id, "still works")).seq == len(kinds) + 1


async def test_two_processes_send_into_the_same_rooms(hub: Hub, pool: Pool, ada: User) -> None:
    rooms = [await hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(20)]
    async with Hub(hub.settings) as other:
        await asyncio.gather(
            *((hub, other)[n % 2].messages.send(rooms[n * 7 % 20].id, ada.id, f"message {n}") for n in range(1000))
        )
    for room in rooms:
        assert await log_of(pool, room.id) == ["joined"] + ["sent"] * 50


@pytest.mark.one_server("finds the INSERT of one server in pg_stat_activity")
async def test_send_whose_answer_was_lost_is_recognised_on_the_retry(
    hub: Hub, administrator: PostgresSettings, pool: Pool, ada: User, room: Room
) -> None:
    # Without a pooler, which refuses a client whose session has just ended.
    admin = await connect(replace(administrator, database=hub.settings.postgres.database))
    ids = [uuid4() for _ in range(100)]

    async def insist(id: UUID) -> Message:
        while True:
            try:
                return await hub.messages.send(room.id, ada.id, f"message {id}", id=id)
            except Unavailable:
                continue

    sending = asyncio.gather(*(insist(id) for id in ids for _ in range(2)))
    killed = 0
    while killed < 10 and not sending.done():
        killed += await admin.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            " AND query LIKE '%INSERT INTO %messages%' AND query NOT LIKE '%message_read_receipts%'"
        )
    sent = await sending
    await admin.close()
    assert killed
    assert len(set(sent)) == 100
    assert (await log_of(pool, room.id)).count("sent") == 100


async def test_full_queue_refuses_senders_at_their_deadline(
    settings: Settings, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 10)
    short = replace(settings, postgres=replace(settings.postgres, deadline_seconds=2))
    long = replace(settings, postgres=replace(settings.postgres, deadline_seconds=60))
    holder = await connect(settings.postgres)
    async with Hub(short) as hub, Hub(long) as other:
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM rooms WHERE id = $1 FOR UPDATE", room.id)
            later = asyncio.create_task(other.messages.send(room.id, ada.id, "of a later deadline"))
            results = await asyncio.gather(
                *(hub.messages.send(room.id, ada.id, f"message {n}") for n in range(30)), return_exceptions=True
            )
            assert all(isinstance(result, Unavailable) for result in results)
            assert not later.done()
        assert (await later).content == "of a later deadline"
        assert (await hub.messages.send(room.id, ada.id, "after")).content == "after"
    await holder.close()


async def test_waiting_sender_ends_at_its_deadline_and_knows_whether_it_was_in_flight(
    settings: Settings, ada: User, room: Room
) -> None:
    short = replace(settings, postgres=replace(settings.postgres, deadline_seconds=3))
    holder = await connect(settings.postgres)
    async with Hub(short) as hub:
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM rooms WHERE id = $1 FOR UPDATE", room.id)
            results = await asyncio.gather(
                *(hub.messages.send(room.id, ada.id, f"message {n}") for n in range(5)), return_exceptions=True
            )
        refused = [result for result in results if isinstance(result, Unavailable)]
        assert len(refused) == 5
        assert refused[0].outcome_unknown  # in flight at its deadline, and the others waited behind it
        await hub.messages.send(room.id, ada.id, "after")
        page = await hub.messages.page(room.id)
        may_be_there = {f"message {n}" for n, one in enumerate(refused) if one.outcome_unknown}
        assert {message.content for message in page.items} - {"after"} <= may_be_there
    await holder.close()


async def test_locked_room_under_load_does_not_hold_up_other_rooms(hub: Hub, ada: User, room: Room) -> None:
    quiet = await hub.rooms.create("quiet", created_by=ada.id)
    holder = await connect(hub.settings.postgres)
    async with holder.transaction():
        await holder.execute("SELECT 1 FROM rooms WHERE id = $1 FOR UPDATE", room.id)
        stuck = [asyncio.create_task(hub.messages.send(room.id, ada.id, f"{n}")) for n in range(LOAD + 5)]
        await asyncio.sleep(0)
        message = await hub.messages.send(quiet.id, ada.id, "through the second worker")
        assert message.content == "through the second worker"
        assert not any(send.done() for send in stuck)
    await holder.close()
    await asyncio.gather(*stuck)


async def test_close_waits_for_messages_in_flight(settings: Settings, ada: User, room: Room, hub: Hub) -> None:
    async with Hub(settings) as closing:
        sends = [asyncio.create_task(closing.messages.send(room.id, ada.id, f"{n}")) for n in range(50)]
        await asyncio.sleep(0)
    sent = await asyncio.gather(*sends, return_exceptions=True)
    stored = await hub.messages.get_many([message.id for message in sent if isinstance(message, Message)])
    assert len(stored) == sum(isinstance(message, Message) for message in sent)


async def test_close_sends_waiting_messages(settings: Settings, ada: User, room: Room) -> None:
    async with Hub(settings) as closing:
        sends = [asyncio.create_task(closing.messages.send(room.id, ada.id, f"{n}")) for n in range(50)]
        await asyncio.sleep(0)  # the first is in flight, the others wait for it
    sent = await asyncio.gather(*sends)
    assert [message.content for message in sent] == [f"{n}" for n in range(50)]
    with pytest.raises(Unavailable, match="hub: it is closed"):
        await closing.messages.send(room.id, ada.id, "too late")


async def test_close_ends_while_senders_go_on(settings: Settings, ada: User, room: Room) -> None:
    sent = 0

    async def send_for_ever(hub: Hub) -> None:
        nonlocal sent
        while True:
            await hub.messages.send(room.id, ada.id, "and on")
            sent += 1

    # To wait for the deadline or for the senders would exceed the suite's limit for a test.
    long = replace(settings, postgres=replace(settings.postgres, deadline_seconds=600))
    async with Hub(long) as closing:
        senders = [asyncio.create_task(send_for_ever(closing)) for _ in range(10)]
        await until(lambda: sent >= 100 or any(sender.done() for sender in senders))
    ends = await asyncio.gather(*senders, return_exceptions=True)
    assert {str(end) for end in ends} == {"hub: it is closed"}


async def test_locked_room_does_not_hold_up_a_few_senders_elsewhere(hub: Hub, ada: User, room: Room) -> None:
    quiet = [await hub.rooms.create(f"quiet {n}", created_by=ada.id) for n in range(3)]
    async with hub.transaction() as tx:
        await tx.messages.send(room.id, ada.id, "holds the lock on the room")
        stuck = [asyncio.create_task(hub.messages.send(room.id, ada.id, f"{n}")) for n in range(3)]
        await asyncio.sleep(0)
        for other in quiet:
            await hub.messages.send(other.id, ada.id, "elsewhere")
        assert not any(send.done() for send in stuck)
    assert [message.seq for message in await asyncio.gather(*stuck)] == [3, 4, 5]


@pytest.mark.one_server("its pool is smaller than the statements in flight there")
async def test_locked_rooms_do_not_take_the_whole_pool(settings: Settings, hub: Hub, ada: User) -> None:
    rooms = [await hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(batching.MAX_WORKERS * 2)]
    small = replace(settings, postgres=replace(settings.postgres, pool_size=batching.MAX_WORKERS + 1))
    async with Hub(small) as sending, hub.transaction() as tx:
        for room in rooms:
            await tx.rooms.update(room.id, description="locked")
        stuck = []
        for room in rooms:
            stuck.append(asyncio.create_task(sending.messages.send(room.id, ada.id, "stuck")))
            await asyncio.wait(stuck, timeout=batching.ALLOW_ANOTHER_WORKER_AFTER_SECONDS * 1.5)
        assert (await sending.users.find_by_username("ada")) == ada
        assert not any(send.done() for send in stuck)
        for send in stuck:
            send.cancel()
        await asyncio.wait(stuck)


@pytest.mark.one_server("Citus refuses its trigger")
async def test_committed_part_of_a_batch_is_answered_when_the_rest_fails(
    hub: Hub, postgres_settings: PostgresSettings, pool: Pool, ada: User, room: Room
) -> None:
    """A message that breaks a rule makes the writer split the batch. In one half the server runs out of disk."""
    connection = await connect(postgres_settings)
    await connection.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.content LIKE 'bad%' THEN RAISE check_violation; END IF;
                IF NEW.content LIKE 'full%' THEN RAISE disk_full; END IF;
                RETURN NEW;
            END
        $$;
        CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION refuse();
    """)
    await connection.close()
    contents = ["first", "bad", *(f"good {n}" for n in range(10)), "full 1", "full 2"]
    results = await asyncio.gather(
        *(hub.messages.send(room.id, ada.id, content) for content in contents), return_exceptions=True
    )

    stored = {message.content for message in (await hub.messages.page(room.id)).items}
    assert stored == {result.content for result in results if isinstance(result, Message)}
    assert {"first", "good 0"} <= stored
    lost = [result for result in results if isinstance(result, Unavailable)]
    assert lost
    assert len({id(error) for error in lost}) == len(lost)
    assert not any(error.outcome_unknown or error.__cause__ is None for error in lost)
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * len(stored)


@pytest.mark.one_server("Citus refuses its trigger")
async def test_message_that_a_trigger_drops_is_refused_and_those_beside_it_are_sent(
    hub: Hub, postgres_settings: PostgresSettings, ada: User, room: Room
) -> None:
    connection = await connect(postgres_settings)
    await connection.execute("""
        CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RETURN CASE WHEN NEW.content <> 'unwanted' THEN NEW END;
            END
        $$;
        CREATE TRIGGER drop_it BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION drop_it();
    """)
    await connection.close()
    contents = ["first", "second", "unwanted", "third"]
    results = await asyncio.gather(
        *(hub.messages.send(room.id, ada.id, content) for content in contents), return_exceptions=True
    )
    sent = [result.content for result in results if isinstance(result, Message)]
    assert sent == ["first", "second", "third"]
    assert str(results[2]) == "message: was dropped by a trigger of the database"
    with pytest.raises(Invalid, match="dropped by a trigger"):
        await hub.messages.send(room.id, ada.id, "unwanted")
    assert [message.content for message in (await hub.messages.page(room.id)).items] == sent


async def test_retry_is_reported_again_because_the_first_report_may_be_lost(
    pool: Pool, ada: User, room: Room
) -> None:
    reported: list[Message] = []

    def note(change: Change) -> None:
        assert isinstance(change, MessagesSent)
        reported.extend(change.messages)

    messages = writer.MessageWriter(pool, note, deadline_seconds=10)
    draft = Draft(uuid4(), room.id, ada.id, "hello", MessageType.TEXT)
    first = await messages.send(draft)
    again = await asyncio.gather(*(messages.send(draft) for _ in range(3)))
    assert reported == [first, *again] == [first] * 4


async def test_error_of_a_listener_does_not_fail_a_send(pool: Pool, ada: User, room: Room) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))

    def listener(change: Change) -> None:
        raise ZeroDivisionError

    writing = writer.MessageWriter(pool, listener, deadline_seconds=10)
    drafts = [Draft(uuid4(), room.id, ada.id, f"{n}", MessageType.TEXT) for n in range(10)]
    for _ in range(2):
        sent = await asyncio.gather(*(writing.send(draft) for draft in drafts))
        assert [message.content for message in sent] == [draft.content for draft in drafts]
    assert set(reported) == {"an action after a COMMIT failed"}
    assert len(reported) >= 4  # the first and the others, each time


async def test_senders_are_answered_when_every_task_of_the_loop_is_cancelled(
    hub: Hub, ada: User, room: Room
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    async with hub.transaction() as tx:
        for locked in (room, other):
            await tx.messages.send(locked.id, ada.id, "locked")
        alone = asyncio.create_task(hub.messages.send(room.id, ada.id, "alone"))
        await asyncio.sleep(0)
        sends = [asyncio.create_task(hub.messages.send(other.id, ada.id, "by a worker")) for _ in range(3)]

        def end_the_writers_tasks() -> bool:
            for task in asyncio.all_tasks():
                if task.get_name() == "hubbub: write messages":
                    task.cancel()
            return all(send.done() for send in sends)

        await until(end_the_writers_tasks)
    for send in sends:
        with pytest.raises(Unavailable, match="cancelled") as caught:
            await send
        assert caught.value.outcome_unknown
    assert (await alone).content == "alone"
    assert (await hub.messages.send(other.id, ada.id, "goes on")).content == "goes on"
