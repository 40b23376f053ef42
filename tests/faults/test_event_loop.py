"""No turn of the event loop has a long delay: in a process that sends and follows as fast as it can, and in one
with a user in thousands of rooms and thousands of followers of one room."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from commands import execute
from faults import busy
from faults.chat import Chat
from faults.figures import IS_FULL, SCALE, Figures, in_time
from faults.history import Stalled, read
from faults.worker import Worker

ROOMS, FOLLOWERS = (10_000, 2_000) if IS_FULL else (1_000, 200)

# Rooms with one entry, of which the first user is the only member, except that all users are in the first room.
FILL = (
    f"""
    INSERT INTO rooms (last_seq, name, id)
    SELECT
        1,
        'room',
        overlay('00000000-0000-7000-8000-000000000000' PLACING lpad(to_hex(n), 12, '0') FROM 25)::uuid
    FROM generate_series(1, {ROOMS}) AS n
    """,
    f"""
    INSERT INTO users (id, email, username, password_hash)
    SELECT overlay('00000000-0000-7000-8000-000000000000' PLACING lpad(to_hex(n), 12, '0') FROM 25)::uuid,
        n || '@crowd.example.org', 'crowd-' || n, '!'
    FROM generate_series(1, {FOLLOWERS} + 1) AS n
    """,
    f"""
    INSERT INTO room_users (room_id, user_id)
    SELECT rooms.id, users.id
    FROM rooms, users
    WHERE rooms.name = 'room'
        AND users.username LIKE 'crowd-%'
        AND (users.username = 'crowd-1' OR rooms.id = '{UUID(int=(7 << 76) | (2 << 62) | 1)}')
    """,
    """
    INSERT INTO room_events (room_id, seq, kind, user_id)
    SELECT room_id, 1, 'joined', user_id
    FROM room_users
    JOIN users ON users.id = room_users.user_id
    WHERE users.username = 'crowd-1'
    """,
)


@pytest.mark.guarantee("G9", "50 senders and 50 followers in one process")
async def test_no_turn_of_the_event_loop_is_delayed(chat: Chat, tmp_path: Path, figures: Figures) -> None:
    """Time in which the process waited for a processor is not counted: the machine may be busy."""
    plan = busy.Plan(
        tmp_path / "busy", chat.user_ids, chat.room_ids, senders=50, followers=50, seconds=4 * SCALE.fault_seconds
    )
    await _assert_short_turns(plan, chat, figures)


@pytest.mark.guarantee("G9", f"a user in {ROOMS:,} rooms, and {FOLLOWERS:,} followers that enter at once")
async def test_user_in_many_rooms_and_many_followers_hold_up_no_turn(
    chat: Chat, tmp_path: Path, figures: Figures
) -> None:
    """They enter, leave, and are deleted."""
    for statement in FILL:
        await execute(chat.settings.postgres, statement)
    ids = [UUID(int=(7 << 76) | (2 << 62) | number) for number in range(1, FOLLOWERS + 2)]
    plan = busy.Plan(tmp_path / "many", ids, ids[:1], senders=0, followers=0, seconds=0)
    await _assert_short_turns(plan, chat, figures)


async def _assert_short_turns(plan: busy.Plan, chat: Chat, figures: Figures) -> None:
    worker = await Worker.start("faults.busy", plan, plan.history, chat.settings)
    try:
        await worker.succeeds()
    finally:
        await worker.kill()
    turns = [record for record in read(plan.history) if isinstance(record, Stalled)]
    own = sorted(turn.late_seconds - turn.waited_for_processor_seconds for turn in turns)
    wall = max(turn.late_seconds for turn in turns)
    p99 = own[len(own) * 99 // 100]
    figures.found(
        f"longest of {len(turns):,} turns {own[-1] * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms "
        f"({wall * 1000:.0f} ms on the wall clock)"
    )
    assert in_time(own[-1], 0.05)
