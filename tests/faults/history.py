"""The history of a process: its calls, their answers and the events it received. Each is on disk before the next.

A kill -9 of the process cuts off at most the last line. A line is one `write` to a file opened for appending, so
all earlier lines are in the kernel. Times are nanoseconds of CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from uuid import UUID

import msgspec

from hubbub.testing import LogEntry

Change = Literal["send", "edit", "delete"]


class Began(msgspec.Struct, frozen=True, tag="began"):
    """A call starts. `call` is unique in its history; a retry after an error belongs to the same call."""

    at: int
    call: int
    change: Change
    room_id: UUID
    message_id: UUID
    content: str


class Acknowledged(msgspec.Struct, frozen=True, tag="acknowledged"):
    """The call returned; `seq` is that of its message."""

    at: int
    call: int
    seq: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """One attempt of the call raised."""

    at: int
    call: int
    reason: str


class GaveUp(msgspec.Struct, frozen=True, tag="gave up"):
    """The call is not repeated: the error of each attempt showed that it was not made."""

    at: int
    call: int


class Looked(msgspec.Struct, frozen=True, tag="looked"):
    """The content of the message after the call: None where there is no message, "" where it is deleted."""

    at: int
    call: int
    content: str | None


class Follows(msgspec.Struct, frozen=True, tag="follows"):
    """A follower starts, from these cursors."""

    at: int
    after: dict[UUID, str | None]


class Delivered(msgspec.Struct, frozen=True, tag="delivered"):
    """A follower received an entry of a log."""

    at: int
    room_id: UUID
    seq: int
    kind: str
    message_id: UUID | None
    cursor: str
    member_id: UUID | None = None

    @property
    def entry(self) -> LogEntry:
        return LogEntry(self.seq, self.kind, self.message_id, self.member_id)


class Resynced(msgspec.Struct, frozen=True, tag="resynced"):
    """A follower received a `Resync`."""

    at: int
    room_id: UUID
    reason: str
    cursor: str


class Stalled(msgspec.Struct, frozen=True, tag="stalled"):
    """A turn of the event loop: its delay, and the part of it in which the process waited for a processor."""

    at: int
    late_seconds: float
    waited_for_processor_seconds: float


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """One of many processes has opened a hub, after this many attempts."""

    at: int
    process: int
    began: int
    tries: int


class Served(msgspec.Struct, frozen=True, tag="served"):
    """A call of one of many processes was answered."""

    at: int
    process: int
    began: int


Record = (
    Began | Acknowledged | Failed | GaveUp | Looked | Follows | Delivered | Resynced | Stalled | Opened | Served
)

_DECODER = msgspec.json.Decoder(Record)


def now() -> int:
    """Nanoseconds that can be compared between processes."""
    return time.monotonic_ns()


class History:
    """The history that this process writes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        # A line that an earlier process left incomplete must not damage the first line of this one.
        if os.fstat(self._file).st_size:
            os.write(self._file, b"\n")

    def write(self, record: Record) -> None:
        os.write(self._file, msgspec.json.encode(record) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


class Tail:
    """Reads a history while it is written. Each call of `new` returns the records since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[Record]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(_records(whole))


def read(path: Path) -> list[Record]:
    """All records of a history, except an incomplete last line."""
    return Tail(path).new()


def _records(lines: bytes) -> list[Record]:
    records = []
    for line in lines.split(b"\n"):
        try:
            records.append(_DECODER.decode(line))
        except msgspec.DecodeError:
            continue  # incomplete after a kill, or the empty line after that
    return records
