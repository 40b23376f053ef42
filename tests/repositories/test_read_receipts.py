from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubbub import Hub, Invalid, NotAMember, NotFound, Room, User
from hubbub.models import Message
from hubbub.repositories.read_receipts import RECEIPTS_UP_TO_MEMBERS


@pytest.fixture
async def messages(hub: Hub, ada: User, bob: User, room: Room) -> list[Message]:
    """Five messages of Ada's, unread by Bob."""
    await hub.room_users.add(room.id, bob.id)
    return [await hub.messages.send(room.id, ada.id, f"message {n}") for n in range(5)]


async def readers(hub: Hub, message: Message) -> list[object]:
    return [receipt.user_id for receipt in (await hub.receipts.who_read(message.id)).items]


async def test_reading_moves_the_watermark_and_counts_down(
    hub: Hub, bob: User, room: Room, messages: list[Message]
) -> None:
    assert await hub.receipts.unread_counts(bob.id) == {room.id: 5}
    assert await hub.receipts.mark_read(room.id, bob.id, up_to=messages[2].seq) == messages[2].seq
    assert await hub.receipts.unread_counts(bob.id) == {room.id: 2}
    member = await hub.room_users.get(room.id, bob.id)
    assert (member.last_read_seq, member.last_read_message_id) == (messages[2].seq, messages[2].id)


async def test_the_watermark_never_moves_back_by_itself(
    hub: Hub, bob: User, room: Room, messages: list[Message]
) -> None:
    head = messages[-1].seq
    devices = [message.seq for message in messages] * 4
    await asyncio.gather(*(hub.receipts.mark_read(room.id, bob.id, up_to=seq) for seq in devices))
    assert await hub.receipts.mark_read(room.id, bob.id, up_to=0) == head
    member = await hub.room_users.get(room.id, bob.id)
    assert (member.last_read_seq, member.last_read_message_id) == (head, messages[-1].id)


async def test_nobody_reads_beyond_the_head(hub: Hub, bob: User, room: Room, messages: list[Message]) -> None:
    assert await hub.receipts.mark_read(room.id, bob.id, up_to=2**63 - 1) == messages[-1].seq
    await hub.messages.send(room.id, messages[0].user_id or bob.id, "one more")
    assert await hub.receipts.unread_count(room.id, bob.id) == 1


async def test_unread_again_takes_the_receipts_along(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message]
) -> None:
    await hub.receipts.mark_read(room.id, bob.id, up_to=messages[-1].seq)
    assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=messages[3].seq) == messages[2].seq
    assert await hub.receipts.unread_count(room.id, bob.id) == 2
    assert await readers(hub, messages[2]) == [bob.id]
    assert await readers(hub, messages[3]) == []
    member = await hub.room_users.get(room.id, bob.id)
    assert member.last_read_message_id == messages[2].id
    # what is unread already stays as it is
    assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=messages[4].seq) == messages[2].seq
    with pytest.raises(Invalid):
        await hub.receipts.mark_unread(room.id, bob.id, from_seq=0)


async def test_own_and_deleted_messages_are_not_unread(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message]
) -> None:
    await hub.messages.send(room.id, bob.id, "mine")
    await hub.messages.delete(messages[1].id, by=ada.id)
    assert await hub.receipts.unread_count(room.id, bob.id) == 4
    assert await hub.receipts.unread_count(room.id, ada.id) == 1


async def test_counting_stops_at_the_cap(hub: Hub, bob: User, room: Room, messages: list[Message]) -> None:
    assert await hub.receipts.unread_count(room.id, bob.id, cap=3) == 3
    assert await hub.receipts.unread_counts(bob.id, cap=3) == {room.id: 3}
    for cap in (0, 1_001):
        with pytest.raises(Invalid) as refused:
            await hub.receipts.unread_counts(bob.id, cap=cap)
        assert refused.value.field == "cap"


async def test_who_read_a_message_is_told_with_the_time(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message]
) -> None:
    await hub.receipts.mark_read(room.id, bob.id, up_to=messages[0].seq)
    await hub.receipts.mark_read(room.id, ada.id, up_to=messages[0].seq)
    [receipt] = (await hub.receipts.who_read(messages[0].id)).items  # the author is left out
    assert (receipt.message_id, receipt.user_id) == (messages[0].id, bob.id)
    assert receipt.read_at is not None
    assert await readers(hub, messages[1]) == []


async def test_large_rooms_tell_who_read_without_the_time(hub: Hub, ada: User, room: Room) -> None:
    crowd = [await hub.users.create(f"p{n}@example.org", f"p{n}", "hash") for n in range(RECEIPTS_UP_TO_MEMBERS)]
    await hub.room_users.add_many(room.id, [one.id for one in crowd])
    message = await hub.messages.send(room.id, ada.id, "hello all")
    for one in crowd[:5]:
        await hub.receipts.mark_read(room.id, one.id, up_to=message.seq)

    first = await hub.receipts.who_read(message.id, limit=3)
    rest = await hub.receipts.who_read(message.id, limit=3, after=first.next)
    receipts = first.items + rest.items
    assert {receipt.user_id for receipt in receipts} == {one.id for one in crowd[:5]}
    assert all(receipt.read_at is None for receipt in receipts)
    assert not rest.has_more

    await hub.room_users.remove(room.id, crowd[-1].id)  # 50 members: small again
    message = await hub.messages.send(room.id, ada.id, "hello few")
    await hub.receipts.mark_read(room.id, crowd[0].id, up_to=message.seq)
    [receipt] = (await hub.receipts.who_read(message.id)).items
    assert receipt.read_at is not None


async def test_reading_state_is_for_members(hub: Hub, bob: User, room: Room) -> None:
    for operation in (
        hub.receipts.mark_read(room.id, bob.id, up_to=1),
        hub.receipts.mark_unread(room.id, bob.id, from_seq=1),
        hub.receipts.unread_count(room.id, bob.id),
        hub.receipts.mark_read(uuid4(), bob.id, up_to=1),
    ):
        with pytest.raises(NotAMember):
            await operation
    assert await hub.receipts.unread_counts(bob.id) == {}


async def test_readers_of_an_unknown_message_are_not_found(
    hub: Hub, bob: User, room: Room, messages: list[Message]
) -> None:
    with pytest.raises(NotFound):
        await hub.receipts.who_read(uuid4())
    carol = await hub.users.create("carol@example.org", "carol", "hash")
    await hub.room_users.add(room.id, carol.id)
    for reader in (bob, carol):
        await hub.receipts.mark_read(room.id, reader.id, up_to=messages[0].seq)
    cursor = (await hub.receipts.who_read(messages[0].id, limit=1)).next
    assert cursor is not None
    with pytest.raises(Invalid):
        await hub.receipts.who_read(messages[1].id, after=cursor)


@pytest.mark.parametrize("seq", [-1, 2**63, True, "5", None])
async def test_what_is_no_seq_is_refused(hub: Hub, ada: User, room: Room, seq: int) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.receipts.mark_read(room.id, ada.id, up_to=seq)
    assert refused.value.field == "up_to"


async def test_who_comes_back_has_nothing_unread(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message]
) -> None:
    await hub.room_users.remove(room.id, bob.id)
    await hub.messages.send(room.id, ada.id, "while you were away")
    await hub.room_users.add(room.id, bob.id)
    assert await hub.receipts.unread_count(room.id, bob.id) == 0
    await hub.messages.send(room.id, ada.id, "welcome back")
    assert await hub.receipts.unread_count(room.id, bob.id) == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1)),
        st.tuples(st.just("delete"), st.integers(0, 30)),
        st.tuples(st.just("read"), st.integers(0, 30)),
        st.tuples(st.just("unread"), st.integers(1, 30)),
        st.tuples(st.just("rejoin"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_unread_counts_equal_a_count_by_hand(
    hub: Hub, ada: User, bob: User, steps: list[tuple[str, int]]
) -> None:
    room = await hub.rooms.create("by hand", created_by=ada.id)
    watermark = (await hub.room_users.add(room.id, bob.id)).last_read_seq
    log: dict[int, tuple[Message, bool]] = {}  # by seq: the message, and whether it counts for bob
    for step, number in steps:
        if step == "send":
            author = (ada, bob)[number]
            message = await hub.messages.send(room.id, author.id, "hello")
            log[message.seq] = (message, author is ada)
        elif step == "delete" and log:
            seq = sorted(log)[number % len(log)]
            await hub.messages.delete(log[seq][0].id, by=ada.id)
            log[seq] = (log[seq][0], False)
        elif step == "read":
            head = (await hub.rooms.get(room.id)).last_seq
            watermark = max(watermark, min(number, head))
            assert await hub.receipts.mark_read(room.id, bob.id, up_to=number) == watermark
        elif step == "unread":
            watermark = min(watermark, number - 1)
            assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=number) == watermark
        elif step == "rejoin":
            await hub.room_users.remove(room.id, bob.id)
            watermark = (await hub.room_users.add(room.id, bob.id)).last_read_seq
        by_hand = sum(counts and seq > watermark for seq, (_, counts) in log.items())
        assert await hub.receipts.unread_count(room.id, bob.id) == by_hand
    assert (await hub.receipts.unread_counts(bob.id))[room.id] == by_hand if steps else True
