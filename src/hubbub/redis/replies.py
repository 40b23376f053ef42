"""The words of a command, its replies and the checks of their kind, and the errors for error replies.

A reply of the wrong kind is a bug of the caller or of a script, not an event of the network. It raises TypeError.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias
from uuid import UUID

from hubbub.errors import Unavailable

Part: TypeAlias = str | bytes | int | float
"""One word of a command. Text goes out as UTF-8."""

Reply: TypeAlias = "bool | int | float | bytes | list[Reply] | dict[bytes, Reply] | None"
"""Strings are bytes. The caller decodes them."""


def as_int(reply: Reply) -> int:
    if not isinstance(reply, int):
        raise _unexpected(reply, "an integer")
    return reply


def as_bool(reply: Reply) -> bool:
    """True or false as a script returned it. Redis turns Lua's true into 1, and its false into None."""
    return bool(reply)


def as_bytes(reply: Reply) -> bytes:
    if not isinstance(reply, bytes):
        raise _unexpected(reply, "a string")
    return reply


def as_optional_bytes(reply: Reply) -> bytes | None:
    """A string, or None where there is none, as of GET."""
    if reply is not None and not isinstance(reply, bytes):
        raise _unexpected(reply, "a string or nothing")
    return reply


def as_list(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list):
        raise _unexpected(reply, "an array")
    return reply


def as_bytes_list(reply: Reply) -> list[bytes]:
    return [as_bytes(item) for item in as_list(reply)]


def as_ids(reply: Reply) -> list[UUID]:
    """Ids of users or rooms. Members that other programs have added and that are not ids are left out."""
    return [id for text in as_bytes_list(reply) if (id := _id(text)) is not None]


def _id(text: bytes) -> UUID | None:
    try:
        return UUID(text.decode())
    except ValueError:
        return None


def _unexpected(reply: Reply, wanted: str) -> TypeError:
    # Only the kind of the reply: its content may be secret.
    return TypeError(f"Redis replied with {type(reply).__name__} where {wanted} was expected")


DEMOTED: Final = "READONLY"
"""The server has become a replica."""

PASSING: Final = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "TRYAGAIN", DEMOTED}
)
"""The server does not serve now. It may a moment later."""

LOCKED_OUT: Final = frozenset({"DENIED", "NOAUTH", "NOPERM", "WRONGPASS"})
"""The login or its permissions are wrong. A retry does not help until an administrator changes them."""

# Redis before 7 wraps the error of a script: "ERR Error running script (...): @user_script: 3: -OOM ...".
_WITHIN_SCRIPT: Final = re.compile(r"^ERR Error running script .*?@user_script: ?\d+: -([A-Z]+) ")

# A slot of a cluster moves, and a key that the script reads and does not declare is at another node.
_MOVES_WITHIN_SCRIPT: Final = re.compile("[Aa]ttempted to access a non local key in a cluster")

# Each version words a missing permission within a script in its own way.
_DENIED_WITHIN_SCRIPT: Final = re.compile("ACL failure in script|The user executing the script can't")


class ReplyError(Exception):
    """The server refused one command. `code` is the first word of its reply, such as WRONGTYPE.

    A caller that gets one has a bug in its command, so it is not a HubbubError.
    """

    def __init__(self, text: str) -> None:
        # A reply to an unknown command quotes its arguments, which may be secret.
        super().__init__(text.partition(", with args beginning with")[0])
        within_script = _WITHIN_SCRIPT.match(text)
        self.code = within_script[1] if within_script else text.partition(" ")[0]
        if _DENIED_WITHIN_SCRIPT.search(text):
            self.code = "NOPERM"
        elif _MOVES_WITHIN_SCRIPT.search(text):
            self.code = "TRYAGAIN"


def is_unknown_command(reply: ReplyError) -> bool:
    """Whether the server does not have the command. An older version may not."""
    return str(reply).startswith("ERR unknown command")


def to_error(reply: ReplyError) -> ReplyError | Unavailable:
    """The error to raise: Unavailable where the server is at fault, the reply itself where the command is."""
    if reply.code not in PASSING | LOCKED_OUT:
        return reply
    error = Unavailable("redis", f"the server refuses: {reply}", retryable=reply.code in PASSING)
    error.__cause__ = reply
    return error
