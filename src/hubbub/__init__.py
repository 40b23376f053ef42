"""hubbub: the data foundation of a chat application, on PostgreSQL and Redis."""

from typing import TYPE_CHECKING

from uuid_utils.compat import uuid7 as new_id

from hubbub.acting_user import ActingUser
from hubbub.errors import (
    Conflict,
    Forbidden,
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
    MemberChanged,
    MemberJoined,
    MemberLeft,
    MessageDeleted,
    MessageEdited,
    MessageSent,
    Missed,
    PresenceChanged,
    ProfileChanged,
    ReadMarkChanged,
    Resync,
    RoleChanged,
    RoomChanged,
    RoomGone,
    TypingChanged,
)
from hubbub.hub import ConnectionRepositories, Hub, Options, Transaction, open
from hubbub.instrumentation import Instrumentation, PoolUse
from hubbub.models import (
    Credentials,
    MaintenanceResult,
    Message,
    MessagePage,
    MessageType,
    NewMessage,
    Page,
    PublicUser,
    RateLimitResult,
    ReadReceipt,
    Role,
    Room,
    RoomSummary,
    RoomUser,
    Session,
    User,
    UserKind,
)
from hubbub.passwords import Passwords
from hubbub.redis import Gap
from hubbub.renamed import warn_of_former_name
from hubbub.scheduling import collect_garbage_rarely
from hubbub.services.changes import ChangeFeed
from hubbub.services.feed import Follower
from hubbub.services.health import Health, ServerHealth
from hubbub.services.presence import Device
from hubbub.settings import PostgresSettings, RedisSettings, Settings

__all__ = [
    "ActingUser",
    "ChangeFeed",
    "Conflict",
    "ConnectionRepositories",
    "Credentials",
    "Device",
    "FeedEvent",
    "Follower",
    "Forbidden",
    "Gap",
    "Health",
    "Hub",
    "HubbubError",
    "Instrumentation",
    "Invalid",
    "LogEvent",
    "LogPage",
    "MaintenanceResult",
    "MemberChanged",
    "MemberJoined",
    "MemberLeft",
    "Message",
    "MessageDeleted",
    "MessageEdited",
    "MessagePage",
    "MessageSent",
    "MessageType",
    "Missed",
    "NewMessage",
    "NotAMember",
    "NotFound",
    "Options",
    "Page",
    "Passwords",
    "PoolUse",
    "PostgresSettings",
    "PresenceChanged",
    "ProfileChanged",
    "PublicUser",
    "RateLimitResult",
    "RateLimited",
    "ReadMarkChanged",
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
    "UserKind",
    "collect_garbage_rarely",
    "new_id",
    "open",
]

if not TYPE_CHECKING:  # a type checker would accept any name
    _FORMER_NAMES = {"Maintained": "MaintenanceResult", "Verdict": "RateLimitResult"}

    def __getattr__(former: str) -> object:
        name = _FORMER_NAMES.get(former)
        if name is None:
            raise AttributeError(f"module {__name__!r} has no attribute {former!r}")
        warn_of_former_name(f"hubbub.{former}", name, stacklevel=2)
        return globals()[name]
