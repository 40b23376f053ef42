"""A chat log, as the demo plays it: what was said, who came, who left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from io import BufferedReader

import msgspec

from hubbub.errors import Invalid
from hubbub.history import AnyLine, JoinLine, LeaveLine, MessageLine, Refusal, Refusals, read_lines

__all__ = ["ChatLog", "Event", "Refusal", "Refusals", "event_of", "read"]


class Event(msgspec.Struct, frozen=True):
    """One line of a log. `content` is empty unless the kind is `message`."""

    kind: str
    room: str
    user: str
    at: datetime
    content: str = ""


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


def _events(file: BufferedReader, refusals: Refusals) -> Iterator[Event]:
    for number, line in read_lines(file, refusals.add):
        try:
            yield event_of(line)
        except Invalid as error:
            refusals.add(number, str(error))


def event_of(line: AnyLine) -> Event:
    """The event of a line of history. Raises `Invalid` for one that the demo cannot play."""
    match line:
        case MessageLine(room=str() as room, user=str() as user, content=content) if content:
            return Event("message", room, user, line.at, content)
        case JoinLine(room=str() as room, user=str() as user):
            return Event("join", room, user, line.at)
        case LeaveLine(room=str() as room, user=str() as user):
            return Event("leave", room, user, line.at)
    raise Invalid("line", "is no message, join or leave with a room and a user")
