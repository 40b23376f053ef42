"""The connection for commands, shared by all callers of the process.

    execute --> unwritten --flush--> written --reply--> answered
                    |                   |
                    |                   | deadline, or the connection is lost: the outcome is unknown
                    |                   v
                    +---------------> failed
                      deadline, connect timeout or closed: never sent

All that was asked in one turn of the event loop is written at once. Redis replies in the order of the commands,
so the n-th reply belongs to the n-th call written.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import inf
from threading import get_ident
from time import monotonic
from typing import Any, Final, Generic, TypeAlias, TypeVar

import hiredis
import msgspec

from hubbub.background import wrong_event_loop
from hubbub.errors import Unavailable
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.redis.connection import INCOMPLETE, NOT_REDIS, UNASKED, Connector, Reconnector, RespProtocol, pack
from hubbub.redis.connector import connector_for
from hubbub.redis.replies import DEMOTED, Part, Reply, ReplyError, to_error
from hubbub.scheduling import EarliestTimer, OncePerTurn
from hubbub.settings import RedisSettings

MAX_UNWRITTEN_BYTES: Final = 64 * 1024 * 1024
"""Bounds the memory that unwritten commands take while the server reads none: 10,000 of the longest messages to
publish would take 2.4 GiB."""

ReplyOrError: TypeAlias = "Reply | ReplyError | Unavailable"
"""The reply to one command of a pipeline, or its error."""


def results(outcomes: Iterable[ReplyOrError]) -> list[Reply]:
    """The replies. Raises: the first error among the outcomes."""
    replies: list[Reply] = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        replies.append(outcome)
    return replies


class Call(msgspec.Struct, eq=False, gc=False):
    """A command, and the future of the caller that waits for its reply.

    The future is done early when the caller gives up. The reply comes all the same and is thrown away, so that
    later replies go to their own callers. The garbage collector does not track a call, which halves the time to
    make one. That is safe because all that refers back to it ends with the reply.
    """

    future: asyncio.Future[Any]
    packed: bytes
    since: float
    deadline: float
    writes: bool

    def answer(self, reply: Reply | ReplyError) -> None:
        future = self.future
        if future.done():
            return
        if isinstance(reply, ReplyError):
            future.set_exception(to_error(reply))
        else:
            future.set_result(reply)

    def leave_unanswered(self, reason: str) -> None:
        """Fail a call that was written: the server may have carried it out."""
        self.fail(Unavailable("redis", reason, outcome_unknown=self.writes))

    def fail(self, error: Unavailable) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Pipeline(Call, eq=False, gc=False):
    """Commands that are written together, with one future for the outcomes of all."""

    steps: int
    outcomes: list[ReplyOrError] = []

    def answer(self, reply: Reply | ReplyError) -> None:
        """Add to the outcomes. The caller gets them with the last one."""
        self.outcomes.append(to_error(reply) if isinstance(reply, ReplyError) else reply)
        if len(self.outcomes) == self.steps and not self.future.done():
            self.future.set_result(self.outcomes)


class CommandProtocol(RespProtocol):
    """Writes calls, and gives each reply to the oldest call that has none."""

    def __init__(self, transport: asyncio.Transport, reader: hiredis.Reader, connection: Connection) -> None:
        super().__init__(transport, reader, on_writable=connection.write)
        self._connection = connection
        self._last_answered = 0
        self.written: deque[Call] = deque()

    @property
    def idle(self) -> bool:
        """Whether no call is in flight, and no other is likely to come in this turn of the loop.

        After several replies at once their callers will ask again in this turn, and are written together.
        """
        return not self.written and self._last_answered <= 1

    def send(self, calls: list[Call]) -> None:
        """Write all calls at once. A pipeline is in the list once for each of its replies."""
        if not self.written:
            self.received_at = self._loop.time()  # silence counts from the first command, not from the last reply
        self.written.extend(calls)
        self._transport.write(b"".join([call.packed for call in dict.fromkeys(calls)]))

    def parse(self) -> None:
        written = self.written
        waited = len(written)
        next_reply = self.reader.gets
        demoted = False
        try:
            while (reply := next_reply()) is not INCOMPLETE:
                if reply.__class__ is hiredis.PushNotification:  # a server may send more than replies
                    continue
                call = written.popleft()
                if reply.__class__ is ReplyError:
                    demoted = demoted or reply.code == DEMOTED
                    if self._connection.redirect(call, reply):
                        continue
                call.answer(reply)
        except hiredis.HiredisError:
            self.drop(NOT_REDIS)
        except IndexError:
            self.drop(UNASKED)
        self._last_answered = waited - len(written)
        if demoted:
            self.drop("the server has become a replica")

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        reason = self.lost.result().reason
        while self.written:
            self.written.popleft().leave_unanswered(reason)


WITHOUT_KEYS: Final = frozenset({"PING", "TIME", "INFO", "CONFIG", "SCAN", "DBSIZE", "FLUSHDB", "CLUSTER"})
"""The commands of hubbub that name neither a key nor a channel."""


def prefixed(prefix: str, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The command with the prefix before its keys or its channel."""
    name = parts[0]
    if name in WITHOUT_KEYS:
        return parts
    first, end = 1, 2
    if name in {"EVAL", "EVALSHA"}:
        first, end = 3, 3 + int(parts[2])
    elif name == "DEL":
        end = len(parts)
    keys = (prefix.encode() + key if isinstance(key, bytes) else f"{prefix}{key}" for key in parts[first:end])
    return (*parts[:first], *keys, *parts[end:])


class Connection(Reconnector[CommandProtocol]):
    """One multiplexed connection to Redis for commands.

    All that is asked in one turn of the event loop goes out in one write. While the connection is down, calls wait
    for the next one at most as long as a connection may take. No command is ever sent twice. At most `max_waiting`
    commands wait at a time, whether for a connection or for a reply: more than one connection carries in a tenth
    of a second.

    The names of keys and channels get the prefix of the settings.

    Commands that block (BLPOP, WAIT) or that change the connection for all callers (SELECT, SUBSCRIBE, CLIENT
    REPLY) must not be used here.
    """

    is_cluster = False
    """Whether the keys of one script have to be in one slot."""

    def __init__(
        self,
        settings: RedisSettings,
        *,
        max_waiting: int = 10_000,
        instrumentation: Instrumentation = SILENT,
        connector: Connector | None = None,
    ) -> None:
        super().__init__("hubbub-redis-commands", settings, connector or connector_for(settings))
        self._instrumentation = instrumentation
        self._max_waiting = max_waiting
        self.deadline_seconds = settings.deadline_seconds
        """How long a command may take that comes without a deadline."""
        self.prefix = settings.prefix
        self._unwritten: list[Call] = []
        self._unwritten_bytes = 0
        self._flush = OncePerTurn(self.write)
        self._timer = EarliestTimer(self._expire)

    @property
    def waiting(self) -> int:
        """How many commands wait to be written or to be answered."""
        return len(self._unwritten) + (0 if self._protocol is None else len(self._protocol.written))

    async def close(self) -> None:
        await super().close()
        self._timer.cancel()

    def execute(
        self, *parts: Part, deadline_seconds: float | None = None, writes: bool = True
    ) -> asyncio.Future[Reply]:
        """Run one command, given word by word: `await connection.execute("SET", key, value, "EX", 60)`.

        Strings come back as bytes. An Unavailable has `outcome_unknown` if a command that `writes` was sent and no
        reply came by the deadline or before the connection was lost. Without it the command only reads, was never
        sent, or was refused by the server. Raises: Unavailable, ReplyError (the command itself is wrong).
        """
        loop = self._loop or asyncio.get_running_loop()
        now = loop.time()
        future: asyncio.Future[Reply] = loop.create_future()
        deadline = now + (self.deadline_seconds if deadline_seconds is None else deadline_seconds)
        packed = pack(prefixed(self.prefix, parts) if self.prefix else parts)
        self._enqueue(Call(future, packed, now, deadline, writes), 1, loop, now)
        return future

    def execute_many(
        self, commands: Iterable[Sequence[Part]], *, deadline_seconds: float | None = None, writes: bool = True
    ) -> asyncio.Future[list[ReplyOrError]]:
        """Run commands in one write, in order and without another in between: a pipeline, or MULTI to EXEC.

        Returns the outcome of each, in order: its reply, or the error that `execute` would raise for it. Raises:
        Unavailable (as `execute`, for all commands together).
        """
        loop = self._loop or asyncio.get_running_loop()
        now = loop.time()
        future: asyncio.Future[list[ReplyOrError]] = loop.create_future()
        deadline = now + (self.deadline_seconds if deadline_seconds is None else deadline_seconds)
        each = map(tuple, commands)
        packed = [*map(pack, map(partial(prefixed, self.prefix), each) if self.prefix else each)]
        if not packed:
            future.set_result([])
            return future
        pipeline = Pipeline(future, b"".join(packed), now, deadline, writes, len(packed))
        self._enqueue(pipeline, len(packed), loop, now)
        return future

    @property
    def servers(self) -> dict[str, Connection]:
        """By its address, the connection to the server, or to each primary of a cluster."""
        return {self._settings.where: self}

    def server_of(self, channel: str) -> str:
        """The primary at which messages of this channel are published. Empty where none has the channel."""
        return ""

    def _enqueue(self, call: Call, commands: int, loop: asyncio.AbstractEventLoop, now: float) -> None:
        protocol = self._protocol
        is_due = self._flush.is_due
        # The thread is compared once per write. A call in another thread hardly ever finds a write scheduled.
        if self._loop is not None and (not loop.is_running() or (not is_due and get_ident() != self._thread)):
            call.fail(wrong_event_loop())
            return
        refusal = self._refusal(protocol, commands)
        if refusal is not None:
            call.fail(refusal)
            return
        if commands == 1:
            self._unwritten.append(call)
        else:
            self._unwritten.extend((call,) * commands)
        self._unwritten_bytes += len(call.packed)
        if protocol is None or call.deadline < self._timer.at:
            self._timer.request(self._write_deadline(call), now)
        if is_due:
            return
        if commands == 1 and protocol is not None and protocol.idle:
            # A lone caller, one call after another: nothing to wait for. Several commands at once, as after a
            # COMMIT, are likely to be followed by others, and a write costs more than all of them.
            self.write()
        else:
            self._flush.request(loop)

    def _refusal(self, protocol: CommandProtocol | None, commands: int) -> Unavailable | None:
        waiting = len(self._unwritten)
        if protocol is not None:
            waiting += len(protocol.written)
        elif (failure := self.failure) is not None and not failure.retryable:
            return failure.for_another()
        if waiting + commands > self._max_waiting:
            return Unavailable("redis", f"too many commands are waiting (at most {self._max_waiting})")
        if self._unwritten_bytes > MAX_UNWRITTEN_BYTES:
            return Unavailable("redis", f"too much is waiting to be sent (at most {MAX_UNWRITTEN_BYTES} bytes)")
        return None

    def write(self) -> None:
        """Write all calls that wait, once there is a connection that takes them."""
        protocol = self._protocol
        if protocol is None or not protocol.writable:
            return  # _on_connected or resume_writing calls again
        calls = [call for call in self._unwritten if not call.future.done()]
        self._unwritten.clear()
        self._unwritten_bytes = 0
        if calls:
            protocol.send(calls)

    def take_unwritten(self) -> list[Call]:
        """Take over the calls that wait for a connection."""
        calls, self._unwritten, self._unwritten_bytes = dict.fromkeys(self._unwritten), [], 0
        return [*calls]

    def _make_protocol(self, transport: asyncio.Transport, reader: hiredis.Reader) -> CommandProtocol:
        return CommandProtocol(transport, reader, self)

    def redirect(self, call: Call, error: ReplyError) -> bool:
        """Send a refused call to another server. False if it sends none: the caller then gets the refusal."""
        return False

    def _on_connected(self, protocol: CommandProtocol) -> None:
        self.write()
        self._instrumentation.connected("redis-commands")

    def _on_disconnected(self, failure: Unavailable) -> None:
        if not failure.retryable:
            for call in self.take_unwritten():
                call.fail(failure.for_another())
        elif self._unwritten:
            now = asyncio.get_running_loop().time()
            self._timer.request(now, now)

    def _expire(self, now: float) -> None:
        """Fail the calls whose deadline is over, and request the timer for the next deadline."""
        next_at = self._expire_unwritten(now)
        protocol = self._protocol
        if protocol is not None and protocol.written:
            next_at = min(next_at, self._expire_written(protocol, now))
            # A frozen server does not close its connections, so silence for a whole deadline counts as a lost one.
            silent_at = protocol.received_at + self.deadline_seconds
            if silent_at > now:
                next_at = min(next_at, silent_at)
            else:
                protocol.drop(f"the server was silent for {self.deadline_seconds:g} s")
        self._timer.request(next_at, now)

    def _expire_unwritten(self, now: float) -> float:
        failure = self.failure
        reason = f"no connection: {failure.reason}" if failure is not None else "the server takes no more commands"
        remaining = []
        earliest = inf
        for call in self._unwritten:
            deadline = self._write_deadline(call)
            if deadline <= now:
                call.fail(Unavailable("redis", reason))
            elif not call.future.done():
                remaining.append(call)
                earliest = min(earliest, deadline)
        self._unwritten = remaining
        self._unwritten_bytes = sum(len(call.packed) for call in dict.fromkeys(remaining))
        return earliest

    def _expire_written(self, protocol: CommandProtocol, now: float) -> float:
        earliest = inf
        for call in protocol.written:
            if call.deadline <= now:
                call.leave_unanswered(f"no reply within {call.deadline - call.since:g} s")
            elif not call.future.done():
                earliest = min(earliest, call.deadline)
        return earliest

    def _write_deadline(self, call: Call) -> float:
        if self._protocol is not None:
            return call.deadline
        return min(call.deadline, call.since + self._settings.connect_timeout_seconds)


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
