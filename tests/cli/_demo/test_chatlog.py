from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from hubbub.cli._demo import chatlog
from hubbub.cli._demo.chatlog import LONGEST_LINE, REMEMBERED, ChatLog, Event, event_of
from hubbub.errors import Invalid


def line(**changes: object) -> bytes:
    event = {"kind": "message", "room": "#chat", "user": "ada", "at": "2004-11-15T12:18:00Z", "content": "hello"}
    return json.dumps({name: value for name, value in {**event, **changes}.items() if value is not None}).encode()


def taken(file: Path) -> tuple[ChatLog, list[Event]]:
    with file.open("rb") as opened:
        log = chatlog.read(file.name, opened)
        return log, list(log.events)


def written(folder: Path, *lines: bytes) -> Path:
    file = folder / "chat.jsonl"
    file.write_bytes(b"\n".join(lines))
    return file


def test_a_log_is_taken_in_the_order_of_its_lines(tmp_path: Path) -> None:
    file = written(tmp_path, line(content="one"), line(kind="join", content=None), line(content="two"))
    log, events = taken(file)
    assert [(event.kind, event.content) for event in events] == [
        ("message", "one"),
        ("join", ""),
        ("message", "two"),
    ]
    assert log.refusals.count == 0


@pytest.mark.parametrize("name", ["chat.jsonl.gz", "chat.jsonl"])
def test_gzip_is_known_by_its_content_and_not_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(line(content="packed")))
    _, events = taken(tmp_path / name)
    assert [event.content for event in events] == ["packed"]


def test_a_plain_file_may_be_called_gz(tmp_path: Path) -> None:
    (tmp_path / "chat.gz").write_bytes(line(content="plain"))
    _, events = taken(tmp_path / "chat.gz")
    assert [event.content for event in events] == ["plain"]


def test_a_log_may_come_through_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(gzip.compress(line(content="piped")))
    with os.fdopen(reading, "rb") as pipe:
        assert [event.content for event in chatlog.read("pipe", pipe).events] == ["piped"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":' + b"[" * 100_000, "not JSON"),
        (b"[]", "object"),
        (line(user="\xff").replace(b"\\u00ff", b"\xff"), "not UTF-8"),
        (line(kind="topic"), "'topic' is none of message, join, leave"),
        (line(kind=None), "kind"),
        (line(room=None), "room"),
        (line(user=7), "user"),
        (line(at=None), "at"),
        (line(at="yesterday"), "at"),
        (line(at="2004-11-15T12:18:00"), "timezone"),
        (line(content=None), "content: must not be blank"),
        (line(content=" "), "content: must not be blank"),
        (line(content="a\0b"), "content: must not hold a NUL"),
        (line(content="x" * 20_001), "content: must have at most"),
        (line(room="r" * 101), "room: must have at most"),
        (line(user="  "), "user: must not be blank"),
        (b" " * (LONGEST_LINE + 1), "longer than"),
    ],
)
def test_a_line_that_cannot_be_stored_says_why(bad: bytes, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        event_of(bad)


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(Invalid):
        event_of(line(content="\ud800"))


def test_bad_lines_are_counted_and_named_by_their_number(tmp_path: Path) -> None:
    log, events = taken(written(tmp_path, line(), b"oops", line(kind="topic"), b"", line(content="end")))
    assert [event.content for event in events] == ["hello", "end"]
    assert log.refusals.count == 2
    assert [refusal.line for refusal in log.refusals.first] == [2, 3]


def test_only_the_first_bad_lines_are_remembered(tmp_path: Path) -> None:
    log, _ = taken(written(tmp_path, *[b"oops"] * (REMEMBERED + 7)))
    assert log.refusals.count == REMEMBERED + 7
    assert len(log.refusals.first) == REMEMBERED


def test_a_line_without_an_end_does_not_fill_the_memory_and_the_next_one_is_read(tmp_path: Path) -> None:
    log, events = taken(written(tmp_path, b"x" * (3 * LONGEST_LINE), line(content="after")))
    assert [event.content for event in events] == ["after"]
    assert [refusal.line for refusal in log.refusals.first] == [1]


def test_line_ends_and_a_byte_order_mark_of_another_system_do_no_harm(tmp_path: Path) -> None:
    log, events = taken(written(tmp_path, b"\xef\xbb\xbf" + line() + b"\r", b"\r", line() + b"\r\n"))
    assert len(events) == 2
    assert log.refusals.count == 0


def test_a_file_that_was_cut_gives_what_it_has_and_says_where_it_ends(tmp_path: Path) -> None:
    whole = gzip.compress(b"\n".join(line(content=os.urandom(40).hex()) for _ in range(500)))
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    log, events = taken(tmp_path / "cut.gz")
    assert 0 < len(events) < 500
    [refusal] = log.refusals.first
    assert refusal.line == len(events) + 1
    assert "damaged" in refusal.reason
