"""The commands of the protocol: what a client may ask, and what is done for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_type_hints
from uuid import UUID

import msgspec

from hubbub.errors import Invalid
from hubbub.models import Message, MessageType, Value
from hubbub.web import frames

if TYPE_CHECKING:
    from hubbub.hub import Hub
    from hubbub.web.connections import Connection

F = TypeVar("F", bound=msgspec.Struct)
Handler = Callable[["Call", Any], Awaitable[object]]


class Call(msgspec.Struct, frozen=True):
    """Who gave a command, and where. `connection` is None for a command by HTTP."""

    hub: Hub
    user_id: UUID
    connection: Connection | None = None


class Command:
    """A command with a name: the type of its frame, and the handler that does it."""

    def __init__(self, name: str, frame: type[msgspec.Struct], handler: Handler) -> None:
        self.name = name
        self.frame = frame
        self._handler = handler
        self._decoder = msgspec.json.Decoder(frame)

    def decode(self, text: str | bytes) -> Any:  # noqa: ANN401 - a value of `frame`
        """The frame. Raises: Invalid."""
        return frames.decode(self._decoder, text)

    def ordered_by(self, frame: msgspec.Struct) -> UUID | None:
        """The room in which commands are done in the order in which they came."""
        return frame.room_id if isinstance(frame, Send) else None

    async def call(self, call: Call, frame: msgspec.Struct) -> object:
        return await self._handler(call, frame)


def frame_of(handler: Handler) -> type[msgspec.Struct]:
    """The type that the second parameter of a handler has."""
    hints = get_type_hints(handler)
    hints.pop("return", None)
    found: object = list(hints.values())[-1] if hints else None
    if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
        raise TypeError("the second parameter of a command must have the type of its frame, a msgspec.Struct")
    return found


class Send(frames.Frame, frozen=True, tag="send"):
    """A message. The client makes its `id`, so that it can repeat the command."""

    room_id: UUID
    content: str
    id: UUID | None = None
    message_type: str = MessageType.TEXT
    reply_to: UUID | None = None
    metadata: Mapping[str, Any] | None = None


async def send(call: Call, frame: Send) -> Message:
    return await call.hub.messages.send(
        frame.room_id,
        call.user_id,
        frame.content,
        id=frame.id,
        message_type=frame.message_type,
        reply_to=frame.reply_to,
        metadata=frame.metadata,
    )


class Auth(frames.Frame, frozen=True, tag="auth"):
    """A new token, before the old one expires."""

    token: frames.Token


class Renewed(Value, frozen=True):
    """For how many seconds a signed token is valid. None: as long as its session."""

    expires_in_seconds: float | None


async def auth(call: Call, frame: Auth) -> Renewed:
    connection = connection_of(call)
    identity = await connection.gateway.identify_by(call.hub, frame.token)
    if identity is None or identity.user_id != call.user_id:
        raise Invalid("token", "must be a valid token of the same user")
    connection.identity = identity
    return Renewed(identity.expires_in_seconds(asyncio.get_running_loop().time()))


def connection_of(call: Call) -> Connection:
    """The connection of a command that needs one. Raises: Invalid."""
    if call.connection is None:
        raise Invalid("type", "must be another command: this one needs a connection")
    return call.connection


_ALL: Final = (
    Command("auth", Auth, auth),
    Command("send", Send, send),
)
COMMANDS: Final = {command.name: command for command in _ALL}
"""The commands of hubbub, by name."""
