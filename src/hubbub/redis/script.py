"""A Lua script with the names of what it takes and the type of what it gives, in one place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

from hubbub.redis.commands import Connection
from hubbub.redis.errors import SCRIPT_MISSING, ReplyError
from hubbub.redis.replies import Part, Reply

R = TypeVar("R")

NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
"""Lua that begins a script: `now` in milliseconds, by the clock of Redis because those of processes differ."""


class Script(Generic[R]):
    """Runs atomically on the server; sent once in full, then by its SHA.

        EXTEND = Script(
            keys=("lease",),
            args=("owner", "seconds"),
            source="return redis.call('GET', lease) == owner and redis.call('EXPIRE', lease, seconds)",
            reply=as_bool,
        )
        extended = await EXTEND(connection, keys=(key,), args=(owner, 30))

    `keys` and `args` become local variables of the script, so a position can never be mistaken. A last name
    with an asterisk takes any number: `args=("now", "*users")` leaves the users to ARGV[2] and on. `reply`
    turns the answer into the type of the result.
    """

    def __init__(
        self,
        *,
        keys: tuple[str, ...] = (),
        args: tuple[str, ...] = (),
        source: str,
        reply: Callable[[Reply], R],
        writes: bool = True,
    ) -> None:
        """One that does not `writes` has changed nothing that its caller asked for when its answer is lost."""
        self._keys = keys
        self._args = args
        self._source = _named("KEYS", keys) + _named("ARGV", args) + source
        self._sha = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()
        self._reply = reply
        self._writes = writes

    async def __call__(
        self,
        connection: Connection,
        *,
        keys: Sequence[Part] = (),
        args: Sequence[Part] = (),
        deadline_seconds: float | None = None,
    ) -> R:
        """Run it. Raises what `Connection.execute` raises; TypeError for too few or too many keys or args."""
        _check_count("keys", self._keys, keys)
        _check_count("args", self._args, args)
        rest = (len(keys), *keys, *args)
        execute = partial(connection.execute, deadline_seconds=deadline_seconds, writes=self._writes)
        try:
            reply = await execute("EVALSHA", self._sha, *rest)
        except ReplyError as error:
            if error.code != SCRIPT_MISSING:
                raise
            # The server was restarted or flushed its scripts; it did nothing, so this is no second run.
            reply = await execute("EVAL", self._source, *rest)
        return self._reply(reply)


def _named(table: str, names: tuple[str, ...]) -> str:
    # On one line, so that line numbers in errors are those of the source.
    fixed = [name for name in names if not name.startswith("*")]
    values = ", ".join(f"{table}[{position}]" for position in range(1, len(fixed) + 1))
    return f"local {', '.join(fixed)} = {values} " if fixed else ""


def _check_count(kind: str, names: tuple[str, ...], values: Sequence[Part]) -> None:
    takes_more = bool(names) and names[-1].startswith("*")
    fixed = len(names) - takes_more
    if len(values) < fixed or (len(values) > fixed and not takes_more):
        raise TypeError(f"the script takes the {kind} {names}, not {len(values)} values")
