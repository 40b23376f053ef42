from __future__ import annotations

from collections.abc import Callable

import pytest

from history.histories import conversation, line, load, message_lines
from hubbub import Hub, Unavailable, User
from hubbub.history import count_as_read, derive_room_id
from hubbub.postgres import Pool, Statement

SEQS = Statement(
    "test.read_marks",
    lambda seq, last_seq: (seq, last_seq),
    """
    SELECT room_users.last_read_seq, rooms.last_seq
    FROM room_users
    JOIN rooms ON rooms.id = room_users.room_id
    """,
)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubbub.history.ROOMS_PER_STEP", 2)
    monkeypatch.setattr("hubbub.history.MEMBERS_PER_STEP", 3)


@pytest.fixture
def stopped_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Until the function is called, imports fail after all is stored and before anything counts as read."""

    async def stop(*_: object) -> None:
        raise Unavailable("postgresql", "stopped", retryable=False)

    monkeypatch.setattr("hubbub.history.count_as_read", stop)
    return lambda: monkeypatch.setattr("hubbub.history.count_as_read", count_as_read)


async def test_import_ends_with_all_members_of_all_rooms_having_read_everything(
    pool: Pool, small_steps: None
) -> None:
    await load(pool, conversation(500, rooms=5, people=11))
    seqs = await pool.fetch_all(SEQS)
    assert len(seqs) > 5 * 3
    assert all(seq == last_seq for seq, last_seq in seqs)


async def test_count_as_read_never_lowers_a_read_mark(pool: Pool, hub: Hub, ada: User) -> None:
    await load(pool, message_lines(*map(str, range(9))))
    room_id = derive_room_id("#chat")
    await count_as_read(pool, {room_id: 4}, {})
    assert await pool.fetch_all(SEQS) == [(10, 10)]


async def test_import_stopped_before_counting_as_read_is_completed_by_the_next_run(
    pool: Pool, stopped_at_the_end: Callable[[], None], ada: User
) -> None:
    file = line("join", user="bob") + message_lines(*map(str, range(9)))
    with pytest.raises(Unavailable):
        await load(pool, file)
    stopped_at_the_end()
    again = await load(pool, file)
    assert again.messages == 0
    assert set(await pool.fetch_all(SEQS)) == {(11, 11)}


async def test_live_message_stays_unread_when_its_file_is_imported_again(pool: Pool, hub: Hub, ada: User) -> None:
    file = line("join", user="bob") + message_lines(*map(str, range(9)))
    await load(pool, file)
    bob = await hub.users.find_by_username("bob")
    assert bob is not None
    await hub.messages.send(derive_room_id("#chat"), bob.id, "live")
    await load(pool, file)
    await load(pool, file + b"\n")
    await load(pool, file + b"\n")
    await load(pool, file + message_lines("elsewhere", room="another"))
    rooms = {summary.room.name: summary.unread for summary in (await hub.rooms.list_for(ada.id)).items}
    assert rooms == {"#chat": 1, "another": 0}


async def test_messages_marked_as_unread_stay_unread_when_a_grown_file_is_imported(
    pool: Pool, hub: Hub, ada: User
) -> None:
    file = line("join", user="bob") + line("join", user="eve") + message_lines(*map(str, range(9)))
    await load(pool, file)
    room_id = derive_room_id("#chat")
    bob, eve = [await hub.users.find_by_username(name) for name in ("bob", "eve")]
    assert bob is not None
    assert eve is not None
    await hub.receipts.mark_unread(room_id, bob.id, from_seq=1)
    await hub.room_users.add(room_id, (await hub.users.upsert(external_id="7", username="new")).id)
    before = await hub.room_users.get(room_id, bob.id)
    await load(pool, file + message_lines("one more"))
    assert await hub.room_users.get(room_id, bob.id) == before
    assert (await hub.room_users.get(room_id, eve.id)).last_read_seq == (await hub.rooms.get(room_id)).last_seq
