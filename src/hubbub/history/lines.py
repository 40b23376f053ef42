"""The lines of history: their forms, one type per kind, how they are parsed, and the ids of what has none in them.

The plain form needs `kind` (message, join or leave), `room`, `user`, `at` and `content`. The richer form adds ids,
emails, roles, edits and tombstones, and the `seq` that makes a line an entry of a log as it was in another
database. docs/history.md has the table of their keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Final, get_args
from uuid import UUID

import msgspec

from hubbub import events, inputs
from hubbub.errors import Invalid
from hubbub.models import MessageType, Role, UserKind
from hubbub.positions import microseconds_since_epoch
from hubbub.postgres import uuid_of

MAX_LINE_BYTES: Final = 1 << 20
"""A message of 65,536 characters fits, also with each written as \\uXXXX\\uXXXX; a file without line
ends does not fill the memory."""

DISTINCT_NAMES: Final = 10_000
"""How many names of rooms and users are remembered as checked, or with their ids: most lines repeat one of few."""

KEPT_LENGTH: Final = 100
"""The longest name that is remembered. A nickname of 20,000 characters is taken, but thousands of them would fill
the memory."""

REMEMBERED_MESSAGES: Final = 100_000
"""Equal messages are distinguished if fewer than this many others are between them: 20 MB. Further apart, two
messages that are equal to the microsecond are one message that the file has twice."""


NO_METADATA: Final = msgspec.Raw()
"""The metadata of a line that has none. A line that is written leaves it out."""

FIRST_TIME: Final = datetime.min.replace(tzinfo=UTC) + timedelta.resolution
LAST_TIME: Final = datetime.max.replace(tzinfo=UTC) - timedelta.resolution
"""The times between which a line is stored as it is. The driver sends the first and the last `datetime` as
`-infinity` and `infinity`, and an account of Go or .NET without a time has the first one."""

Time = Annotated[datetime, msgspec.Meta(tz=True)]
Seq = Annotated[int, msgspec.Meta(ge=1, le=inputs.MAX_SEQ)]
SeqOrZero = Annotated[int, msgspec.Meta(ge=0, le=inputs.MAX_SEQ)]


class Line(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="kind"):
    """Something that a user did in a room. With `seq` it is the entry of that number in the log of the room."""

    event: ClassVar[type[events.LoggedEvent]]
    """The entry that the line stands for. Fields of the same name in both have the same value."""

    at: Time
    room: str | None = None
    user: str | None = None
    room_id: UUID | None = None
    user_id: UUID | None = None
    seq: Seq | None = None

    def check(self) -> None:
        """Raises: Invalid (the value of a field cannot be stored)."""
        if self.room is not None:
            _check_name("room", self.room, inputs.ROOM_NAME_LENGTH)
        elif self.room_id is None:
            raise Invalid("room", "is required, or room_id")
        if self.user is not None:
            _check_nickname(self.user)
        elif self.user_id is None and self.seq is None:
            raise Invalid("user", "is required, or user_id")


class MessageLine(Line, frozen=True, kw_only=True, gc=False, tag="message"):
    """A message as it is now: its latest content if it was edited, without content if it was deleted."""

    event = events.MessageSent
    id: UUID | None = None
    content: str = ""
    message_type: MessageType = MessageType.TEXT
    is_edited: bool = False
    updated_at: Time | None = None
    deleted_at: Time | None = None
    reply_to: UUID | None = None
    metadata: msgspec.Raw = NO_METADATA

    def check(self) -> None:
        super().check()
        metadata = metadata_of(self)
        if self.deleted_at is None:
            inputs.imported_content(self.content, self.message_type, metadata)
        elif self.content or metadata is not None:
            raise Invalid("content", "must be empty if there is a deleted_at, and metadata absent")
        if self.updated_at is not None or self.deleted_at is not None:
            _check_time("updated_at", self)
            _check_time("deleted_at", self)
        if self.reply_to is not None and self.reply_to == self.id:
            raise Invalid("reply_to", "must be another message")


class JoinLine(Line, frozen=True, kw_only=True, gc=False, tag="join"):
    event = events.MemberJoined
    role: Role | None = None


class LeaveLine(Line, frozen=True, kw_only=True, gc=False, tag="leave"):
    event = events.MemberLeft


class EditLine(Line, frozen=True, kw_only=True, gc=False, tag="edit"):
    """A message was edited. Its own line has the new content."""

    event = events.MessageEdited
    message_id: UUID


class DeleteLine(Line, frozen=True, kw_only=True, gc=False, tag="delete"):
    """A message was deleted. Its own line is the tombstone."""

    event = events.MessageDeleted
    message_id: UUID


class RoleLine(Line, frozen=True, kw_only=True, gc=False, tag="role"):
    event = events.RoleChanged
    role: Role


class MemberChangeLine(Line, frozen=True, kw_only=True, gc=False, omit_defaults=False, tag="member_change"):
    """A membership has other metadata from then on."""

    event = events.MemberChanged
    metadata: Mapping[str, Any] | None

    def check(self) -> None:
        super().check()
        inputs.metadata(self.metadata)


class ChangeLine(Line, frozen=True, kw_only=True, gc=False, omit_defaults=False, tag="change"):
    """The room was changed; these are its properties from then on."""

    event = events.RoomChanged
    name: str
    description: str | None
    is_private: bool
    # Both are absent from older entries.
    keeps_receipts: bool | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Mapping[str, Any] | msgspec.UnsetType | None = msgspec.UNSET

    def check(self) -> None:
        super().check()
        inputs.imported_text("name", self.name, longest=inputs.ROOM_NAME_LENGTH)
        inputs.description(self.description)
        if self.metadata is not msgspec.UNSET:
            inputs.metadata(self.metadata)


class MemberLine(Line, frozen=True, kw_only=True, gc=False, tag="member"):
    """A membership as it is once the log has reached `seq`. Not an entry of the log."""

    role: Role = Role.MEMBER
    joined_seq: SeqOrZero = 0
    last_read_seq: SeqOrZero = 0
    last_read_message_id: UUID | None = None
    metadata: msgspec.Raw = NO_METADATA

    def check(self) -> None:
        super().check()
        metadata_of(self)
        if self.seq is None or self.room_id is None or self.user_id is None:
            raise Invalid("member", "needs seq, room_id and user_id")
        if max(self.last_read_seq, self.joined_seq) > self.seq:
            raise Invalid("member", "has a joined_seq or last_read_seq beyond its seq")


class UserLine(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="kind", tag="user"
):
    """An account. Later lines refer to it by its id."""

    at: Time
    id: UUID
    user: str
    email: str | None = None
    avatar_url: str | None = None
    display_name: str | None = None
    metadata: msgspec.Raw = NO_METADATA
    user_kind: UserKind = UserKind.PERSON
    external_id: str | None = None

    def check(self) -> None:
        _check_nickname(self.user)
        if self.email is not None:
            # The rule of the column, not that of `inputs.email`: what one database stores, another can store.
            email = inputs.text("email", self.email, longest=inputs.EMAIL_LENGTH)
            if not 1 <= email.find("@") <= len(email) - 2:
                raise Invalid("email", "must be an email address")
        inputs.url("avatar_url", self.avatar_url)
        if self.display_name is not None:
            inputs.imported_text("display_name", self.display_name, longest=inputs.DISPLAY_NAME_LENGTH)
        if self.external_id is not None:
            inputs.external_id(self.external_id)
        metadata_of(self)


class RoomLine(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="kind", tag="room"
):
    """A room. Later lines refer to it by its id. `direct` has the two members of a direct room."""

    at: Time
    id: UUID
    room: str
    description: str | None = None
    is_private: bool = False
    created_by: UUID | None = None
    updated_at: Time | None = None
    keeps_receipts: bool | None = None
    direct: tuple[UUID, UUID] | None = None
    metadata: msgspec.Raw = NO_METADATA

    def check(self) -> None:
        metadata_of(self)
        _check_name("room", self.room, inputs.ROOM_NAME_LENGTH)
        inputs.description(self.description)
        _check_time("updated_at", self)
        if self.direct is not None and (self.direct[0] == self.direct[1] or not self.is_private):
            raise Invalid("direct", "must be two different users, and the room private")


EventLine = JoinLine | LeaveLine | EditLine | DeleteLine | RoleLine | MemberChangeLine | ChangeLine
AnyLine = MessageLine | EventLine | MemberLine | UserLine | RoomLine
PlainLine = MessageLine | JoinLine | LeaveLine
"""The kinds of lines in the plain form."""

EVENT_LINES: Final[Mapping[str, type[EventLine]]] = {line.event.kind: line for line in get_args(EventLine)}
"""The line of each kind of entry that is not a message."""

PAYLOAD_FIELDS: Final = {
    line: [field for field in msgspec.structs.fields(line) if field.name in events.Payload.__struct_fields__]
    for line in EVENT_LINES.values()
}
"""The fields of a line that its entry has in the JSON `payload`. One with its default value is left out there."""

_DECODER: Final = msgspec.json.Decoder(AnyLine)


def parse_line(raw: bytes) -> AnyLine:
    """The line in these bytes. Raises: Invalid (hubbub cannot store it, whatever is in the database)."""
    if len(raw) > MAX_LINE_BYTES:
        raise Invalid("line", f"longer than {MAX_LINE_BYTES:,} bytes")
    try:
        line: AnyLine = _DECODER.decode(raw)
    except UnicodeDecodeError as error:
        raise Invalid("line", "not UTF-8") from error
    except msgspec.ValidationError as error:
        raise Invalid("line", str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid("line", "not JSON") from error
    if b"00000000" in raw or b"\\u0030" in raw:  # the nil UUID cannot be written without one of them
        _check_ids(line)
    _check_time("at", line)
    line.check()
    return line


def _check_ids(line: AnyLine) -> None:
    for field in line.__struct_fields__:
        value = getattr(line, field)
        for id in value if field == "direct" and value else (value,):
            if isinstance(id, UUID):
                inputs.uuid(field, id)


@lru_cache(maxsize=DISTINCT_NAMES)
def _check_name(field: str, value: str, longest: int) -> None:
    inputs.imported_text(field, value, longest=longest)


def _check_nickname(nickname: str) -> None:
    check = _check_name if len(nickname) <= KEPT_LENGTH else _check_name.__wrapped__
    check("user", nickname, inputs.CONTENT_LENGTH)


def metadata_of(line: MessageLine | MemberLine | UserLine | RoomLine) -> str | None:
    """The metadata on a line, as JSON to store. Raises: Invalid."""
    if line.metadata is NO_METADATA:
        return None
    try:
        return inputs.metadata(msgspec.json.decode(line.metadata))
    except RecursionError as error:
        raise Invalid("metadata", "is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the line was read without a look at it
        raise Invalid("metadata", "is not JSON in UTF-8, or has a number that is out of range") from error


def _check_time(field: str, line: AnyLine) -> None:
    """Have the time of a line be one that can be stored. Raises: Invalid.

    Within a day of the first and the last year, some local times have no equivalent in UTC.
    """
    at: datetime | None = getattr(line, field)
    if at is None or 1 < at.year < 9999:
        return
    try:
        at = at.astimezone(UTC)
    except OverflowError as error:
        raise Invalid(field, "is outside of the years 1 to 9999 in UTC") from error
    msgspec.structs.force_setattr(line, field, min(max(at, FIRST_TIME), LAST_TIME))


# Ids for what has none are derived from what is known, so that a line means the same in each import.


@lru_cache(maxsize=DISTINCT_NAMES)
def derive_room_id(name: str) -> UUID:
    """The room that history without ids means by a name. Names of rooms are not unique; this id is."""
    return _derive_id(f"room\0{name}")


def _identity(nickname: str) -> str:
    """The key of a nickname. Nicknames of one user have the same key."""
    compute = _compute_identity if len(nickname) <= KEPT_LENGTH else _compute_identity.__wrapped__
    return compute(nickname)


@lru_cache(maxsize=DISTINCT_NAMES)
def _compute_identity(nickname: str) -> str:
    try:
        return inputs.same_name(inputs.username(nickname))
    except Invalid:
        return nickname.lower()


def derive_user_id(nickname: str) -> UUID:
    """The user that history without ids means by a nickname, in any spelling that is the same name."""
    return _derive_id(f"user\0{_identity(nickname)}")


def message_id_of(line: MessageLine, nth: int) -> UUID:
    """The id of the message on a line, or else a UUIDv7 of its time and a hash of time, room, author and content.

    `nth` counts the messages before it that are equal in all of these. Ids that ascend with time are inserted
    faster than random ones.
    """
    if line.id is not None:
        return line.id
    microseconds = microseconds_since_epoch(line.at)
    identity = f"{nth}\0{microseconds}\0{room_id_of(line).hex}\0{_author(line)}\0{line.content}"
    hashed = int.from_bytes(sha256(identity.encode()).digest()[:10])
    milliseconds = max(microseconds // 1_000, 0)
    return uuid_of(7, milliseconds << 80 | hashed)


def _author(line: MessageLine) -> str:
    return str(line.user_id) if line.user is None else _identity(line.user)


class EqualMessages:
    """Counts the equal messages of one file, to distinguish those without an id.

    So a message keeps its id when lines before it are added, corrected or removed, and in each export that has it.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[int, int] = OrderedDict()  # by hashes, which are smaller; the latest at the end

    def count(self, line: AnyLine) -> int:
        """How many messages before this line are equal to the one on it. To be called for all lines in order."""
        if not isinstance(line, MessageLine) or line.id is not None:
            return 0
        key = hash((room_id_of(line), _author(line), line.at, line.content))
        nth = self._counts.pop(key, 0)
        self._counts[key] = nth + 1
        if len(self._counts) > REMEMBERED_MESSAGES:
            self._counts.popitem(last=False)
        return nth


def room_id_of(line: Line) -> UUID:
    """The room of a line, given by its id or else by its name."""
    return line.room_id or derive_room_id(line.room or "")


def _derive_id(name: str) -> UUID:
    return uuid_of(8, int.from_bytes(sha256(f"hubbub\0{name}".encode()).digest()[:16]))
