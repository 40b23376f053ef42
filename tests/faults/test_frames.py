"""A relay finds whole messages and the answers to writes, however the stream is cut into pieces."""

from __future__ import annotations

import pytest

from faults.frames import Answers, Replies, Rounds

PUBLISHED = b">3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$6\r\n>5\r\n\r\n\r\n"
REST = [
    b">3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n",
    b"+OK\r\n",
    b"$-1\r\n",
    b"_\r\n",
    b"$0\r\n\r\n",
    b"*2\r\n*1\r\n:1\r\n*0\r\n",
    b"%1\r\n+key\r\n*2\r\n,1.5\r\n#t\r\n",
    b"-ERR no\r\n",
]
DONE = b"C\x00\x00\x00\x0fINSERT 0 1\x00"
SUSPENDED = b"s\x00\x00\x00\x04"
READY = b"Z\x00\x00\x00\x05I"
ROW = b"D\x00\x00\x00\x06\x00\x00"


@pytest.mark.parametrize("piece", [1, 2, 7, 1_000])
def test_published_messages_of_redis_are_distinguished_from_replies(piece: int) -> None:
    stream = b"".join([*REST, PUBLISHED, *REST])
    replies = Replies()
    frames = [frame for at in range(0, len(stream), piece) for frame in replies.feed(stream[at : at + piece])]
    assert [frame.data for frame in frames] == [*REST, PUBLISHED, *REST]
    assert [frame.data for frame in frames if frame.is_published] == [PUBLISHED]


@pytest.mark.parametrize("piece", [1, 4, 1_000])
def test_end_of_a_statement_is_found_in_answers_of_postgresql(piece: int) -> None:
    stream = ROW + DONE + READY + ROW + SUSPENDED + READY
    answers = Answers()
    frames = [frame for at in range(0, len(stream), piece) for frame in answers.feed(stream[at : at + piece])]
    assert b"".join(frame.data for frame in frames) == stream
    assert [frame.data for frame in frames if frame.ends_statement] == [DONE, SUSPENDED]
    assert [frame.data for frame in frames if frame.is_ready] == [READY, READY]


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
QUESTIONS = b"".join(
    [
        LOGIN,
        *(parse(b"edit", EDIT), run(b"edit"), parse(b"read", READ), run(b"read"), run(b"edit"), run(b"read")),
        *(parse(b"", READ), run(b""), parse(b"", EDIT), run(b"")),
        *(query(b"BEGIN"), query(EDIT)),
    ]
)
EXPECTED = [False, *(True, False, True, False), *(False, True), *(False, True)]


@pytest.mark.parametrize("piece", [1, 2, 7, 1_000])
def test_round_writes_when_one_of_its_statements_does(piece: int) -> None:
    rounds, found = Rounds(), []
    for at in range(0, len(QUESTIONS), piece):
        rounds.feed(QUESTIONS[at : at + piece])
    for _ in EXPECTED:
        found.append(rounds.writes)
        rounds.is_answered()
    assert found == EXPECTED
