"""The connection for commands: all callers of the process share it, and what waits goes out together."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Final

from hubbub.errors import Unavailable
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.redis.call import Call, Outcome, Pipeline
from hubbub.redis.command_wire import CommandWire
from hubbub.redis.line import Line
from hubbub.redis.wire import pack
from hubbub.scheduling import EarliestTimer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hubbub.redis.replies import Part, Reply
    from hubbub.settings import RedisSettings

MAX_UNWRITTEN_BYTES: Final = 64 * 1024 * 1024
"""What may wait to be written, however few commands it is."""


class Connection:
    """One multiplexed connection to Redis for commands.

    What is asked for in one turn of the event loop goes out in one write. While the connection is down, calls
    wait for the next one at most as long as a connection may take, and nothing is ever sent twice. At most
    `max_waiting` commands wait at a time, whether for a connection or for a reply.

    Commands that block (BLPOP, WAIT) or that change the connection for everybody (SELECT, SUBSCRIBE, CLIENT REPLY)
    do not belong here.
    """

    def __init__(
        self,
        settings: RedisSettings,
        *,
        max_waiting: int = 10_000,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        self._settings = settings
        self._instrumentation = instrumentation
        self._max_waiting = max_waiting
        self._line: Line[CommandWire] = Line(
            "hubbub-redis-commands",
            settings,
            lambda: CommandWire(self._flush),
            on_up=self._came_up,
            on_down=self._went_down,
        )
        # Kept from start() on: asking asyncio for it costs a system call on Python 3.11, a third of a command.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unwritten: list[Call] = []
        self._unwritten_bytes = 0
        self._flush_is_due = False
        self._timer = EarliestTimer(self._expire)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now. One that froze counts until its silence was noticed."""
        return self._line.wire is not None

    @property
    def trouble(self) -> Unavailable | None:
        """Why there is no connection, None while there is one. Not retryable: a wrong login, or closed."""
        return self._line.trouble

    @property
    def waiting(self) -> int:
        """How many commands wait to be written or to be answered."""
        wire = self._line.wire
        return len(self._unwritten) + (len(wire.written) if wire is not None else 0)

    async def start(self) -> None:
        """Connect. Returns after the first attempt and does not raise for its failure: more attempts follow.

        Raises Unavailable once closed.
        """
        self._loop = asyncio.get_running_loop()
        await self._line.start()

    async def close(self) -> None:
        """Give up the connection; whoever still waits gets Unavailable. May be called again."""
        await self._line.close()
        self._timer.cancel()

    def execute(
        self, *parts: Part, deadline_seconds: float | None = None, writes: bool = True
    ) -> asyncio.Future[Reply]:
        """Run one command, given word by word: `await connection.execute("SET", key, value, "EX", 60)`.

        Strings come back as bytes. Raises Unavailable: with `outcome_unknown` if a command that `writes` was sent
        and no reply came by the deadline or before the connection was lost; without it if the command only reads,
        was never sent, or the server would not serve. Raises ReplyError for a command that is wrong in itself.
        """
        loop = self._loop or asyncio.get_running_loop()
        now = loop.time()
        future: asyncio.Future[Reply] = loop.create_future()
        seconds = self._settings.deadline_seconds if deadline_seconds is None else deadline_seconds
        packed = pack(parts)
        self._enqueue(Call(future, packed, now, now + seconds, writes), 1, loop, now)
        return future

    def execute_many(
        self, commands: Iterable[Sequence[Part]], *, deadline_seconds: float | None = None, writes: bool = True
    ) -> asyncio.Future[list[Outcome]]:
        """Run commands back to back in one write: a pipeline, or MULTI to EXEC, which nothing comes between.

        Gives what became of each, in order: its reply, or the error that `execute` would raise for it. Raises
        Unavailable as a whole, as `execute` does.
        """
        loop = self._loop or asyncio.get_running_loop()
        now = loop.time()
        future: asyncio.Future[list[Outcome]] = loop.create_future()
        deadline = now + (self._settings.deadline_seconds if deadline_seconds is None else deadline_seconds)
        packed = [pack(tuple(command)) for command in commands]
        if not packed:
            future.set_result([])
            return future
        steps = len(packed)
        pipeline = Pipeline(future, b"".join(packed), now, deadline, writes, steps)
        self._enqueue(pipeline, steps, loop, now)
        return future

    def _enqueue(self, call: Call, commands: int, loop: asyncio.AbstractEventLoop, now: float) -> None:
        wire = self._line.wire
        refusal = self._refusal(wire, commands)
        if refusal is not None:
            call.fail(refusal)
            return
        if commands == 1:
            self._unwritten.append(call)
        else:
            self._unwritten.extend((call,) * commands)
        self._unwritten_bytes += len(call.packed)
        if wire is None or call.deadline < self._timer.at:
            self._timer.request(self._unwritten_until(call), now)
        if self._flush_is_due:
            return  # along with the others
        if commands == 1 and wire is not None and wire.idle:
            # A lone caller, one call after another: nobody to wait for. Where many commands come at once, as after
            # a commit, others are likely to follow, and a write costs more than all of them.
            self._flush()
        else:
            self._flush_is_due = True
            loop.call_soon(self._flush)

    def _refusal(self, wire: CommandWire | None, commands: int) -> Unavailable | None:
        waiting = len(self._unwritten)
        if wire is not None:
            waiting += len(wire.written)
        elif (trouble := self._line.trouble) is not None and not trouble.retryable:
            return Unavailable("redis", trouble.reason, retryable=False)
        if waiting + commands > self._max_waiting:
            return Unavailable("redis", f"too many commands are waiting (at most {self._max_waiting})")
        if self._unwritten_bytes > MAX_UNWRITTEN_BYTES:
            return Unavailable("redis", f"too much is waiting to be sent (at most {MAX_UNWRITTEN_BYTES} bytes)")
        return None

    def _flush(self) -> None:
        self._flush_is_due = False
        wire = self._line.wire
        if wire is None or not wire.writable:
            return  # _came_up or resume_writing calls again
        calls = [call for call in self._unwritten if not call.future.done()]
        self._unwritten.clear()
        self._unwritten_bytes = 0
        if calls:
            wire.send(calls)

    def _came_up(self, _: CommandWire) -> None:
        self._flush()
        self._instrumentation.connected("redis-commands")  # last: it may raise, though it must not

    def _went_down(self, trouble: Unavailable) -> None:
        if not trouble.retryable:
            for call in self._unwritten:
                call.fail(Unavailable("redis", trouble.reason, retryable=False))
            self._unwritten.clear()
            self._unwritten_bytes = 0
        elif self._unwritten:
            now = asyncio.get_running_loop().time()
            self._timer.request(now, now)

    def _expire(self, now: float) -> None:
        """Fail the calls whose time is over, and be woken again when the next one's is."""
        next_at = self._expire_unwritten(now)
        wire = self._line.wire
        if wire is not None and wire.written:
            next_at = min(next_at, self._expire_written(wire, now), self._drop_if_silent(wire, now))
        self._timer.request(next_at, now)

    def _expire_unwritten(self, now: float) -> float:
        trouble = self._line.trouble
        reason = f"no connection: {trouble.reason}" if trouble is not None else "the server takes no more commands"
        remaining = []
        earliest = inf
        for call in self._unwritten:
            until = self._unwritten_until(call)
            if until <= now:
                call.fail(Unavailable("redis", reason))
            elif not call.future.done():
                remaining.append(call)
                earliest = min(earliest, until)
        self._unwritten = remaining
        self._unwritten_bytes = sum(len(call.packed) for call in dict.fromkeys(remaining))
        return earliest

    def _expire_written(self, wire: CommandWire, now: float) -> float:
        earliest = inf
        for call in wire.written:
            if call.deadline <= now:
                call.leave_unanswered(f"no reply within {call.deadline - call.since:g} s")
            elif not call.future.done():
                earliest = min(earliest, call.deadline)
        return earliest

    def _drop_if_silent(self, wire: CommandWire, now: float) -> float:
        """A frozen server closes nothing: what is asked and stays silent for a deadline is taken for lost."""
        silent_at = wire.heard_at + self._settings.deadline_seconds
        if silent_at > now:
            return silent_at
        wire.drop(f"the server was silent for {self._settings.deadline_seconds:g} s")
        return inf

    def _unwritten_until(self, call: Call) -> float:
        if self._line.wire is not None:
            return call.deadline
        return min(call.deadline, call.since + self._settings.connect_timeout_seconds)
