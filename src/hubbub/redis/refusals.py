"""What an error reply of the server means to a caller."""

from __future__ import annotations

import re
from typing import Final

from redis.exceptions import ResponseError

from hubbub.errors import Unavailable

DEMOTED: Final = "READONLY"
SCRIPT_MISSING: Final = "NOSCRIPT"

PASSING: Final = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "TRYAGAIN", DEMOTED}
)
"""The server will not serve now; it may a moment later."""

LOCKED_OUT: Final = frozenset({"DENIED", "NOAUTH", "NOPERM", "WRONGPASS"})
"""The login, or what it may do, is wrong: nothing gets better by itself."""

# Redis before 7 wraps what a script ran into: "ERR Error running script (...): @user_script: 3: -OOM ...".
_WITHIN_SCRIPT: Final = re.compile(r"^ERR Error running script .*?@user_script: ?\d+: -([A-Z]+) ")


# What a script may not do is told in many words, each version its own.
_DENIED_WITHIN_SCRIPT: Final = re.compile("ACL failure in script|The user executing the script can't")


def without_values(text: str) -> str:
    """What the server said, without what it quotes: the words of a command that it does not know may be secret."""
    return text.partition(", with args beginning with")[0]


class ReplyError(ResponseError):
    """The server refused one command. `code` is the first word of its answer, such as WRONGTYPE.

    Where it reaches a caller it is a bug in the command, so it is no HubbubError.
    """

    def __init__(self, text: str) -> None:
        super().__init__(without_values(text))
        within_script = _WITHIN_SCRIPT.match(text)
        self.code = within_script[1] if within_script else text.partition(" ")[0]
        if _DENIED_WITHIN_SCRIPT.search(text):
            self.code = "NOPERM"


def meaning(reply: ReplyError) -> ReplyError | Unavailable:
    """The error to raise: Unavailable where the server is at fault, the reply itself where the command is."""
    if reply.code in PASSING:
        retryable = True
    elif reply.code in LOCKED_OUT:
        retryable = False
    else:
        return reply
    error = Unavailable("redis", f"the server refuses: {reply}", retryable=retryable)
    error.__cause__ = reply
    return error
