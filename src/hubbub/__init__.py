"""hubbub: the data foundation of a chat application, on PostgreSQL and Redis."""

from uuid_utils.compat import uuid7 as new_id

from hubbub.errors import (
    Conflict,
    HubbubError,
    Invalid,
    NotAMember,
    NotFound,
    RateLimited,
    SchemaMismatch,
    Unavailable,
)
from hubbub.events import PresenceChanged, TypingChanged
from hubbub.hub import Hub, Options, Transaction, open
from hubbub.models import (
    Credentials,
    Message,
    MessagePage,
    MessageType,
    Page,
    ReadReceipt,
    Role,
    Room,
    RoomSummary,
    RoomUser,
    Session,
    User,
    Verdict,
)
from hubbub.passwords import Passwords
from hubbub.redis import Gap
from hubbub.services.presence import Device
from hubbub.settings import PostgresSettings, RedisSettings, Settings

__all__ = [
    "Conflict",
    "Credentials",
    "Device",
    "Gap",
    "Hub",
    "HubbubError",
    "Invalid",
    "Message",
    "MessagePage",
    "MessageType",
    "NotAMember",
    "NotFound",
    "Options",
    "Page",
    "Passwords",
    "PostgresSettings",
    "PresenceChanged",
    "RateLimited",
    "ReadReceipt",
    "RedisSettings",
    "Role",
    "Room",
    "RoomSummary",
    "RoomUser",
    "SchemaMismatch",
    "Session",
    "Settings",
    "Transaction",
    "TypingChanged",
    "Unavailable",
    "User",
    "Verdict",
    "new_id",
    "open",
]
