"""A file as batches: lines that are committed together, with a digest of all that came up to their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from io import BufferedReader
from typing import TYPE_CHECKING, Final

from hubbub.errors import Invalid
from hubbub.history import lines
from hubbub.history.checkpoints import Checkpoint
from hubbub.history.forms import AnyLine
from hubbub.history.parsing import line_of
from hubbub.history.refusals import Refusal

if TYPE_CHECKING:
    from hashlib import _Hash

# What a batch holds is decided by the lines alone, so that every run of a file has the same batches.
LINES: Final = 10_000
BYTES: Final = 8 << 20


def read_lines(file: BufferedReader, refuse: Callable[[int, str], None]) -> Iterator[tuple[int, AnyLine]]:
    """The lines of an open file with their numbers, as an import reads them, blank lines left out.

    `refuse` is called with the number of each line that cannot be read, and the reason.
    """
    for number, raw in lines.numbered(file, refuse):
        if raw and not raw.isspace():
            try:
                yield number, line_of(raw)
            except Invalid as error:
                refuse(number, str(error))


class Batch:
    """Consecutive lines of a file. `taken` are those that can be stored, with their numbers.

    `before` is the number of lines in front of the batch, `is_last` whether the file ends with it. `digest` has
    read all lines up to its end.
    """

    __slots__ = ("_digest_before", "_raw", "before", "checkpoint", "digest", "is_last", "refused", "taken")

    def __init__(self, before: int, digest_before: _Hash, raw: list[bytes], *, is_last: bool) -> None:
        self.before = before
        self.is_last = is_last
        self.taken: list[tuple[int, AnyLine]] = []
        self.refused: list[Refusal] = []
        self._digest_before = digest_before
        self._raw = raw
        self.digest = self._digest_after(len(raw))
        self.checkpoint = Checkpoint(self.digest.digest(), before + len(raw))
        self._parse()

    def reached(self, known: list[Checkpoint]) -> Checkpoint | None:
        """Up to which line the batch was imported before, None for not at all.

        `known` are checkpoints of whatever files whose number of lines lies within the batch.
        """
        ours = [one for one in known if self._digest_after(one.lines - self.before).digest() == one.digest]
        return max(ours, key=lambda one: one.lines, default=None)

    def _digest_after(self, count: int) -> _Hash:
        digest = self._digest_before.copy()
        digest.update(b"\n".join([*self._raw[:count], b""]))
        return digest

    def _parse(self) -> None:
        for number, raw in enumerate(self._raw, self.before + 1):
            try:
                self.taken.append((number, line_of(raw)))
            except Invalid as error:
                if raw and not raw.isspace():
                    self.refused.append(Refusal(number, str(error)))


def batches(file: BufferedReader) -> Iterator[Batch]:
    """The batches of an open file, which may be a pipe.

    A file without lines has none; one that is damaged before its first line has one without lines, which says so.
    """
    digest, before = sha256(), 0
    damage: list[Refusal] = []
    chunks = _chunks(lines.numbered(file, lambda number, reason: damage.append(Refusal(number, reason))))
    raw = next(chunks, [])
    while raw or damage:
        following = next(chunks, [])
        batch = Batch(before, digest, raw, is_last=not following)
        if batch.is_last:
            batch.refused += damage
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
        if len(chunk) == LINES or size >= BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
