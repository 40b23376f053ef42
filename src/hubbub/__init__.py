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
from hubbub.events import (
    FeedEvent,
    LogEvent,
    LogPage,
    MemberJoined,
    MemberLeft,
    MessageDeleted,
    MessageEdited,
    MessageSent,
    PresenceChanged,
    Resync,
    RoleChanged,
    RoomChanged,
    RoomGone,
    TypingChanged,
)
from hubbub.hub import Hub, Options, Transaction, open
from hubbub.instrumentation import Instrumentation, PoolUse
from hubbub.models import (
    Credentials,
    Message,
    MessagePage,
    MessageType,
    NewMessage,
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
from hubbub.services.feed import Follower
from hubbub.services.health import Health, ServerHealth
from hubbub.services.presence import Device
from hubbub.settings import PostgresSettings, RedisSettings, Settings

__all__ = [
    "Conflict",
    "Credentials",
    "Device",
    "FeedEvent",
    "Follower",
    "Gap",
    "Health",
    "Hub",
    "HubbubError",
    "Instrumentation",
    "Invalid",
    "LogEvent",
    "LogPage",
    "MemberJoined",
    "MemberLeft",
    "Message",
    "MessageDeleted",
    "MessageEdited",
    "MessagePage",
    "MessageSent",
    "MessageType",
    "NewMessage",
    "NotAMember",
    "NotFound",
    "Options",
    "Page",
    "Passwords",
    "PoolUse",
    "PostgresSettings",
    "PresenceChanged",
    "RateLimited",
    "ReadReceipt",
    "RedisSettings",
    "Resync",
    "Role",
    "RoleChanged",
    "Room",
    "RoomChanged",
    "RoomGone",
    "RoomSummary",
    "RoomUser",
    "SchemaMismatch",
    "ServerHealth",
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
