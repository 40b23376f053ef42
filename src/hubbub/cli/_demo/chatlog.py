"""A chat log: one JSON object a line, plain or compressed with gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from io import BufferedReader
from typing import Annotated, Final, NamedTuple

import msgspec

from hubbub import inputs
from hubbub.errors import Invalid

KINDS: Final = ("message", "join", "leave")
GZIP_MAGIC: Final = b"\x1f\x8b"
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

# A message of 20,000 characters fits, also with each written as \uXXXX\uXXXX; a file without line ends does not
# fill the memory.
LONGEST_LINE: Final = 1 << 20
# So many lines that cannot be used are remembered; the others are only counted.
REMEMBERED: Final = 100


class Event(msgspec.Struct, frozen=True):
    """One line of a log. `content` is empty unless the kind is `message`."""

    kind: str
    room: str
    user: str
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    content: str = ""


class Refusal(NamedTuple):
    """A line that cannot be used, counted from 1, and why."""

    line: int
    reason: str


@dataclass(slots=True)
class Refusals:
    """How many lines could not be used, and the first of them."""

    count: int = 0
    first: list[Refusal] = field(default_factory=list)

    def add(self, line: int, reason: str) -> None:
        self.count += 1
        if len(self.first) < REMEMBERED:
            self.first.append(Refusal(line, reason))


@dataclass(slots=True)
class ChatLog:
    """Events to be taken once, in the order of the lines. `refusals` grows while they are taken."""

    title: str
    events: Iterator[Event]
    refusals: Refusals = field(default_factory=Refusals)


def read(title: str, file: BufferedReader) -> ChatLog:
    """The events of an open file, which may be a pipe: it is read once and never as a whole."""
    refusals = Refusals()
    return ChatLog(title, _events(file, refusals), refusals)


_DECODER = msgspec.json.Decoder(Event)


def _events(file: BufferedReader, refusals: Refusals) -> Iterator[Event]:
    for number, line in _lines(file, refusals):
        if line.isspace():
            continue
        try:
            yield event_of(line)
        except Invalid as error:
            refusals.add(number, str(error))


def event_of(line: bytes) -> Event:
    """The event on a line. Raises `Invalid` when it is not one that hubbub can store."""
    if len(line) > LONGEST_LINE:
        raise Invalid("line", f"longer than {LONGEST_LINE:,} bytes")
    try:
        event = _DECODER.decode(line)
    except UnicodeDecodeError as error:
        raise Invalid("line", "not UTF-8") from error
    except msgspec.ValidationError as error:
        raise Invalid("line", str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid("line", "not JSON") from error
    if event.kind not in KINDS:
        raise Invalid("kind", f"{event.kind[:20]!a} is none of {', '.join(KINDS)}")
    inputs.text("room", event.room, longest=inputs.ROOM_NAME_LENGTH)
    inputs.text("user", event.user, longest=inputs.CONTENT_LENGTH)
    if event.kind == "message":
        inputs.text("content", event.content, longest=inputs.CONTENT_LENGTH)
    return event


def _lines(file: BufferedReader, refusals: Refusals) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, those that are too long cut to one byte more than the limit."""
    number = 0
    try:
        compressed = file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)  # by content: a name can be wrong
        opened = gzip.GzipFile(fileobj=file) if compressed else file
        while line := opened.readline(LONGEST_LINE + 1):
            number += 1
            end = line
            while len(end) > LONGEST_LINE and not end.endswith(b"\n"):
                end = opened.readline(LONGEST_LINE + 1)
            yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error):
        refusals.add(number + 1, "the compressed file is damaged from here on")
    except OSError as error:
        refusals.add(number + 1, f"the file cannot be read from here on: {error.strerror}")
