"""A backup taken under load and restored on another server: its log, and followers that were ahead of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from backup.conftest import NewServer
from backup.programs import DUMP, RESTORE, Programs
from faults import checker
from faults.chat import Chat
from faults.checker import Stored, stored_in
from faults.follower import cursors
from faults.history import Acknowledged, Began, Follows, Record, Resynced, now, read
from hubbub import Hub, MessagePage, PostgresSettings, Settings, migrations
from hubbub.events import Resync
from rights import ROLE, as_role
from waiting import HANGS_AFTER_SECONDS, until_it_answers

DOCUMENT = Path(__file__).parents[2] / "docs/howto/backup.md"

SENDERS = 2
MORE = 150
"""Calls that are acknowledged before the backup, and again after it."""
ENDLESS = 1_000_000


class Backup:
    """The file, and the time when the dump began."""

    def __init__(self, archive: Path, began: int) -> None:
        self.archive = archive
        self.began = began


async def taken_under_load(chat: Chat, programs: Programs, reader: PostgresSettings, folder: Path) -> Backup:
    """Users send, edit and delete before, during and after the dump."""
    for seed in range(SENDERS):
        await chat.sender(ENDLESS, seed=seed)
    await chat.acknowledged(MORE)
    backup = Backup(folder / "chat.dump", now())
    await programs.dump(reader, backup.archive)
    await chat.acknowledged(MORE)
    for sender in chat.senders:
        await sender.end()
    return backup


async def restored(backup: Backup, programs: Programs, server: NewServer) -> PostgresSettings:
    """The database on the new server, for the application."""
    await programs.restore(backup.archive, server.owner)
    await migrations.grant(server.superuser, ROLE)
    return as_role(server.owner)


def acknowledged_before(moment: int, histories: Iterable[list[Record]]) -> list[list[Record]]:
    """The histories of the senders until the dump began. A later call may or may not be in the dump."""
    return [
        [record for record in history if not isinstance(record, Acknowledged) or record.at < moment]
        for history in histories
    ]


def test_page_has_the_commands() -> None:
    document = DOCUMENT.read_text()
    assert " ".join(DUMP) in document
    assert " ".join(RESTORE) in document
    assert "GRANT SELECT ON ALL TABLES IN SCHEMA public TO" in document


async def test_backup_under_load_restores_a_log_without_gaps_or_duplicates(
    chat: Chat, programs: Programs, reader: PostgresSettings, new_server: NewServer, tmp_path: Path
) -> None:
    backup = await taken_under_load(chat, programs, reader, tmp_path)
    there = await stored_in(await restored(backup, programs, new_server))
    whole = await stored_in(chat.settings.postgres)
    assert checker.violations(acknowledged_before(backup.began, chat.sent), [], there) == []
    assert there.heads.keys() == whole.heads.keys() == set(chat.room_ids)
    for room_id, head in there.heads.items():
        assert 0 < head < whole.heads[room_id], "nothing was sent meanwhile"
        assert there.logs[room_id] == whole.logs[room_id][:head]


async def test_followers_ahead_of_the_backup_get_a_resync_and_continue(
    chat: Chat, programs: Programs, reader: PostgresSettings, new_server: NewServer, tmp_path: Path
) -> None:
    """Redis is the one that the follower used before."""
    follower = await chat.follower()
    backup = await taken_under_load(chat, programs, reader, tmp_path)
    await chat.converged()
    await follower.end()
    seen = cursors(follower.history, chat.room_ids)

    chat.settings = replace(chat.settings, postgres=await restored(backup, programs, new_server))
    async with Hub(chat.settings) as hub:
        for room_id, cursor in seen.items():
            [told] = (await hub.messages.since(room_id, cursor)).items
            assert isinstance(told, Resync)
    await chat.follower(instead_of=follower)
    await chat.sender(100, seed=SENDERS)
    await chat.senders[-1].succeeds()
    await chat.converged()
    heard = since_restart(chat.followers[0].history)
    assert {record.room_id for record in heard if isinstance(record, Resynced)} == set(chat.room_ids)
    assert list(checker.wrong_deliveries(heard, await stored_in(chat.settings.postgres))) == []


def since_restart(path: Path) -> list[Record]:
    """The records of the follower from its second start on."""
    history = read(path)
    _, second = [place for place, record in enumerate(history) if isinstance(record, Follows)]
    return history[second:]


async def test_acknowledged_message_missing_from_backup_can_be_sent_again_once(
    chat: Chat, programs: Programs, reader: PostgresSettings, new_server: NewServer, tmp_path: Path
) -> None:
    backup = await taken_under_load(chat, programs, reader, tmp_path)
    application = await restored(backup, programs, new_server)
    missing = lost(chat.sent, await stored_in(application))
    assert missing
    async with Hub(Settings(postgres=application, redis=chat.settings.redis)) as hub:
        for sender, call in missing:
            arguments = (call.room_id, chat.user_ids[sender], call.content)
            message = await hub.messages.send(*arguments, id=call.message_id)
            assert await hub.messages.send(*arguments, id=call.message_id) == message
    there = await stored_in(application)
    assert lost(chat.sent, there) == []
    assert checker.violations([], [], there) == []


def lost(histories: Iterable[list[Record]], stored: Stored) -> list[tuple[int, Began]]:
    """The acknowledged sends whose messages are missing, each with the number of its sender."""
    there = {entry.message_id for log in stored.logs.values() for entry in log}
    found: dict[UUID, tuple[int, Began]] = {}
    for sender, history in enumerate(histories):
        calls = {record.call: record for record in history if isinstance(record, Began)}
        for record in history:
            if isinstance(record, Acknowledged) and calls[record.call].message_id not in there:
                call = calls[record.call]
                if call.change == "send":
                    found.setdefault(call.message_id, (sender, call))
    return list(found.values())


async def test_feed_of_changes_has_what_was_sent_after_the_restore(
    chat: Chat, programs: Programs, reader: PostgresSettings, new_server: NewServer, tmp_path: Path
) -> None:
    backup = await taken_under_load(chat, programs, reader, tmp_path)
    async with Hub(chat.settings) as hub:
        position = await hub.changes.end()  # also after the changes that the backup does not have
    application = await restored(backup, programs, new_server)
    await migrations.restored(new_server.owner)
    async with Hub(Settings(postgres=application, redis=chat.settings.redis)) as hub:
        room_id, user_id = chat.room_ids[0], chat.user_ids[0]
        sent = [(await hub.messages.send(room_id, user_id, str(n))).seq for n in range(10)]
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            async with hub.changes.follow(after=position) as feed:
                found = set[int]()
                while not found.issuperset(sent):
                    event = await anext(feed)
                    found |= {event.seq} if event.room_id == room_id else set()
            async with hub.changes.follow(consumer="search") as feed:
                everything = set[tuple[UUID, int]]()
                there = await entries(application)
                while len(everything) < there:
                    event = await anext(feed)
                    everything.add((event.room_id, event.seq))


async def entries(database: PostgresSettings) -> int:
    return sum(len(log) for log in (await stored_in(database)).logs.values())


@pytest.mark.parametrize("way", ["follow", "since"])
async def test_resynced_client_loads_no_former_page_from_redis(
    chat: Chat, programs: Programs, reader: PostgresSettings, new_server: NewServer, tmp_path: Path, way: str
) -> None:
    room_id, user_id = chat.room_ids[0], chat.user_ids[0]
    backup = await taken_under_load(chat, programs, reader, tmp_path)
    async with Hub(chat.settings) as hub:
        shown = page_of(await hub.cache.newest_page(room_id))

        async def is_kept() -> bool:
            await hub.cache.newest_page(room_id)
            return hub.cache.counts.hits > 0

        await until_it_answers(is_kept)
    cursor = shown.items[-1].cursor

    application = await restored(backup, programs, new_server)
    async with Hub(Settings(postgres=application, redis=chat.settings.redis)) as hub:
        if way == "follow":
            async with hub.follow(user_id, after={room_id: cursor}) as feed:
                told: object = await anext(feed)
        else:
            [told] = (await hub.messages.since(room_id, cursor)).items
        assert isinstance(told, Resync)
        assert page_of(await hub.cache.newest_page(room_id)) == await hub.messages.page(room_id, limit=50)
    assert (await stored_in(application)).heads[room_id] < shown.items[-1].seq, "nothing on the page is gone"


def page_of(data: bytes) -> MessagePage:
    return msgspec.json.decode(data, type=MessagePage)
