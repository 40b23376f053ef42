"""Files of history for tests, and the rows after their import."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from hubbub.history import History, Imported
from hubbub.postgres import Pool, connect
from hubbub.settings import PostgresSettings

# A real log of #ubuntu over ten years. It is beside the project and not part of it.
REAL = Path(__file__).parents[3] / "shared" / "data" / "ubuntu-irc.jsonl.gz"


def line(kind: str = "message", /, **keys: object) -> bytes:
    """A line. It has the plain form unless keys are given."""
    given: dict[str, object] = {"kind": kind, "room": "#chat", "user": "ada", "at": "2004-11-15T12:18:00Z"}
    if kind == "message" and "content" not in keys:
        given["content"] = "hello"
    given |= keys
    return json.dumps({name: value for name, value in given.items() if value is not None}).encode() + b"\n"


def message_lines(*contents: str, **keys: object) -> bytes:
    return b"".join(line(**{"content": content, **keys}) for content in contents)


def conversation(lines: int, *, rooms: int = 3, people: int = 7) -> bytes:
    """A conversation with joins and leaves, the same on each call."""
    kinds = ["message"] * 17 + ["join", "leave", "message"]
    return b"".join(
        line(
            kinds[number % 20],
            room=f"room {number % rooms}",
            user=f"user{number * number % people}",
            at=f"2020-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:00Z",
            content=f"message {number}" if kinds[number % 20] == "message" else None,
        )
        for number in range(lines)
    )


def as_file(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content))


async def load(pool: Pool, content: bytes) -> Imported:
    return await History(pool).load(as_file(content))


async def exported(pool: Pool, room_id: UUID) -> bytes:
    return b"".join([piece async for piece in History(pool).lines(room_id)])


def parsed(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(one) for one in content.splitlines()]


def real_log() -> bytes:
    with gzip.open(REAL) as file:
        return file.read()


TABLES = {
    "users": "id, email, username, created_at, kind, external_id, display_name, display_name_key, metadata",
    "rooms": "id, name, last_seq, created_by, created_at, metadata",
    "messages": "id, room_id, seq, user_id, content, created_at, updated_at, deleted_at, reply_to, metadata",
    "room_events": "room_id, seq, kind, message_id, user_id, payload, created_at",
    "room_users": "room_id, user_id, role, joined_at, joined_seq, last_read_seq, last_read_message_id, metadata",
    "hubbub_imports": "digest, lines",
}


async def stored_rows(settings: PostgresSettings) -> dict[str, list[Any]]:
    """All rows that an import writes, without the time of the import."""
    connection = await connect(settings)
    try:
        return {
            table: [tuple(row) for row in await connection.fetch(f"SELECT {columns} FROM {table} ORDER BY 1, 2")]
            for table, columns in TABLES.items()
        }
    finally:
        await connection.close()


async def check_logs(settings: PostgresSettings) -> None:
    """Assert that every room has the seqs from 1 to last_seq."""
    connection = await connect(settings)
    try:
        wrong = await connection.fetch("""
            SELECT rooms.id
            FROM rooms
            LEFT JOIN (
                SELECT room_id, seq FROM messages UNION ALL SELECT room_id, seq FROM room_events
            ) AS entries ON entries.room_id = rooms.id
            GROUP BY rooms.id
            HAVING count(entries.seq) <> rooms.last_seq OR count(DISTINCT entries.seq) <> rooms.last_seq
                OR max(entries.seq) IS DISTINCT FROM NULLIF(rooms.last_seq, 0)
        """)
        assert wrong == []
    finally:
        await connection.close()


def contents(rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """The contents of the messages of `stored_rows`, in the order of rooms and seqs."""
    return [row[4] for row in sorted(rows, key=lambda row: (row[1], row[2]))]
