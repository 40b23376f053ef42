"""The primary is killed or frozen, and its standby is promoted. Processes with both hosts find the new primary."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from faults import chat as chats
from faults import checker
from faults.chat import Chat
from faults.checker import stored_in
from faults.figures import SCALE, Figures, in_time
from faults.fragile import FragileServers
from faults.history import Acknowledged, Delivered, Record, now, read
from faults.standby import Pair
from hubbub import Hub, Unavailable
from hubbub.postgres import connect
from waiting import until_it_answers

MORE = 60
"""Acknowledged calls before the standby is cut off, between that and the fault, and after the fault."""
ENDLESS = 1_000_000


async def test_retry_of_a_cancelled_send_is_acknowledged_only_once_the_standby_has_the_message(pair: Pair) -> None:
    """If a COMMIT that waits for the standby is cancelled, PostgreSQL commits without the standby."""
    await pair.standby.synchronous()
    postgres = replace(pair.settings.postgres, host="127.0.0.1", deadline_seconds=5)
    watcher = await connect(postgres)

    async def waits() -> bool:
        sql = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname IS NOT NULL)"
        return bool(await watcher.fetchval(sql))

    async def is_stored() -> bool:
        return bool(await watcher.fetchval("SELECT EXISTS (SELECT 1 FROM messages WHERE id = $1)", id))

    async with Hub(replace(pair.settings, postgres=postgres)) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "!")
        room, id = await hub.rooms.create("room", created_by=ada.id), uuid4()
        await pair.standby.cut_off()
        sending = asyncio.create_task(hub.messages.send(room.id, ada.id, "hello", id=id))
        await until_it_answers(waits)
        sending.cancel()
        await until_it_answers(is_stored)
        with pytest.raises(Unavailable):
            await hub.messages.send(room.id, ada.id, "hello", id=id)
        await pair.standby.asynchronous()
        assert (await hub.messages.send(room.id, ada.id, "hello", id=id)).id == id
    await watcher.close()


@contextmanager
def killed(primary: FragileServers) -> Iterator[None]:
    primary.kill("postgresql")
    yield


@contextmanager
def frozen(primary: FragileServers) -> Iterator[None]:
    with primary.frozen("postgresql"):
        yield


FAULTS = {"killed": killed, "frozen": frozen}


async def first_acknowledged(chat: Chat, since: int) -> float:
    """Wait for an acknowledged call after `since`, a time of the histories. Returns the seconds until then."""

    def times() -> list[int]:
        return [
            record.at
            for history in chat.sent
            for record in history
            if isinstance(record, Acknowledged) and record.at > since
        ]

    await chat.until(lambda: bool(times()))
    return (min(times()) - since) / 1e9


async def sent_to_the_end(chat: Chat) -> None:
    await chat.acknowledged(MORE)
    for sender in chat.senders:
        await sender.end()
    await chat.converged()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.guarantee("G5", f"failover, asynchronous, primary {fault}"))
        for fault in FAULTS
    ],
)
async def test_rooms_that_lost_commits_in_a_failover_get_a_resync(
    pair: Pair, fault: str, tmp_path: Path, figures: Figures
) -> None:
    async with chats.opened(pair.hosts, tmp_path, rooms=3) as chat:
        for _ in range(SCALE.followers):
            await chat.follower()
        # Without edits: the edit of a lost message rightly raises NotFound.
        await chat.sender(ENDLESS, seed=1, pause_seconds=chats.PAUSE_SECONDS, changes=0)
        await chat.acknowledged(MORE)
        await pair.standby.cut_off()
        kept = (await stored_in(pair.standby.settings)).heads
        await chat.until(lambda: all(has_seen_more(read(one.history), kept) for one in chat.followers))
        with FAULTS[fault](pair.primary):
            await pair.standby.promote()
            promoted = now()
            seconds = await first_acknowledged(chat, promoted)
            expected = len(chat.followers) * len(chat.room_ids)
            with suppress(TimeoutError):
                await chat.until(lambda: resyncs(chat) >= expected)
            await sent_to_the_end(chat)
            stored = await stored_in(chat.settings.postgres)

        lost = list(checker.lost(chat.sent, stored))
        histories = [read(follower.history) for follower in chat.followers]
        resynced = resyncs(chat)
        figures.found(
            f"{resynced} of {expected} resynced, {len(lost)} calls lost, acknowledged {seconds:.2f} s after it"
        )
        assert lost
        assert resynced == expected
        for history in histories:
            assert list(checker.wrong_deliveries(checker.since_resync(history, chat.room_ids), stored)) == []
        assert [*checker.holes(stored), *checker.duplicates(stored)] == []
        assert lost_before(chat, stored, kept) == []
        assert in_time(seconds, 1)


def resyncs(chat: Chat) -> int:
    return sum(checker.resyncs(read(follower.history), chat.room_ids) for follower in chat.followers)


def has_seen_more(history: list[Record], kept: dict[UUID, int]) -> bool:
    """Whether the follower has received an entry of each room that the standby does not have."""
    seen = {
        record.room_id for record in history if isinstance(record, Delivered) and record.seq > kept[record.room_id]
    }
    return seen == kept.keys()


def lost_before(chat: Chat, stored: checker.Stored, kept: dict[UUID, int]) -> list[UUID]:
    """Lost messages that the standby had received before it was cut off."""
    sent = checker.sent_in(chat.sent)
    in_standby = {id for id, one in sent.items() if any(seq <= kept[one.room_id] for seq in one.seqs)}
    return [id for id in in_standby if id not in stored.contents]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.guarantee("G1", f"failover, synchronous, primary {fault}"))
        for fault in FAULTS
    ],
)
async def test_synchronous_failover_loses_nothing(
    pair: Pair, fault: str, tmp_path: Path, figures: Figures
) -> None:
    await pair.standby.synchronous()
    async with chats.opened(pair.hosts, tmp_path, rooms=3) as chat:
        for _ in range(SCALE.followers):
            await chat.follower()
        await chat.sender(ENDLESS, seed=1, pause_seconds=chats.PAUSE_SECONDS)
        await chat.acknowledged(MORE)
        with FAULTS[fault](pair.primary):
            await pair.standby.promote()
            seconds = await first_acknowledged(chat, now())
            await sent_to_the_end(chat)
            lost = list(checker.lost(chat.sent, await stored_in(chat.settings.postgres)))
            figures.found(
                f"{len(lost)} lost of {chat.count:,} acknowledged calls, acknowledged {seconds:.2f} s after it"
            )
            assert await chat.violations() == []
        assert in_time(seconds, 1)
