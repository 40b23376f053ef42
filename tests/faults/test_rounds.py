"""What a client asks is read as it goes by, and every answer is known to be one to a write or not."""

from __future__ import annotations

import pytest

from faults.rounds import Rounds

EDIT = b"WITH target AS (SELECT 1) UPDATE messages SET content = $1 RETURNING id"
READ = b"SELECT updated_at, inserted FROM messages WHERE id = $1"


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (4 + len(body)).to_bytes(4, "big") + body


def parse(name: bytes, sql: bytes) -> bytes:
    """Parse, Describe and Flush, which no ReadyForQuery answers."""
    return message(b"P", name + b"\0" + sql + b"\0\0\0") + message(b"D", b"S" + name + b"\0") + message(b"H")


def run(name: bytes) -> bytes:
    """Bind, with a value that looks like SQL, Execute of one row, and Sync."""
    value = b"INSERT INTO\0"
    bound = b"\0" + name + b"\0\0\0\0\x01" + len(value).to_bytes(4, "big") + value + b"\0\0"
    return message(b"B", bound) + message(b"E", b"\0\0\0\0\x01") + message(b"S")


def query(sql: bytes) -> bytes:
    return message(b"Q", sql + b"\0")


LOGIN = message(b"", b"\0\x03\0\0user\0ada\0\0") + message(b"p", b"md5 of a password\0")
STREAM = b"".join(
    [
        LOGIN,
        *(parse(b"edit", EDIT), run(b"edit"), parse(b"read", READ), run(b"read"), run(b"edit"), run(b"read")),
        *(parse(b"", READ), run(b""), parse(b"", EDIT), run(b"")),
        *(query(b"BEGIN"), query(EDIT)),
    ]
)
WRITES = [False, *(True, False, True, False), *(False, True), *(False, True)]


@pytest.mark.parametrize("piece", [1, 2, 7, 1_000])
def test_a_round_writes_if_a_statement_does_that_it_runs(piece: int) -> None:
    rounds, found = Rounds(), []
    for at in range(0, len(STREAM), piece):
        rounds.feed(STREAM[at : at + piece])
    for _ in WRITES:
        found.append(rounds.writes)
        rounds.is_answered()
    assert found == WRITES
