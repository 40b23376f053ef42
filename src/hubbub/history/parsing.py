"""From the bytes of a line to what it says, or to why hubbub cannot store it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import msgspec

from hubbub import inputs
from hubbub.errors import Invalid
from hubbub.history.forms import (
    NO_METADATA,
    AnyLine,
    ChangeLine,
    Line,
    MemberLine,
    MessageLine,
    RoomLine,
    UserLine,
)
from hubbub.history.lines import LONGEST_LINE

_DECODER: Final = msgspec.json.Decoder(AnyLine)


def line_of(raw: bytes) -> AnyLine:
    """What a line says. Raises `Invalid` for one that hubbub cannot store, whatever is in the database."""
    if len(raw) > LONGEST_LINE:
        raise Invalid("line", f"longer than {LONGEST_LINE:,} bytes")
    try:
        line: AnyLine = _DECODER.decode(raw)
    except UnicodeDecodeError as error:
        raise Invalid("line", "not UTF-8") from error
    except msgspec.ValidationError as error:
        raise Invalid("line", str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid("line", "not JSON") from error
    if line.at.tzinfo is not UTC:
        _check_time("at", line.at)
    if type(line) is MessageLine:
        _check_place(line)
        _check_message(line)
    elif isinstance(line, Line):
        _check_place(line)
        _check_entry(line)
    elif isinstance(line, UserLine):
        _check_user(line)
    else:
        _check_room(line)
    return line


def _check_place(line: Line) -> None:
    if line.room is not None:
        _name("room", line.room, inputs.ROOM_NAME_LENGTH)
    elif line.room_id is None:
        raise Invalid("room", "is required, or room_id")
    if line.user is not None:
        _name("user", line.user, inputs.CONTENT_LENGTH)
    elif line.user_id is None and line.seq is None:
        raise Invalid("user", "is required, or user_id")


# The same names come again and again.
@lru_cache(maxsize=10_000)
def _name(field: str, value: str, longest: int) -> str:
    return inputs.text(field, value, longest=longest)


def _check_message(line: MessageLine) -> None:
    if line.deleted_at is None:
        inputs.text("content", line.content, longest=inputs.CONTENT_LENGTH)
    elif line.content or metadata_of(line) is not None:
        raise Invalid("content", "must be empty where there is a deleted_at, and metadata absent")
    if line.updated_at is not None or line.deleted_at is not None:
        _check_time("updated_at", line.updated_at)
        _check_time("deleted_at", line.deleted_at)
    if line.reply_to is not None and line.reply_to == line.id:
        raise Invalid("reply_to", "must be another message")
    if line.metadata is not NO_METADATA:
        metadata_of(line)


def metadata_of(line: MessageLine) -> str | None:
    """The JSON to store. Raises `Invalid`."""
    if line.metadata is NO_METADATA:
        return None
    try:
        return inputs.metadata(msgspec.json.decode(line.metadata))
    except RecursionError as error:
        raise Invalid("metadata", "is nested too deeply") from error


def _check_entry(line: Line) -> None:
    if isinstance(line, ChangeLine):
        inputs.text("name", line.name, longest=inputs.ROOM_NAME_LENGTH)
        _check_description(line.description)
    elif isinstance(line, MemberLine):
        if line.seq is None or line.room_id is None or line.user_id is None:
            raise Invalid("member", "needs seq, room_id and user_id")
        if max(line.last_read_seq, line.joined_seq) > line.seq:
            raise Invalid("member", "joined or read what is not in the log yet")


def _check_user(line: UserLine) -> None:
    _name("user", line.user, inputs.CONTENT_LENGTH)
    # The rule of the column rather than that of `inputs.email`: what one database holds, another can hold.
    email = inputs.text("email", line.email, longest=inputs.EMAIL_LENGTH)
    if not 1 <= email.find("@") <= len(email) - 2:
        raise Invalid("email", "must be an email address")
    inputs.url("avatar_url", line.avatar_url)


def _check_room(line: RoomLine) -> None:
    _name("room", line.room, inputs.ROOM_NAME_LENGTH)
    _check_description(line.description)
    _check_time("updated_at", line.updated_at)
    if line.direct is not None and (line.direct[0] == line.direct[1] or not line.is_private):
        raise Invalid("direct", "must be two different people, and the room private")


def _check_description(description: str | None) -> None:
    if description is not None:
        inputs.text("description", description, longest=inputs.DESCRIPTION_LENGTH, shortest=0)


def _check_time(field: str, at: datetime | None) -> None:
    """Within a day of the first and last year there are times that have no UTC."""
    if at is None or at.tzinfo is UTC:
        return
    try:
        at.astimezone(UTC)
    except OverflowError as error:
        raise Invalid(field, "is outside of the years 1 to 9999 in UTC") from error
