"""Passwords and their hashes: ordinary bcrypt, computed in a few threads of their own."""

from __future__ import annotations

import asyncio
import os
import re
from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Final, TypeVar
from unicodedata import normalize

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.forks import abandon_in_child
from hubbub.models import Secret

R = TypeVar("R")

MAX_BYTES: Final = 72
"""The bytes that bcrypt uses. In UTF-8 these are 72 characters of ASCII, 24 of Chinese."""

MIN_COST: Final = 10
"""About 60 ms per hash. A lower cost makes stolen hashes too cheap to attack."""
USUAL_COST: Final = 12
"""About 250 ms per hash, which a login can bear."""
MAX_COST: Final = 16
"""About 4 s per hash. At a higher cost the caller would stop waiting, and the thread could not be stopped."""

# At most four code points become one of NFC, so what is longer than this is too long in any form. Checked first: a
# long run of accents is slow to normalise.
_MAX_INPUT_LENGTH: Final = 4 * MAX_BYTES
_TOO_LONG: Final = f"must have at most {MAX_BYTES} bytes in UTF-8"

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_HASH = re.compile(r"\$2[abxy]\$(0[4-9]|1[0-6])\$[./A-Za-z0-9]{53}", re.ASCII)


class Passwords:
    """Makes and checks bcrypt hashes without stopping the event loop. Shared by all tasks of one loop.

    A password is normalised to Unicode's composed form (NFC), as in RFC 8265. So an é is the same password whether
    a keyboard sends one character or an e and an accent. It may have 72 bytes in UTF-8. A longer password is
    refused, because bcrypt would ignore the rest. Hashing a digest instead would make hashes that no other system
    can check, and these hashes may come from other systems and go to other systems.

    Hashing takes a quarter of a second of a core at cost 12, and bcrypt releases the interpreter lock meanwhile.
    It runs in `threads` threads of its own, by default half as many as the machine has cores, so that a storm of
    logins leaves cores for other work. At most `max_waiting` calls are computed or wait. None waits longer than
    `deadline_seconds`.

    Calls take turns by their `keys`, such as the login and the address of an attempt. The second call with a key
    runs after the first calls of all others. So a flood from one address, or for one login, delays itself.
    Calls without keys share one. When too many calls wait, the last in this order is refused.
    """

    def __init__(
        self,
        *,
        cost: int = USUAL_COST,
        threads: int | None = None,
        max_waiting: int = 100,
        deadline_seconds: float = 10,
    ) -> None:
        """`cost` is that of bcrypt, from 10 to 16: each step doubles the time. Raises: Invalid."""
        self._cost = inputs.whole_number("cost", cost, MIN_COST, MAX_COST)
        size = max(1, (os.cpu_count() or 1) // 2) if threads is None else threads
        for name, value in (("threads", size), ("max_waiting", max_waiting)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise Invalid(name, "must be a whole number above 0")
        self._unknown_user_hash = f"$2b${cost}${'.' * 53}"
        self._max_waiting = max_waiting
        self.deadline_seconds = inputs.positive("deadline_seconds", deadline_seconds)
        self._size = size
        self._closed = False
        self._abandon()
        abandon_in_child(self._abandon)

    def _abandon(self) -> None:
        """Start with an empty queue and new threads. In a child process the threads of the parent do not run."""
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="hubbub-passwords")
        self._jobs: set[asyncio.Future[Any]] = set()
        self._queue: list[_Call] = []
        """The calls that wait, in the order in which they will be served."""
        self._calls: Counter[str] = Counter()
        """How many calls of each key are computed or wait."""
        self._round = 0
        self._numbers = count()

    async def hash(self, password: str, *, keys: Collection[str] = ()) -> str:
        """A new hash, with a salt of its own.

        Raises: Invalid (the password is empty, longer than 72 bytes or not text; nothing is computed), Unavailable
        (too many calls wait, or the deadline has passed).
        """
        secret = _encoded(password)
        return await self._in_a_thread(lambda: _hash(secret, self._cost), keys)

    async def verify(self, password: str, password_hash: str | None, *, keys: Collection[str] = ()) -> bool:
        """Whether the password is the one that was hashed.

        `None` is for an unknown user and takes as long as a hash of this cost. A password that `hash` would refuse
        is wrong, and a hash that is not one of bcrypt matches nothing. Both take as long, too. So does a hash of a
        lower cost, or else raising the cost would reveal by the time which users exist. One of a higher cost takes
        longer.

        Raises: Unavailable (too many calls wait, or the deadline has passed).
        """
        try:
            secret, possible = _encoded(password), True
        except Invalid:
            secret, possible = b"-", False
        if password_hash is None or not _HASH.fullmatch(password_hash):
            password_hash, possible = self._unknown_user_hash, False
        password_hash = Secret(password_hash)
        return await self._in_a_thread(lambda: _matches(secret, password_hash, self._cost), keys) and possible

    def needs_rehash(self, password_hash: str) -> bool:
        """Whether the hash is cheaper to attack than one that `hash` makes now."""
        found = _HASH.fullmatch(password_hash)
        return found is None or int(found[1]) < self._cost

    async def close(self) -> None:
        """Refuse the calls that wait, let those being computed end, and end the threads. Idempotent."""
        self._closed = True
        while self._queue:
            self._queue.pop().refuse(_closed())
        if self._jobs:
            await asyncio.wait(self._jobs)
        self._threads.shutdown()

    async def _in_a_thread(self, compute: Callable[[], R], keys: Collection[str]) -> R:
        if self._closed:
            raise _closed()
        keys = keys or ("",)
        # As in fair queueing: a call is due in as many rounds as its key has calls.
        due = self._round + 1 + max(self._calls[key] for key in keys)
        call = _Call(due, next(self._numbers), compute, asyncio.get_running_loop().create_future())
        self._make_room(call)
        insort(self._queue, call)
        self._calls.update(keys)
        try:
            self._begin_next()
            async with asyncio.timeout(self.deadline_seconds):
                job: asyncio.Future[R] = await call.job
                return await asyncio.shield(job)
        except TimeoutError:
            raise Unavailable("hub", f"no password hash was computed within {self.deadline_seconds:g} s") from None
        finally:
            if call in self._queue:  # not left in the queue, where a password would stay after its caller
                self._queue.remove(call)
            self._calls.subtract(keys)
            self._calls += Counter()  # drops the keys without calls

    def _make_room(self, call: _Call) -> None:
        """Refuse the last of all calls if there are too many."""
        if len(self._queue) + len(self._jobs) < self._max_waiting:
            return
        refusal = Unavailable("hub", f"too many passwords wait to be checked (at most {self._max_waiting})")
        if not self._queue or self._queue[-1] < call:
            raise refusal
        self._queue.pop().refuse(refusal)

    def _begin_next(self) -> None:
        """Start jobs in the threads that are free. A job holds its thread to its end, even without its caller."""
        while self._queue and len(self._jobs) < self._size:
            call = self._queue.pop(0)
            if not call.job.done():  # its caller is still there
                self._round = call.due
                job = asyncio.get_running_loop().run_in_executor(self._threads, call.compute)
                self._jobs.add(job)
                job.add_done_callback(self._end)
                call.job.set_result(job)

    def _end(self, job: asyncio.Future[Any]) -> None:
        self._jobs.discard(job)
        self._begin_next()


class _Call:
    """A call that waits, or whose job has begun. Calls are served in the order of `due`, then of `number`.

    It shows none of its fields, because `compute` holds the password.
    """

    __slots__ = ("compute", "due", "job", "number")

    def __init__(self, due: int, number: int, compute: Callable[[], Any], job: asyncio.Future[Any]) -> None:
        self.due = due
        self.number = number
        self.compute = compute
        self.job = job

    def __lt__(self, other: _Call) -> bool:
        return (self.due, self.number) < (other.due, other.number)

    def refuse(self, error: Unavailable) -> None:
        if not self.job.done():
            self.job.set_exception(error)


def _closed() -> Unavailable:
    return Unavailable("hub", "the hub was closed", retryable=False)


def _encoded(password: object) -> bytes:
    """The bytes to hash. The errors have no cause, because the error of an encoder would quote the password."""
    if not isinstance(password, str):
        raise Invalid("password", "must be text")
    if not password:
        raise Invalid("password", "must not be empty")
    if len(password) > _MAX_INPUT_LENGTH:
        raise Invalid("password", _TOO_LONG)
    if _NOT_TEXT.search(password):
        raise Invalid("password", "must not contain a NUL character or half of a surrogate pair")
    secret = normalize("NFC", password).encode()
    if len(secret) > MAX_BYTES:
        raise Invalid("password", _TOO_LONG)
    return secret


# bcrypt is imported where it is used, so that a process without passwords does not spend 4 ms on it.


def _hash(password: bytes, cost: int) -> str:
    from bcrypt import gensalt, hashpw  # noqa: PLC0415 - see above

    return hashpw(password, gensalt(cost)).decode("ascii")


def _matches(password: bytes, password_hash: str, cost: int) -> bool:
    """Whether the password is that of the hash, after the work of a hash of this cost if its own is lower.

    Each step doubles the work. So the costs from its own to the last before this one make up the difference.
    """
    from bcrypt import checkpw, hashpw  # noqa: PLC0415 - see above

    for step in range(int(password_hash[4:6]), cost):
        hashpw(password, f"$2b${step:02}${'.' * 22}".encode())
    return checkpw(password, password_hash.encode("ascii"))
