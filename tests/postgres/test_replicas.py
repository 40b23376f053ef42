"""The heads that a process notes for rooms that it reads on the primary, during later changes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from commands import execute
from hubbub import PostgresSettings
from hubbub.commits import MessagesSent, RoomTouched
from hubbub.postgres import Pool, Statement
from hubbub.postgres.connection import now
from hubbub.postgres.replicas import _WRITTEN, LAG_SECONDS, Replicas, _Head, _Replica
from waiting import until_it_answers

END_OF_FILE = Statement(
    "test.end_of_file",
    int,
    """
    SELECT (lsn - '0/0' - (lsn - '0/0') % pg_size_bytes(current_setting('wal_segment_size')))::bigint AS position
    FROM pg_current_wal_lsn() AS lsn
    """,
)


class Primary:
    """Answers the query for a head once the test allows it."""

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def look_up(self, _: object, room_id: UUID) -> _Head:
        self.asked.set()
        await self.may_answer.wait()
        return _Head(room_id, self.last_seq)


def in_service() -> _Replica:
    replica = _Replica(SimpleNamespace())  # type: ignore[arg-type]
    replica.measurements, replica.has_all_until = 2, now()
    return replica


def replicas_of(primary: Primary) -> Replicas:
    replicas = Replicas(primary, [], lambda _: 0)  # type: ignore[arg-type]
    replicas._replicas = [in_service()]
    return replicas


async def read(replicas: Replicas, room_id: UUID, replica_has: int) -> list[int]:
    """Read a room up to `replica_has` of the replica. Returns each `last_seq` that was required of the replica."""
    asked: list[int] = []

    async def on_replica(_: object, least: int, __: float) -> tuple[int, str] | None:
        asked.append(least)
        return (replica_has, "replica") if replica_has >= least else None

    async def on_primary() -> str:
        return "primary"

    await replicas.read_room(room_id, 0, on_replica, on_primary, now() + 10)
    return asked


def sent(room_id: UUID, seq: int) -> MessagesSent:
    message: Any = SimpleNamespace(room_id=room_id, seq=seq)
    return MessagesSent([message])


async def test_own_send_during_the_question_for_a_head_is_not_forgotten() -> None:
    primary, room_id = Primary(48), uuid4()
    replicas = replicas_of(primary)
    replicas._sent(sent(room_id, 48))
    reading = asyncio.create_task(read(replicas, room_id, replica_has=47))
    await primary.asked.wait()
    replicas._sent(sent(room_id, 49))
    primary.may_answer.set()
    assert await reading == [48]
    assert await read(replicas, room_id, replica_has=48) == [49]


async def test_reads_that_overlap_note_the_head_and_the_room_is_read_on_the_replica_again() -> None:
    primary, room_id = Primary(48), uuid4()
    replicas = replicas_of(primary)
    replicas._touched(RoomTouched(room_id))
    first = asyncio.create_task(read(replicas, room_id, replica_has=48))
    await primary.asked.wait()
    second = asyncio.create_task(read(replicas, room_id, replica_has=48))
    await asyncio.sleep(0)
    primary.may_answer.set()
    assert not any(await asyncio.gather(first, second))
    assert await read(replicas, room_id, replica_has=48) == [48]


async def test_seq_that_followers_received_counts_after_the_last_has_left() -> None:
    primary, room_id = Primary(100), uuid4()
    primary.may_answer.set()
    replicas = replicas_of(primary)
    replicas.received(room_id, 100)
    assert await read(replicas, room_id, replica_has=98) == [100]


async def test_change_during_the_question_for_a_head_keeps_the_room_on_the_primary() -> None:
    primary, room_id = Primary(48), uuid4()
    replicas = replicas_of(primary)
    replicas._touched(RoomTouched(room_id))
    reading = asyncio.create_task(read(replicas, room_id, replica_has=48))
    await primary.asked.wait()
    replicas._touched(RoomTouched(room_id))
    primary.may_answer.set()
    assert await reading == []
    assert await read(replicas, room_id, replica_has=48) == []


async def test_replica_that_has_all_is_not_behind_where_the_last_record_filled_its_file(
    administrator: PostgresSettings,
) -> None:
    """Then the end of the log is after the header of the next file, in which no record was replayed."""
    pool = Pool(administrator)

    async def ends_with_a_file() -> bool:  # unless the server writes something meanwhile
        await execute(administrator, "SELECT pg_switch_wal()")
        written = await pool.fetch_one(_WRITTEN)
        return written == await pool.fetch_one(END_OF_FILE)

    await until_it_answers(ends_with_a_file)
    await pool.close()


@pytest.mark.parametrize(("age", "expected"), [(LAG_SECONDS - 1, True), (LAG_SECONDS + 1, False)])
async def test_replica_is_taken_out_of_service_by_the_age_of_its_data(*, age: float, expected: bool) -> None:
    replica = in_service()
    replica.has_all_until -= age
    assert replica.is_in_service is expected
