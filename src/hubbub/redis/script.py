"""A Lua script with the names of its keys and arguments and the type of its result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Final, Generic, TypeVar

from hubbub.redis.commands import Connection
from hubbub.redis.replies import Part, Reply, ReplyError

R = TypeVar("R")

NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
"""Lua that begins a script: `now` in milliseconds, by the clock of Redis because those of processes differ."""


class Script(Generic[R]):
    """Runs atomically on the server. It is sent in full once, and by its SHA afterwards.

        EXTEND = Script(
            keys=("lease",),
            args=("owner", "seconds"),
            source="return redis.call('GET', lease) == owner and redis.call('EXPIRE', lease, seconds)",
            reply=as_bool,
        )
        extended = await EXTEND(connection, keys=(key,), args=(owner, 30))

    `keys` and `args` become local variables of the script, so positions cannot be confused. A last name with an
    asterisk takes any number of values: with `args=("now", "*users")` the users are ARGV[2] and on. `reply` turns
    the reply into the type of the result. A script that puts the name of a key or channel together begins it with
    `redis_prefix`. `KEYS` have it already.
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
        """Without `writes` a lost reply leaves no outcome unknown, as for a command that only reads."""
        self._keys = keys
        self._args = args
        self._source = _named("KEYS", keys) + _named("ARGV", args) + source
        self._sent: dict[str, tuple[str, str]] = {}  # by the prefix: the source and its SHA
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
        """Run it. Raises: Unavailable, ReplyError, TypeError (a wrong number of keys or args)."""
        _check_count("keys", self._keys, keys)
        _check_count("args", self._args, args)
        source, sha = self._sent.get(connection.prefix) or self._with_prefix(connection.prefix)
        rest = (len(keys), *keys, *args)
        execute = partial(connection.execute, writes=self._writes)
        seconds = connection.deadline_seconds if deadline_seconds is None else deadline_seconds
        since = monotonic()
        try:
            reply = await execute("EVALSHA", sha, *rest, deadline_seconds=seconds)
        except ReplyError as error:
            if error.code != "NOSCRIPT":
                raise
            # The server was restarted or flushed its scripts. It ran nothing, so the script does not run twice.
            left = max(since + seconds - monotonic(), 0)
            reply = await execute("EVAL", source, *rest, deadline_seconds=left)
        return self._reply(reply)

    def _with_prefix(self, prefix: str) -> tuple[str, str]:
        source = f"local redis_prefix = '{prefix}' {self._source}"
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._sent[prefix] = source, sha
        return source, sha


def _named(table: str, names: tuple[str, ...]) -> str:
    # On one line, so that line numbers in errors are the ones of the source.
    fixed = [name for name in names if not name.startswith("*")]
    values = ", ".join(f"{table}[{position}]" for position in range(1, len(fixed) + 1))
    return f"local {', '.join(fixed)} = {values} " if fixed else ""


def _check_count(kind: str, names: tuple[str, ...], values: Sequence[Part]) -> None:
    takes_more = bool(names) and names[-1].startswith("*")
    fixed = len(names) - takes_more
    if len(values) < fixed or (len(values) > fixed and not takes_more):
        raise TypeError(f"the script takes the {kind} {names}, not {len(values)} values")
