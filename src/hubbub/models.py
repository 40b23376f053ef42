"""The values that hubbub returns: immutable msgspec structs, one class per noun.

A page builds 50 of them, each in 90 ns where a frozen dataclass takes 1,090 (docs/decisions.md). Fields stand in
the order of the columns that the SQL names. Times are aware and in UTC.

Models that are built by the thousand have `gc=False`: garbage collection was a quarter of the processor time of
pages and lookups. They hold values and JSON, and nothing that could refer back to them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache
from math import isinf
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeAlias, TypeVar, get_args, get_type_hints
from uuid import UUID

import msgspec

from hubbub import positions

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core.core_schema import CoreSchema, SerializationInfo

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

ResyncReason: TypeAlias = Literal["rewound", "too_far_behind"]
"""Why a client cannot continue a room from its cursor: see `events.Resync`."""


class Role(StrEnum):
    """The rights of a member in a room. The first member of a room, its creator, is its admin.

    The last admin stays admin and member as long as there are other members (`room_users.remove`).
    """

    ADMIN = "admin"
    MODERATOR = "moderator"
    MEMBER = "member"


class UserKind(StrEnum):
    """The kind of an account: a person, a program, or a visitor without a login."""

    PERSON = "person"
    BOT = "bot"
    ANONYMOUS = "anonymous"


class MessageType(StrEnum):
    """How to interpret the content of a message. hubbub stores it, and gives it no other meaning."""

    TEXT = "text"
    IMAGE = "image"
    FILE = "file"


class _Members(dict[str, E]):
    """The members of an enum by their values. A lookup takes a twentieth of the time of one in the enum itself."""

    def __init__(self, enum: type[E]) -> None:
        super().__init__({member.value: member for member in enum})
        self._enum = enum

    def __missing__(self, value: str) -> E:
        """Raises: ValueError, as the enum does."""
        return self._enum(value)


ROLES: Final = _Members(Role)
USER_KINDS: Final = _Members(UserKind)
MESSAGE_TYPES: Final = _Members(MessageType)


class Value(msgspec.Struct, frozen=True):
    """The base of all values that travel to clients. It makes them types for Pydantic and FastAPI.

    msgspec and Litestar know structs by themselves. Pydantic calls these methods when a value is the type of a
    field or of a response. hubbub does not import Pydantic until then. The JSON is that of msgspec.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        """A value is accepted as it is, or made from an object with its fields."""
        from pydantic_core import PydanticSerializationUnexpectedValue, core_schema  # noqa: PLC0415 - loaded by now

        fields = {}
        if (tag_field := cls.__struct_config__.tag_field) is not None:
            tag = core_schema.literal_schema([cls.__struct_config__.tag])
            fields[tag_field] = core_schema.typed_dict_field(tag)
        own = msgspec.structs.fields(source)
        for field in own:
            schema = handler.generate_schema(field.type)
            if field.default is not msgspec.NODEFAULT:
                schema = core_schema.with_default_schema(schema, default=field.default)
            elif field.default_factory is not msgspec.NODEFAULT:
                schema = core_schema.with_default_schema(schema, default_factory=field.default_factory)
            fields[field.name] = core_schema.typed_dict_field(schema, required=field.required)
        as_object = core_schema.typed_dict_schema(fields, cls=cls)

        def validate(value: object, to_fields: Callable[[object], dict[str, Any]]) -> Value:
            if isinstance(value, cls):
                return value
            fields = to_fields(value)
            return cls(**{field.name: fields[field.name] for field in own})

        def serialize(value: Value, write: Callable[[object], object], info: SerializationInfo) -> object:
            if not isinstance(value, cls):
                raise PydanticSerializationUnexpectedValue("of another type of the union")
            is_partial = info.include or info.exclude or info.exclude_none or info.exclude_defaults
            if info.mode == "json" and not is_partial:
                return msgspec.to_builtins(value)  # at once: field by field a page takes three times as long
            tagged = {} if tag_field is None else {tag_field: cls.__struct_config__.tag}
            return write(tagged | {field.name: getattr(value, field.name) for field in own})

        return core_schema.no_info_wrap_validator_function(
            validate,
            as_object,
            ref=_reference(cls, *get_args(source)),
            serialization=core_schema.wrap_serializer_function_ser_schema(
                serialize, info_arg=True, schema=as_object
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema of a value. All fields are required in output, only those without a default in input."""
        described = handler.resolve_ref_schema(handler(schema))
        if handler.mode == "serialization" and not cls.__struct_config__.omit_defaults:
            described["required"] = list(described["properties"])
        return described


def _reference(cls: type, *arguments: object) -> str:
    """The name of a type in Pydantic's schema: unique in the process, and shown without module and id."""
    own = f"{cls.__module__}.{cls.__qualname__}:{id(cls)}"
    of = ",".join(_reference(each) if isinstance(each, type) else repr(each) for each in arguments)
    return f"{own}[{of}]" if of else own


def decode_stored(metadata: str | None) -> Any:  # noqa: ANN401 - JSON
    """The value of a column of the type jsonb."""
    try:
        return metadata and msgspec.json.decode(metadata)
    except (ValueError, RecursionError):
        return _decode_of_others(str(metadata))


def _decode_of_others(metadata: str) -> Any:  # noqa: ANN401 - JSON
    """Metadata that another program has written. In jsonb a number may have any size, and an object any depth.

    A number that Python cannot read is None, and so is metadata that is nested too deeply: one row must not fail
    the call that reads many.
    """
    try:
        return json.loads(metadata, parse_int=_whole, parse_float=_fraction)
    except RecursionError:
        return None


def _whole(digits: str) -> int | None:
    try:
        return int(digits)
    except ValueError:  # more than 4,300
        return None


def _fraction(digits: str) -> float | None:
    value = float(digits)
    return None if isinf(value) else value


_FROM_POSTGRESQL: Final[dict[str, Callable[[Any], Any]]] = {
    "message_type": MESSAGE_TYPES.__getitem__,
    "role": ROLES.__getitem__,
    "kind": USER_KINDS.__getitem__,
    "metadata": decode_stored,
}
"""The converter of each column."""


class Stored(Value, frozen=True):
    """The base of values that are rows in PostgreSQL."""

    @classmethod
    def of_row(cls, *row: Any) -> Self:  # noqa: ANN401 - each column has a type of its own
        """The value of a row with the columns of `sql.readable`."""
        values = list(row)
        for index, convert in _conversions(cls):
            values[index] = convert(values[index])
        return cls(*values)

    @classmethod
    def of_rows(cls, rows: Sequence[Any]) -> list[Self]:
        """The values of rows with the columns of `sql.readable` or `sql.quickly_readable`."""
        number = len(cls.__struct_fields__)
        if not rows or (len(rows) == 1 and len(rows[0]) == number):
            return [cls.of_row(*row) for row in rows]
        columns: list[Sequence[Any]] = [*zip(*rows, strict=True)]
        for index, convert in _conversions(cls):
            if any(columns[index]):
                columns[index] = [*map(convert, columns[index])]
        for index, exact in zip(times_of(cls), columns[number:], strict=False):
            columns[index] = msgspec.convert(columns[index], list[datetime | None], strict=False)
            if any(exact):
                columns[index] = [far or near for far, near in zip(exact, columns[index], strict=True)]
        return [*map(cls, *columns[:number])]


@cache
def _conversions(model: type[Stored]) -> list[tuple[int, Callable[[Any], Any]]]:
    """The indexes of columns that need conversion, with their converters."""
    fields = enumerate(model.__struct_fields__)
    return [(index, _FROM_POSTGRESQL[field]) for index, field in fields if field in _FROM_POSTGRESQL]


@cache
def times_of(model: type[msgspec.Struct]) -> list[int]:
    """The indexes of the fields that are times."""
    hints = get_type_hints(model)
    fields = enumerate(model.__struct_fields__)
    return [index for index, field in fields if datetime in (hints[field], *get_args(hints[field]))]


class MaintenanceResult(Value, frozen=True):
    """The result of `hub.maintain`: the numbers of accounts and rooms whose deletion it finished.

    `unfinished` is the number of deletions that are left, at most 1,000: at the deadline, because another process
    works on them, or because there were more than 1,000.
    """

    accounts: int
    rooms: int
    unfinished: int


class PublicUser(Stored, frozen=True, gc=False):
    """A user as other people see them: without an email. `display_name` is what to show, None for the username.

    `metadata` is a JSON object of the application's. All people of the chat may see it.
    """

    id: UUID
    username: str
    display_name: str | None
    avatar_url: str | None
    is_online: bool
    last_seen: datetime | None
    metadata: Mapping[str, Any] | None = None

    def __hash__(self) -> int:
        return hash(self.id)


class User(Stored, frozen=True, gc=False):
    """An account, for its owner and for the application. Other people get it as `public`, without the email.

    The hash of its password is not part of it: see `Credentials`. `external_id` is the account in another system
    that the user logs in with (`users.upsert`).
    """

    id: UUID
    email: str | None
    username: str
    avatar_url: str | None
    is_online: bool
    last_seen: datetime | None
    created_at: datetime
    updated_at: datetime
    display_name: str | None = None
    metadata: Mapping[str, Any] | None = None
    kind: UserKind = UserKind.PERSON
    external_id: str | None = None

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def public(self) -> PublicUser:
        """The user as other people see them."""
        return PublicUser(
            self.id,
            self.username,
            self.display_name,
            self.avatar_url,
            self.is_online,
            self.last_seen,
            self.metadata,
        )


class Secret(str):
    """A text whose `repr` hides it, also in the locals of a traceback, whatever the name of the variable."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'...'"


class Credentials(msgspec.Struct, frozen=True, gc=False):
    """The id and the password hash of an account. Kept apart from `User`, so that no client gets it by mistake."""

    user_id: UUID
    password_hash: str

    def __repr__(self) -> str:
        return f"Credentials(user_id={self.user_id!r}, password_hash=...)"


class Room(Stored, frozen=True, gc=False):
    """A room. `last_seq` is the head of its log: the seq of its newest message or event, 0 in an empty room.

    `keeps_receipts` is whether hubbub stores a receipt per message and reader. None, the default, means in direct
    rooms and as long as the room is small (`ReadReceipts`). `metadata` is a JSON object of the application's.
    """

    id: UUID
    name: str
    description: str | None
    is_private: bool
    is_direct: bool
    created_by: UUID | None
    last_seq: int
    created_at: datetime
    updated_at: datetime
    keeps_receipts: bool | None = None
    metadata: Mapping[str, Any] | None = None

    def __hash__(self) -> int:
        return hash(self.id)


class Message(Stored, frozen=True, gc=False):
    """A message. `seq` is its position in the log of the room, and the only order that holds.

    `user_id` is None once the author's account is deleted. A deleted message stays as a tombstone: `deleted_at`
    is set, `content` is empty and `metadata` is None. `reply_to` is a message of the same room. `metadata` is a
    JSON object of the application's. Do not change it in place, because callers that read one page at the same
    time share its messages.
    """

    id: UUID
    room_id: UUID
    seq: int
    user_id: UUID | None
    content: str
    message_type: MessageType
    is_edited: bool
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    reply_to: UUID | None = None
    metadata: Mapping[str, Any] | None = None

    def __hash__(self) -> int:
        return hash(self.id)  # a mapping, as metadata is, has no hash

    @property
    def cursor(self) -> str:
        """Its position in the log, for `hub.follow` and `hub.messages.since`, which go on after it."""
        return positions.Position(self.seq, positions.message_hash(self.id, self.created_at)).encode(self.room_id)


class NewMessage(Value, frozen=True):
    """A message for `send_many`, with the fields of `send`."""

    content: str
    message_type: str = MessageType.TEXT
    id: UUID | None = None
    reply_to: UUID | None = None
    metadata: Mapping[str, Any] | None = None

    def __hash__(self) -> int:
        return hash((self.content, self.message_type, self.id, self.reply_to))


class RoomUser(Stored, frozen=True, gc=False):
    """A membership. The member has read all messages up to and including `last_read_seq`.

    `last_read_message_id` is the newest message at or before it. It is None until a message is marked as read for
    the member: a new member has nothing unread, but has read nothing either. `metadata` is a JSON object of the
    application's.
    """

    room_id: UUID
    user_id: UUID
    joined_at: datetime
    role: Role
    last_read_message_id: UUID | None
    last_read_seq: int
    metadata: Mapping[str, Any] | None = None

    def __hash__(self) -> int:
        return hash((self.room_id, self.user_id))


class RoomSummary(Value, frozen=True, gc=False):
    """A room as one of its members sees it in a list.

    `unread` counts messages of other users after the read mark among the newest 5,000, up to the cap of the call.
    `partner_id` is the other user of a direct room. `last_message` is the newest that is not deleted. `active_at`
    orders the list: when the newest message came, deleted or not, or the member joined. `cursor` is that of
    `last_message`, from which `hub.follow` goes on, and None without one.
    """

    room: Room
    role: Role
    last_read_seq: int
    unread: int
    partner_id: UUID | None
    last_message: Message | None
    active_at: datetime
    cursor: str | None = None


class ReadReceipt(Value, frozen=True, gc=False):
    """A member has read a message. `read_at` is None where the room stores only read marks (large rooms)."""

    message_id: UUID
    user_id: UUID
    read_at: datetime | None


class Page(Value, Generic[T], frozen=True):
    """One page of a list. `next` is the cursor of the next page, None on the last one."""

    items: list[T]
    next: str | None

    @property
    def has_more(self) -> bool:
        return self.next is not None


class MessagePage(Value, frozen=True):
    """Messages of one room, always in the order of the log: the oldest first.

    `has_older` and `has_newer` are whether the room has messages before and after those of the page, or before and
    after the seq of the call if the page is empty. `cursor` is that of its newest message, None on an empty page.
    """

    room_id: UUID
    items: list[Message]
    has_older: bool
    has_newer: bool
    cursor: str | None = None


class Session(Value, frozen=True, gc=False):
    """A login of a user on one device. `id` is safe to show and to revoke by; it is not the token.

    `data` is the application's. `seen_at` is when the session was last looked up, to the minute. It ends at
    `expires_at`, however much it is used.
    """

    id: str
    user_id: UUID
    data: Mapping[str, Any]
    created_at: datetime
    seen_at: datetime
    expires_at: datetime

    def __hash__(self) -> int:
        return hash(self.id)


class RateLimitResult(Value, frozen=True, gc=False):
    """The answer of a rate limit: whether this call may pass, and how many more could right after it.

    `retry_after_seconds` is how long until a call of this size may pass, 0 if this one may. `degraded` is True
    when Redis could not be asked, and the limit lets all calls pass.
    """

    allowed: bool
    remaining: int
    retry_after_seconds: float
    degraded: bool = False
