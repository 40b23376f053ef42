"""A read replica replays late or not at all, is killed or promoted. No process reads data older than its own."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from uuid import UUID

import msgspec
import pytest

from commands import execute
from faults.figures import IS_FULL, Figures
from faults.standby import Pair
from hubbub import Hub, Message, MessageEdited, MessageSent, NotAMember, Settings, Unavailable
from hubbub.diagnostics.doctor import check_servers
from hubbub.instrumentation import Instrumentation, Outcome
from hubbub.postgres import replicas
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

CHECKED_READS = 10_000 if IS_FULL else 600
CALLERS = 10
DELAY_MILLISECONDS = 200


class Names(Instrumentation):
    """Counts statements by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def queried(self, statement: str, seconds: float, outcome: Outcome) -> None:
        self.counts[statement] += 1

    @property
    def on_replica(self) -> int:
        return sum(count for name, count in self.counts.items() if name.endswith("_on_replica"))


async def in_service(hub: Hub, number: int = 1) -> None:
    assert hub._replicas is not None
    found = hub._replicas
    await until(lambda: found.in_service == number)


class Reader:
    """Changes a room, and reads it in all ways. `stale` has the reads without the change."""

    def __init__(self, hub: Hub, room_id: UUID, user_id: UUID, seed: int) -> None:
        self._hub = hub
        self._room_id = room_id
        self._user_id = user_id
        self._random = random.Random(seed)
        self.reads = 0
        self.stale: list[str] = []

    async def run(self, reads: int) -> None:
        messages = self._hub.messages
        while self.reads < reads:
            sent = await messages.send(self._room_id, self._user_id, f"{self.reads}")
            content = sent.content
            if self._random.random() < 0.3:
                sent = await messages.edit(sent.id, content := f"{content} edited", by=self._user_id)
            if self._random.random() < 0.3:
                await asyncio.sleep(self._random.uniform(0, 2 * DELAY_MILLISECONDS / 1000))
            viewer = self._user_id if self._random.random() < 0.5 else None
            page = await messages.page(self._room_id, as_user=viewer)
            self._check("page", content, page.items[-1].content)
            json = msgspec.json.decode(await messages.page_json(self._room_id, as_user=viewer))
            self._check("page_json", content, json["items"][-1]["content"])
            around = await messages.page(self._room_id, around=sent, limit=2, as_user=viewer)
            self._check("around", content, around.items[-1].content)
            log = await messages.since(self._room_id, page.items[-2].cursor, as_user=viewer)
            last = [one.message.content for one in log.items if isinstance(one, MessageSent | MessageEdited)][-1]
            self._check("since", content, last)
            authored = await messages.by_author(self._user_id, limit=1)
            self._check("by_author", content, authored.items[0].content)

    def _check(self, read: str, expected: str, found: str) -> None:
        self.reads += 1
        if found != expected:
            self.stale.append(f"{read}: {found!r} instead of {expected!r}")


@pytest.mark.guarantee("G15", f"a read replica replays {DELAY_MILLISECONDS} ms late; each write is read")
async def test_process_reads_what_it_has_written(pair: Pair, figures: Figures) -> None:
    await pair.standby.delay(DELAY_MILLISECONDS)
    names = Names()
    async with Hub(pair.replicated, instrumentation=names) as hub:
        readers = []
        for number in range(CALLERS):
            user = await hub.users.create(f"p{number}@example.org", f"p{number}", "!")
            room = await hub.rooms.create(f"room {number}", created_by=user.id)
            await hub.messages.send(room.id, user.id, "the first")
            readers.append(Reader(hub, room.id, user.id, number))
        await in_service(hub)
        await asyncio.gather(*(reader.run(CHECKED_READS // CALLERS) for reader in readers))
        stale = [one for reader in readers for one in reader.stale]
        reads = sum(reader.reads for reader in readers)
        figures.found(f"{len(stale)} stale of {reads:,} reads, {names.on_replica:,} statements on the replica")
        assert stale == []
        assert names.on_replica > 0


async def test_change_that_the_primary_has_not_written_yet_is_read(pair: Pair) -> None:
    """With `synchronous_commit` off, a commit is acknowledged before it is in the log that a replica gets."""
    database = pair.settings.postgres.database
    await execute(
        pair.primary.administrator(pair.settings.postgres),
        f"ALTER DATABASE {database} SET synchronous_commit = off",
        "ALTER SYSTEM SET wal_writer_delay = '10s'",
        "SELECT pg_reload_conf()",
    )
    async with Hub(pair.replicated) as hub:
        user = await hub.users.create("ada@example.org", "ada", "!")
        room = await hub.rooms.create("room", created_by=user.id)
        await in_service(hub)
        for n in range(5):
            sent = await hub.messages.send(room.id, user.id, f"{n}")
            for _ in range(2):
                await hub._replicas._measure()  # type: ignore[union-attr]
            assert (await hub.messages.by_author(user.id, limit=1)).items == [sent]


async def test_feed_of_changes_waits_while_its_server_is_a_standby(pair: Pair) -> None:
    names = Names()
    on_standby = replace(pair.replicated, postgres=pair.standby.settings, replicas=())
    async with Hub(on_standby, instrumentation=names) as hub, hub.changes.follow() as feed:
        with pytest.raises(Unavailable, match="the server takes no changes"):
            await hub.changes.end()
        await until(lambda: hub._pool.size == 0)  # a background statement may hold a connection
        first = asyncio.create_task(anext(feed))
        await until(lambda: names.counts["changes.read"] > 10)
        await pair.standby.promote()
        user = await hub.users.create("ada@example.org", "ada", "!")
        room = await hub.rooms.create("room", created_by=user.id)
        assert (await first).room_id == room.id


async def test_rooms_without_recent_changes_are_read_on_the_replica(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The default would take the replica out of service for one late answer on a busy machine.
    monkeypatch.setattr(replicas, "READ_SECONDS", HANGS_AFTER_SECONDS)
    monkeypatch.setattr(replicas, "LAG_SECONDS", HANGS_AFTER_SECONDS)
    names = Names()
    async with Hub(pair.replicated, instrumentation=names) as hub, Hub(pair.replicated) as other:
        user = await other.users.create("ada@example.org", "ada", "!")
        room = await other.rooms.create("room", created_by=user.id)
        sent = [await other.messages.send(room.id, user.id, f"{n}") for n in range(3)]
        await in_service(hub)

        async def replayed() -> bool:
            names.counts.clear()
            return (await hub.messages.page(room.id)).items == sent and not names.counts["messages.page"]

        await until_it_answers(replayed)
        names.counts.clear()
        page = await hub.messages.page(room.id, as_user=user.id)
        assert page.items == sent
        assert (
            msgspec.json.decode(await hub.messages.page_json(room.id, as_user=user.id))["items"][0]["seq"]
            == sent[0].seq
        )
        assert (await hub.messages.page(room.id, before=sent[2])).items == sent[:2]
        assert (await hub.messages.page(room.id, after=sent[2])).items == []
        log = await hub.messages.since(room.id, sent[0].cursor, as_user=user.id)
        assert [one.message for one in log.items if isinstance(one, MessageSent)] == sent[1:]
        assert (await hub.messages.by_author(user.id)).items == sent[::-1]
        async with aclosing(hub.history.lines(room.id)) as lines:
            assert sum([piece.count(b"\n") async for piece in lines]) > 3
        assert names.on_replica == 5
        assert not names.counts.keys() & {"messages.page", "messages.page_json", "log.read", "replicas.head"}


async def test_replica_that_replays_nothing_is_taken_out_of_service_and_used_again(pair: Pair) -> None:
    async with Hub(pair.replicated) as hub:
        user = await hub.users.create("ada@example.org", "ada", "!")
        room = await hub.rooms.create("room", created_by=user.id)
        await in_service(hub)
        await pair.standby.pause()
        async with Hub(pair.replicated) as other:
            sent = await other.messages.send(room.id, user.id, "hello")
        await in_service(hub, 0)
        assert (await hub.messages.page(room.id)).items == [sent]
        await pair.standby.resume()
        await in_service(hub)
        assert (await hub.messages.page(room.id)).items == [sent]


async def until_read_on_replica(hub: Hub, names: Names, sent: Message) -> None:
    """Wait until the page with this message comes from a replica."""

    async def is_read() -> bool:
        names.counts.clear()
        return (await hub.messages.page(sent.room_id)).items == [sent] and not names.counts["messages.page"]

    await until_it_answers(is_read)


async def test_replica_that_hangs_is_taken_out_of_service_and_its_reads_end_on_the_primary(pair: Pair) -> None:
    names = Names()
    async with Hub(pair.replicated, instrumentation=names) as hub:
        user = await hub.users.create("ada@example.org", "ada", "!")
        room = await hub.rooms.create("room", created_by=user.id)
        sent = await hub.messages.send(room.id, user.id, "hello")
        await until_read_on_replica(hub, names, sent)
        with pair.standby.frozen():
            for _ in range(20):
                assert (await hub.messages.page(room.id)).items == [sent]
            await in_service(hub, 0)
        await until_read_on_replica(hub, names, sent)


async def test_cursor_of_another_process_is_read_on_the_primary_while_the_replica_does_not_have_it(
    pair: Pair,
) -> None:
    names = Names()
    async with Hub(pair.replicated, instrumentation=names) as hub, Hub(pair.replicated) as other:
        user = await other.users.create("ada@example.org", "ada", "!")
        room = await other.rooms.create("room", created_by=user.id)
        sent = await other.messages.send(room.id, user.id, "0")
        await until_read_on_replica(hub, names, sent)
        await pair.standby.pause()
        later = [await other.messages.send(room.id, user.id, text) for text in ("1", "2")]
        log = await hub.messages.since(room.id, later[0].cursor)
        assert [one.message for one in log.items if isinstance(one, MessageSent)] == later[1:]
        assert (await hub.messages.page(room.id, around=later[1])).items == [sent, *later]
        await pair.standby.resume()


async def test_reads_go_on_while_a_replica_is_killed_and_promoted(pair: Pair) -> None:
    async with Hub(pair.replicated) as hub:
        user = await hub.users.create("ada@example.org", "ada", "!")
        room = await hub.rooms.create("room", created_by=user.id)
        sent = await hub.messages.send(room.id, user.id, "hello")
        await in_service(hub)
        await pair.standby.promote()
        # A promoted standby that is read alone would show a message that the primary does not have.
        await execute(pair.standby.settings, "UPDATE messages SET content = 'of another log'")
        assert (await hub.messages.page(room.id)).items == [sent]
        await in_service(hub, 0)
        pair.standby.kill()
        for _ in range(20):
            assert (await hub.messages.page(room.id)).items == [sent]


async def test_removed_member_reads_nothing_on_a_replica_from_after_the_removal(pair: Pair) -> None:
    """The replica has neither the removal, which another process made, nor later entries."""
    async with Hub(pair.replicated) as hub, Hub(pair.replicated) as other:
        ada = await other.users.create("ada@example.org", "ada", "!")
        bob = await other.users.create("bob@example.org", "bob", "!")
        room = await other.rooms.create("room", created_by=ada.id)
        await other.room_users.add(room.id, bob.id)
        before = await other.messages.send(room.id, ada.id, "before")
        await in_service(hub)

        async def is_replayed() -> bool:
            return (await hub.messages.page(room.id, as_user=bob.id)).items == [before]

        await until_it_answers(is_replayed)
        await pair.standby.pause()
        await other.room_users.remove(room.id, bob.id)
        await other.messages.send(room.id, ada.id, "after")
        for _ in range(50):
            try:
                page = await hub.messages.page(room.id, as_user=bob.id)
            except NotAMember:
                break
            assert page.items == [before]
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the replica was not left")
        with pytest.raises(NotAMember):
            await hub.messages.page(room.id, as_user=bob.id)
        await pair.standby.resume()


async def test_doctor_looks_at_replicas_and_at_all_hosts(pair: Pair) -> None:
    standby, primary = pair.standby.settings, pair.settings.postgres
    hosts = replace(primary, host=f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}")

    async def findings(settings: Settings) -> list[tuple[str, str]]:
        report = await check_servers(settings, processes=1)
        return [
            (finding.severity.value, finding.meaning)
            for section in report.sections
            for check in section.checks
            if check.name == "postgresql.replicas"
            for finding in check.findings
        ]

    several = replace(
        pair.replicated, postgres=hosts, replicas=(replace(hosts, host="127.0.0.1", port=standby.port),)
    )

    async def are_well() -> bool:  # the replica may still be behind
        return [*await findings(pair.replicated), *await findings(several)] == []

    await until_it_answers(are_well)
    await pair.standby.promote()
    [(severity, meaning)] = await findings(pair.replicated)
    assert (severity, f"127.0.0.1:{standby.port} accepts writes" in meaning) == ("error", True)
    pair.standby.kill()
    [(severity, meaning)] = await findings(pair.replicated)
    assert (severity, "cannot be asked" in meaning) == ("warning", True)
