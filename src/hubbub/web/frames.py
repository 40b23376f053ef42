"""The frames of the protocol (docs/protocol.md): one type per frame, decoded strictly and encoded as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta

from hubbub import inputs
from hubbub.errors import Invalid
from hubbub.events import DECODING_ERRORS
from hubbub.models import Value
from hubbub.positions import FINGERPRINT_BYTES, MAX_PAGES
from hubbub.web.problems import Problem

T = TypeVar("T")

VERSION: Final = 1
SUBPROTOCOL: Final = f"hubbub.{VERSION}"

MAX_POSITIONS: Final = 500
"""Positions in one frame: 35 KB."""
FINGERPRINT_LENGTH: Final = FINGERPRINT_BYTES * 4 // 3
MAX_WATCHED_ROOMS: Final = 100
"""The largest `Limits.watched_rooms`. The members of all of them are read for the answer to `watch`."""
DEVICE_LENGTH: Final = 100
TOKEN_LENGTH: Final = 1_000
MAX_REF: Final = 2**53 - 1
"""The largest integer that JavaScript holds exactly."""

Token = Annotated[str, Meta(max_length=TOKEN_LENGTH)]
Device = Annotated[str, Meta(min_length=1, max_length=DEVICE_LENGTH)]
Pages = Annotated[str, Meta(max_length=MAX_PAGES * FINGERPRINT_LENGTH, pattern="^[A-Za-z0-9_-]+$")]
PositionMap = Annotated[dict[UUID, str], Meta(max_length=MAX_POSITIONS)]


class NotAFrame(Exception):
    """The text is not a frame: not a JSON object, or without a `type`."""


class Limits(Value, frozen=True, kw_only=True):
    """The limits of a connection. `ready` sends them to the client.

    `frame_bytes` is what the ASGI server has to be set to, because an application sees a frame when it is whole:
    `uvicorn --ws-max-size 65536`. `connections` is how many a user may have in one process.
    """

    frame_bytes: int = 64 * 1024
    commands: int = 16
    frames_per_second: float = 20
    burst: int = 100
    connections: int = 10
    watched_rooms: int = 10


# Frames of the client.


class Frame(msgspec.Struct, frozen=True, tag_field="type"):
    """A frame of a client."""


class Hello(Frame, frozen=True, tag="hello"):
    """The first frame: who the client is, and how far it has come. `more`: further positions follow.

    With `pages`, the fingerprints of all positions one after the other, the server asks for those that it needs.
    """

    token: Token | None = None
    device: Device | None = None
    positions: PositionMap | None = None
    pages: Pages | None = None
    more: bool = False


class Positions(Frame, frozen=True, tag="positions"):
    """Further positions of a client in many rooms, after `hello` or `ask`."""

    positions: PositionMap
    more: bool = False


class Subscription(msgspec.Struct, frozen=True):
    """The body of a request for a stream: what `hello` has on a WebSocket."""

    device: Device | None = None
    positions: dict[UUID, str] | None = None


# Frames of the server.


class Ask(Value, frozen=True, tag_field="type", tag="ask"):
    """Answers `pages`: the client sends the positions of these pages, as `positions`."""

    pages: list[int]


class Ready(Value, frozen=True, tag_field="type", tag="ready"):
    """The answer to `hello`. From here on events come."""

    user_id: UUID
    resumed: bool
    positions: Mapping[UUID, str]
    ping_seconds: float
    spread_seconds: float
    limits: Limits
    expires_in_seconds: float | None = None
    protocol: int = VERSION


class Ack(Value, frozen=True, tag_field="type", tag="ack"):
    """The command with this `ref` was done."""

    ref: int | None
    result: Any = None


class Error(Value, frozen=True, tag_field="type", tag="error"):
    """The command with this `ref` was not done. `error` is the type of the problem without `urn:hubbub:`."""

    ref: int | None
    error: str
    detail: str
    field: str | None = None
    retry: bool = False
    outcome_unknown: bool = False
    retry_after_seconds: float | None = None

    @classmethod
    def of(cls, ref: int | None, problem: Problem) -> Error:
        """The problem as an answer to a command."""
        seconds = problem.retry_after_seconds
        error = problem.type.removeprefix("urn:hubbub:")
        retry = seconds is not None
        return cls(ref, error, problem.detail, problem.field, retry, problem.outcome_unknown, seconds)


class Ping(Value, frozen=True, tag_field="type", tag="ping"):
    """Nothing else was sent for a while. No answer is expected."""


class Bye(Value, frozen=True, tag_field="type", tag="bye"):
    """The last frame. With `reconnect` the client comes back after a random time of up to `within_seconds`."""

    code: int
    reconnect: bool
    within_seconds: float
    reason: str


REASONS: Final[Mapping[int, str]] = {
    1012: "the server restarts",
    1013: "the server is overloaded",
    4400: "not a frame",
    4401: "there is no session, or it has ended",
    4403: "the user is banned, or was disconnected by the application",
    4408: "no hello in time",
    4409: "another connection of the same device",
    4410: "the user was deleted",
    4426: "the gateway speaks " + SUBPROTOCOL,
    4429: "too many frames or connections",
    4500: "an error of the server",
    4501: "the client did not read",
    4503: "the positions do not fit",
}
"""The codes with which the server closes a connection."""

RECONNECTS: Final = {1012, 1013, 4408, 4429, 4500, 4501, 4503}


# Decoding.


class _Envelope(msgspec.Struct, frozen=True):
    type: str
    ref: Any = None


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_FIELD: Final = re.compile(r"(?:field|at) `(?:\$\.)?([^`]*)`")


def envelope(text: str | bytes) -> tuple[str, int | None]:
    """The type and the ref of a frame. Raises: NotAFrame."""
    try:
        found = _decode_envelope(text)
    except (*DECODING_ERRORS, ValueError) as error:  # also for half of a surrogate pair
        raise NotAFrame from error
    is_ref = type(found.ref) is int and 0 <= found.ref <= MAX_REF
    return found.type, found.ref if is_ref else None


def check_device(device: str | None) -> None:
    """Raises: Invalid (a device that `hub.presence.online` does not take, such as a blank one)."""
    if device is not None:
        inputs.text("device", device, longest=DEVICE_LENGTH)


def decode(decoder: msgspec.json.Decoder[T], text: str | bytes) -> T:
    """The value. Raises: Invalid (a field is missing or of a wrong type)."""
    try:
        return decoder.decode(text)
    except (*DECODING_ERRORS, ValueError) as error:
        raise invalid(error) from error


def invalid(error: Exception) -> Invalid:
    """An error of msgspec as one that names the field."""
    reason = str(error)
    found = _FIELD.search(reason)
    field = re.split(r"[.\[]", found[1])[0] if found else ""
    return Invalid(field or "frame", reason.split(" - at ", maxsplit=1)[0][:200])


encode = msgspec.json.encode

PING: Final = encode(Ping()).decode()
