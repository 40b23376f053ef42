from __future__ import annotations

import gzip
import hashlib
import io
import os
import threading
from pathlib import Path

import pytest

from history import histories
from hubbub.history import source as module
from hubbub.history.lines import MAX_LINE_BYTES
from hubbub.history.source import CHUNK, Batch, Source, batches, read_lines
from hubbub.postgres import Copy, Pool


def test_source_ends_with_its_file_and_leaves_it_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one\ntwo\n")
    with (tmp_path / "file").open("rb") as file:
        with io.BufferedReader(Source(file), CHUNK) as content:
            assert content.readlines() == [b"one\n", b"two\n"]
        assert not file.closed


def test_bytes_in_memory_are_read_like_a_file() -> None:
    with io.BufferedReader(Source(io.BufferedReader(io.BytesIO(b"x" * 200_000))), CHUNK) as content:
        assert content.read() == b"x" * 200_000


def test_stop_ends_a_read_of_a_silent_pipe() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        source = Source(pipe)
        os.write(writing, b"one\ntw")
        read: list[bytes] = []
        with io.BufferedReader(source, CHUNK) as content:
            thread = threading.Thread(target=lambda: read.extend(content))
            thread.start()
            source.stop()
            thread.join(30)
            assert not thread.is_alive()
        os.close(writing)
    assert read in ([], [b"one\n", b"tw"])  # the stop may come before the first read


def test_source_ends_when_its_pipe_is_closed() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe, io.BufferedReader(Source(pipe), CHUNK) as content:
        os.write(writing, b"one")
        os.close(writing)
        assert content.read() == b"one"


def line(**keys: object) -> bytes:
    return histories.line(**keys).rstrip()


def taken(content: bytes) -> list[Batch]:
    return list(batches(io.BufferedReader(io.BytesIO(content))))


def contents(found: list[Batch]) -> list[str]:
    return [getattr(one, "content", "") for batch in found for _, one, _ in batch.taken]


def refused(found: list[Batch]) -> list[int]:
    return [one.line for batch in found for one in batch.refused]


def test_batch_has_lines_in_their_order_with_their_numbers() -> None:
    [batch] = taken(b"\n".join([line(content="one"), b"oops", b"", line(content="two")]))
    assert [number for number, _, _ in batch.taken] == [1, 4]
    assert refused([batch]) == [2]
    assert batch.is_last


def test_read_lines_returns_numbers_and_refuses_the_same_lines_as_an_import() -> None:
    refused: list[tuple[int, str]] = []
    file = histories.as_file(gzip.compress(line(content="one") + b"\n\noops\n" + line(content="two")))
    found = read_lines(file, lambda number, reason: refused.append((number, reason)))
    assert [(number, getattr(one, "content", "")) for number, one in found] == [(1, "one"), (4, "two")]
    assert refused == [(3, "line: not JSON")]


def test_empty_file_has_no_batches() -> None:
    assert taken(b"") == []


@pytest.mark.parametrize("name", ["chat.jsonl.gz", "chat.jsonl"])
def test_gzip_is_recognised_by_content_not_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(line(content="packed")))
    with (tmp_path / name).open("rb") as file:
        assert contents(list(batches(file))) == ["packed"]


def test_batches_are_read_from_a_pipe() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(gzip.compress(line(content="piped")))
    with os.fdopen(reading, "rb") as pipe:
        assert contents(list(batches(pipe))) == ["piped"]


def test_overlong_line_is_refused_without_filling_memory_and_the_next_is_read() -> None:
    found = taken(b"x" * (3 * MAX_LINE_BYTES) + b"\n" + line(content="after"))
    assert (contents(found), refused(found)) == (["after"], [1])


def test_line_ends_and_a_byte_order_mark_do_not_change_lines_or_digest() -> None:
    found = taken(b"\xef\xbb\xbf" + line() + b"\r\n\r\n" + line() + b"\r\n")
    assert (len(contents(found)), refused(found)) == (2, [])
    assert found[-1].checkpoint.digest == taken(line() + b"\n\n" + line())[-1].checkpoint.digest


def test_truncated_file_gives_its_lines_and_a_refusal_at_the_damage() -> None:
    whole = gzip.compress(b"\n".join(line(content=os.urandom(40).hex()) for _ in range(500)))
    found = taken(whole[: len(whole) // 2])
    assert 0 < len(contents(found)) < 500
    [batch] = found
    assert batch.damage is not None
    assert batch.damage.line == len(contents(found)) + 1
    assert "damaged" in batch.damage.reason


def test_batch_ends_at_either_of_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_LINES", 3)
    assert [len(batch.taken) for batch in taken(b"\n".join([line()] * 7))] == [3, 3, 1]
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    assert [len(batch.taken) for batch in taken(b"\n".join([line()] * 3))] == [1, 1, 1]


def test_batch_finds_the_last_checkpoint_of_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [line(content=str(n)) for n in range(7)]
    ends = [taken(b"\n".join(some[:n]))[-1].checkpoint for n in range(1, 8)]
    monkeypatch.setattr(module, "BATCH_LINES", 4)
    first, second = taken(b"\n".join(some))
    assert first.checkpoint == ends[3]
    assert first.reached([]) is None
    assert first.reached([ends[0], ends[2]]) == ends[2]
    assert second.reached([ends[5]]) == ends[5]
    assert second.reached([ends[5]._replace(digest=ends[4].digest)]) is None


class CountingHash:
    """A SHA-256 that counts, over all of them, the bytes that are hashed and the digests."""

    hashed = 0
    digests = 0

    def __init__(self, content: bytes = b"") -> None:
        self._hash = hashlib.sha256()
        self.update(content)

    def update(self, content: bytes) -> None:
        CountingHash.hashed += len(content)
        self._hash.update(content)

    def copy(self) -> CountingHash:
        other = CountingHash()
        other._hash = self._hash.copy()
        return other

    def digest(self) -> bytes:
        CountingHash.digests += 1
        return self._hash.digest()


async def test_checkpoints_of_other_files_cost_one_pass_over_each_batch(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [2, 5, 12, 18]
    async with pool.transaction() as transaction:
        others = [(os.urandom(32), ends[number % 4]) for number in range(1_000)]
        await transaction.copy(Copy("hubbub_imports", ("digest", "lines")), others)
    monkeypatch.setattr(module, "BATCH_LINES", 10)
    monkeypatch.setattr(module, "sha256", CountingHash)
    monkeypatch.setattr(CountingHash, "hashed", 0)
    monkeypatch.setattr(CountingHash, "digests", 0)
    content = histories.message_lines(*map(str, range(20)))
    imported = await histories.load(pool, content)
    assert (imported.messages, imported.continued_from) == (20, 0)
    assert CountingHash.hashed < 2 * len(content) + 100
    assert CountingHash.digests <= len(ends) + 2 + 2  # the ends of batches, and the step after the import
