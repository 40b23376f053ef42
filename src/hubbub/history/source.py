"""A file of history as batches of lines. It is read once, by one thread, and never as a whole.

    file or pipe -> Source -> gzip? -> numbered lines -> Batch (parsed, with a digest) -> BatchReader

The reader is one batch ahead of the database, so at most three are in memory: one is being stored, one is parsed,
and the raw lines of one are read.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import select
import zlib
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from hubbub.errors import Invalid
from hubbub.history.lines import MAX_LINE_BYTES, AnyLine, EqualMessages, parse_line
from hubbub.postgres import Statement

if TYPE_CHECKING:
    from hashlib import _Hash

    from _typeshed import WriteableBuffer

CHUNK: Final = 1 << 16
"""Bytes per read: as many as a pipe holds."""

BATCH_LINES: Final = 10_000
BATCH_BYTES: Final = 8 << 20
"""A batch ends at either limit. Only the lines decide, so that every run of a file has the same batches. At 40,000
messages per second a batch keeps its rooms locked for a quarter of a second."""

GZIP_MAGIC: Final = b"\x1f\x8b"
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Refusal(NamedTuple):
    """A line that cannot be used, counted from 1, and the reason."""

    line: int
    reason: str


class Source(io.RawIOBase):
    """An open file as one thread reads it. It ends where the file ends, or when another thread calls `stop`.

    A read of a silent pipe cannot be interrupted, nor can the pipe be closed meanwhile. So the thread waits until
    there is something to read, or for `stop`.
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._stopped, self._stop = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._stopped, select.POLLIN)
        self._in_memory = False
        try:
            self._poll.register(file.fileno(), select.POLLIN)
        except (AttributeError, io.UnsupportedOperation):  # not a file of the operating system
            self._in_memory = True

    def stop(self) -> None:
        """End the source for its reader, also one that waits for a pipe."""
        os.write(self._stop, b"\0")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._in_memory and self._stopped in (descriptor for descriptor, _ in self._poll.poll()):
            return 0
        view = memoryview(buffer).cast("B")
        read = self._file.read1(len(view))
        view[: len(read)] = read
        return len(read)

    def close(self) -> None:
        if not self.closed:
            os.close(self._stopped)
            os.close(self._stop)
        super().close()


TakenLine: TypeAlias = tuple[int, AnyLine, int]
"""The number of a line that can be stored, counted from 1, the line, and how many equal messages are before it."""


def read_lines(file: io.BufferedReader, refuse: Callable[[int, str], None]) -> Iterator[tuple[int, AnyLine]]:
    """The lines of an open file with their numbers, as an import reads them, without blank lines.

    `refuse` is called with the number of each line that cannot be read, and the reason.
    """
    return _parsed(_numbered_lines(file, refuse), refuse)


def _parsed(
    numbered: Iterable[tuple[int, bytes]], refuse: Callable[[int, str], None]
) -> Iterator[tuple[int, AnyLine]]:
    for number, raw in numbered:
        try:
            line = parse_line(raw)
        except Invalid as error:
            if raw and not raw.isspace():
                refuse(number, str(error))
        else:
            yield number, line


def _numbered_lines(file: io.BufferedReader, refuse: Callable[[int, str], None]) -> Iterator[tuple[int, bytes]]:
    """Lines, counted from 1, without their ends; one that is too long is cut to a byte more than the limit.

    Where the file cannot be read any further, the line that would have come next is refused.
    """
    number = 0
    try:
        compressed = file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)  # by content: a name can be wrong
        opened = gzip.GzipFile(fileobj=file) if compressed else file
        while line := opened.readline(MAX_LINE_BYTES + 1):
            number += 1
            end = line
            while len(end) > MAX_LINE_BYTES and not end.endswith(b"\n"):
                end = opened.readline(MAX_LINE_BYTES + 1)
            yield number, (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).rstrip(b"\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        refuse(number + 1, "the compressed file is damaged from here on")
    except OSError as error:
        refuse(number + 1, f"the file cannot be read from here on: {error.strerror}")


class Checkpoint(NamedTuple):
    """A row of `hubbub_imports`: the number of imported lines of a file, and the SHA-256 of all of them."""

    digest: bytes
    lines: int

    def counted_as_read(self) -> Checkpoint:
        """The checkpoint of the step after the import, in which all of it counts as read by the members."""
        return Checkpoint(sha256(self.digest + b"read").digest(), self.lines)


CHECKPOINTS = Statement(
    "history.checkpoints",
    Checkpoint,
    "SELECT digest, lines FROM hubbub_imports WHERE lines > $1 AND lines <= $2",
)

SAVE_CHECKPOINT = Statement(
    "history.save_checkpoint", int, "INSERT INTO hubbub_imports (digest, lines) VALUES ($1, $2)"
)

# The id of the transaction that stored the row. No row is changed later.
STORED_BY = Statement(
    "history.stored_by",
    lambda transaction_id: transaction_id,
    "SELECT xmin::text AS transaction_id FROM hubbub_imports WHERE digest = $1",
)


class Batch:
    """Consecutive lines of a file, committed together. `taken` are those that can be stored.

    `before` is the number of lines in front of the batch. `digest` covers all lines of the file up to its end.
    `damage` is why the file cannot be read beyond it.
    """

    def __init__(
        self, before: int, digest_before: _Hash, raw: list[bytes], equals: EqualMessages, *, is_last: bool
    ) -> None:
        self.before = before
        self.is_last = is_last
        self.refused: list[Refusal] = []
        self.damage: Refusal | None = None
        self._digest_before = digest_before
        self._raw = raw
        self.digest = digest_before.copy()
        self.digest.update(_with_line_ends(raw))
        self.checkpoint = Checkpoint(self.digest.digest(), before + len(raw))
        self._digests = {len(raw): self.checkpoint.digest}  # by number of lines of the batch
        self.taken: list[TakenLine] = [
            (number, line, equals.count(line)) for number, line in _parsed(enumerate(raw, before + 1), self.refuse)
        ]

    def refuse(self, number: int, reason: str) -> None:
        self.refused.append(Refusal(number, reason))

    def reached(self, known: list[Checkpoint]) -> Checkpoint | None:
        """The last of these checkpoints that is one of this file, None if there is none.

        `known` are checkpoints of any files whose number of lines lies within the batch. The lines, up to
        8 MiB, are hashed once for all of them.
        """
        self._add_digests({one.lines - self.before for one in known} - self._digests.keys())
        ours = [one for one in known if self._digests[one.lines - self.before] == one.digest]
        return max(ours, key=lambda one: one.lines, default=None)

    def _add_digests(self, counts: Iterable[int]) -> None:
        """Compute the digests after so many lines of the batch, in one pass over them."""
        digest, hashed = self._digest_before.copy(), 0
        for count in sorted(counts):
            digest.update(_with_line_ends(self._raw[hashed:count]))
            self._digests[count] = digest.digest()
            hashed = count


def _with_line_ends(raw: Iterable[bytes]) -> bytes:
    return b"\n".join([*raw, b""])


def batches(file: io.BufferedReader) -> Iterator[Batch]:
    """The batches of an open file. One that is damaged before its first line has a batch without lines."""
    digest, before, equals = sha256(), 0, EqualMessages()
    damage: list[Refusal] = []
    chunks = _chunks(_numbered_lines(file, lambda number, reason: damage.append(Refusal(number, reason))))
    raw = next(chunks, [])
    while raw or damage:
        following = next(chunks, [])
        batch = Batch(before, digest, raw, equals, is_last=not following)
        if batch.is_last and damage:
            [batch.damage] = damage
        yield batch
        digest = batch.digest
        before += len(raw)
        if batch.is_last:
            return
        raw = following


def _chunks(numbered: Iterator[tuple[int, bytes]]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for _, raw in numbered:
        chunk.append(raw)
        size += len(raw)
        if len(chunk) == BATCH_LINES or size >= BATCH_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class BatchReader:
    """Reads and parses the batches of a file in a thread, one after the other.

    idle --prefetch or next--> reading --next--> idle        leaving the block stops the source, then the thread
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._source = Source(file)
        self._content: io.BufferedReader = io.BufferedReader(self._source, CHUNK)
        self._batches = batches(self._content)
        self._task: asyncio.Task[Batch | None] | None = None

    async def aclose(self) -> None:
        """Stop the thread, and leave the file open."""
        self._source.stop()
        if self._task is not None:
            await asyncio.wait([self._task])  # a thread cannot be cancelled, but after the stop it ends soon
        self._content.close()

    def prefetch(self) -> asyncio.Task[Batch | None]:
        """Begin to read the next batch, unless that has begun."""
        if self._task is None:
            read = asyncio.to_thread(next, self._batches, None)
            self._task = asyncio.create_task(read, name="hubbub: read history")
        return self._task

    async def next(self) -> Batch | None:
        """The next batch, None at the end of the file."""
        batch = await asyncio.shield(self.prefetch())
        self._task = None
        return batch
