"""For tests of an application (docs/testing.md): the parts of the pytest plugin, and checks of logs.

The fixtures are servers, databases and an empty Redis. The checks are pure functions over entries that were stored
and received: nothing lost, nothing twice, no gap, nothing out of order. The demo and hubbub's tests use them. A
check yields one sentence per violation, and nothing when its rule holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar
from uuid import UUID, uuid4

from hubbub import events, migrations
from hubbub.embedded import Servers
from hubbub.errors import Unavailable
from hubbub.postgres import Pool, Statement
from hubbub.redis import connection_to
from hubbub.settings import PostgresSettings, RedisSettings, Settings

__all__ = [
    "LogEntry",
    "Template",
    "delivery_errors",
    "drop",
    "empty",
    "entries_for",
    "run",
    "seq_errors",
    "serving",
]

R = TypeVar("R")

COPY_DEADLINE_SECONDS: Final = 60
"""For CREATE and DROP DATABASE. They take 15 to 80 ms, and minutes only where they hang."""


@contextmanager
def serving(folder: Path) -> Iterator[Settings]:
    """PostgreSQL and Valkey in a new or empty folder. They end with the block, and with the process.

    They do not wait for the disk, which makes them fast and loses data in a crash.
    Raises: Unavailable (there are no servers on this machine, with what to install).
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        servers = Servers(folder, fsync=False)
        settings = runner.run(servers.start())
        try:
            yield settings
        finally:
            runner.run(servers.stop())


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run it to its end in the thread of the caller, without touching the event loop that the tests use.

    `asyncio.run` would leave the thread without a current loop, which plugins that have set one rely on. Another
    thread would not do either: servers end with the thread that started them.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)


async def empty(settings: RedisSettings) -> None:
    """Delete all keys of the database of `settings`, and none of the server's other databases."""
    connection = connection_to(settings)
    try:
        await connection.start()
        for server in connection.servers.values():
            await server.execute("FLUSHDB")
    finally:
        await connection.close()


class Template(NamedTuple):
    """A migrated database that others are copied from. PostgreSQL copies it only while it has no connection.

    A copy takes a tenth of the time of migrating.
    """

    settings: PostgresSettings
    as_sql: str
    """The text after TEMPLATE in the CREATE DATABASE of a copy."""

    @classmethod
    async def make(cls, settings: PostgresSettings) -> Self:
        """A template on the server of `settings`, whose user may create databases."""
        template = replace(settings, database=f"hubbub_template_{uuid4().hex}")
        await _fetch(settings, f"CREATE DATABASE {template.database}")
        await migrations.up(template)
        [major] = await _fetch(settings, "SELECT current_setting('server_version_num')::integer / 10000 AS major")
        # A copy through the log takes a third of the time of a copy of files. PostgreSQL 15 is the first with it.
        return cls(template, f"{template.database}{' STRATEGY wal_log' if major >= 15 else ''}")

    async def copy(self, settings: PostgresSettings) -> PostgresSettings:
        """A new database, with the user of `settings`. The statement runs in the database of `settings`."""
        copied = replace(settings, database=f"hubbub_{uuid4().hex}")
        await _fetch(settings, f"CREATE DATABASE {copied.database} TEMPLATE {self.as_sql}")
        return copied


async def drop(database: PostgresSettings, settings: PostgresSettings) -> None:
    """Remove a database and end its connections. The statement runs in the database of `settings`."""
    try:
        await _fetch(settings, f"DROP DATABASE {database.database} WITH (FORCE)")
    except Unavailable as refusal:
        if refusal.retryable:
            raise
        # Only a superuser may end autovacuum by force. Without FORCE PostgreSQL itself asks it to leave.
        await _fetch(settings, f"DROP DATABASE {database.database}")


async def _fetch(settings: PostgresSettings, sql: str) -> list[int]:
    pool = Pool(replace(settings, deadline_seconds=COPY_DEADLINE_SECONDS))
    try:
        return await pool.fetch_all(Statement("testing.database", int, sql))
    finally:
        await pool.close()


class LogEntry(NamedTuple):
    """One entry of a log, by what never changes about it. Later edits change the content, which is not in here."""

    seq: int
    kind: str
    """As in PostgreSQL: `sent`, or one of `room_events`, such as `joined`."""
    message_id: UUID | None = None
    member_id: UUID | None = None
    """The member that the entry is about, such as the user who joined or left."""

    @classmethod
    def of(cls, event: events.LogEvent) -> LogEntry:
        """The entry that this event was made from."""
        message = getattr(event, "message", None)
        member_id = getattr(event, "user_id", None)
        return cls(event.seq, event.kind, None if message is None else message.id, member_id)

    def __str__(self) -> str:
        about = self.message_id or self.member_id
        return f"{self.kind} at seq {self.seq}" if about is None else f"{self.kind} of {about} at seq {self.seq}"


def seq_errors(log: Sequence[LogEntry], head: int) -> Iterator[str]:
    """The seqs of a log are 1 to its head, each once and in order."""
    seqs = [entry.seq for entry in log]
    if seqs != list(range(1, head + 1)):
        yield f"{len(seqs)} entries with {len(set(seqs))} seqs, and the head is {head}"


def entries_for(log: Sequence[LogEntry], *, after: int = 0, member_id: UUID | None = None) -> list[LogEntry]:
    """The entries that a follower gets from the cursor `after` on: all of them, in order.

    With `member_id` the entries between that user's leaving and next joining are left out.
    """
    due: list[LogEntry] = []
    is_away = False
    for entry in log:
        is_own = member_id is not None and entry.member_id == member_id
        is_away = is_away and not (is_own and entry.kind == events.MemberJoined.kind)
        if entry.seq > after and not is_away:
            due.append(entry)
        is_away = is_away or (is_own and entry.kind == events.MemberLeft.kind)
    return due


def delivery_errors(
    log: Sequence[LogEntry],
    received: Iterable[LogEntry],
    *,
    after: int = 0,
    member_id: UUID | None = None,
    to_head: bool = True,
) -> Iterator[str]:
    """A follower received the log of one room from the cursor `after` on: each entry once, in order.

    `member_id` as in `entries_for`. Without `to_head` the follower may have stopped anywhere. After a `Resync` a
    follower starts fresh: check the entries after it on their own.
    """
    due = entries_for(log, after=after, member_id=member_id)
    index_of = {entry.seq: index for index, entry in enumerate(due)}
    following, last_seq = 0, after
    for entry in received:
        index = index_of.get(entry.seq)
        if index is None:
            yield f"{entry} was received, which is not an entry for this follower"
            continue
        if index != following:
            yield f"seq {entry.seq} was received after seq {last_seq}"
        if entry != due[index]:
            yield f"{entry} was received, and the log has {due[index]}"
        following, last_seq = index + 1, entry.seq
    if to_head and following < len(due):
        yield f"{len(due) - following} entries after seq {last_seq} were not received"
