"""A relay has to see whole messages, however the stream is cut into pieces."""

from __future__ import annotations

import pytest

from faults.frames import Commands, Pushes

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
def test_what_redis_publishes_is_told_from_its_answers(piece: int) -> None:
    stream = b"".join([*REST, PUBLISHED, *REST])
    pushes = Pushes()
    frames = [frame for at in range(0, len(stream), piece) for frame in pushes.feed(stream[at : at + piece])]
    assert [frame.data for frame in frames] == [*REST, PUBLISHED, *REST]
    assert [frame.data for frame in frames if frame.is_published] == [PUBLISHED]


@pytest.mark.parametrize("piece", [1, 4, 1_000])
def test_the_end_of_a_statement_is_found_in_what_postgresql_says(piece: int) -> None:
    stream = ROW + DONE + READY + ROW + SUSPENDED + READY
    commands = Commands()
    frames = [frame for at in range(0, len(stream), piece) for frame in commands.feed(stream[at : at + piece])]
    assert b"".join(frame.data for frame in frames) == stream
    assert [frame.data for frame in frames if frame.ends_statement] == [DONE, SUSPENDED]
    assert [frame.data for frame in frames if frame.is_ready] == [READY, READY]
