"""Passwords and their hashes: ordinary bcrypt, computed in a few threads of their own."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar
from unicodedata import normalize

from hubbub.errors import Invalid, Unavailable
from hubbub.forks import abandon_in_child

A = TypeVar("A")
R = TypeVar("R")

LONGEST_BYTES: Final = 72
"""The bytes that bcrypt uses. In UTF-8 these are 72 characters of ASCII, 24 of Chinese."""

LEAST_COST: Final = 10
"""About 60 ms per hash. A lower cost makes stolen hashes too cheap to attack."""
USUAL_COST: Final = 12
"""About 250 ms per hash, which a login can bear."""
MOST_COST: Final = 16
"""About 4 s per hash. At a higher cost the caller would stop waiting, and the thread could not be stopped."""

# At most four code points become one of NFC, so what is longer than this is too long in any form. Checked first: a
# long run of accents is slow to normalise.
_LONGEST_INPUT: Final = 4 * LONGEST_BYTES
_TOO_LONG: Final = f"must have at most {LONGEST_BYTES} bytes in UTF-8"

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
    logins leaves cores for other work. At most `max_waiting` calls are computed or wait, first come, first served.
    None waits longer than `deadline_seconds`.
    """

    def __init__(
        self,
        *,
        cost: int = USUAL_COST,
        threads: int | None = None,
        max_waiting: int = 100,
        deadline_seconds: float = 10,
    ) -> None:
        """`cost` is that of bcrypt: each step doubles the time. Raises: Invalid (it is below 10 or above 16)."""
        if not isinstance(cost, int) or not LEAST_COST <= cost <= MOST_COST:
            raise Invalid("cost", f"must be a whole number from {LEAST_COST} to {MOST_COST}")
        size = max(1, (os.cpu_count() or 1) // 2) if threads is None else threads
        self._cost = cost
        self._unknown_user_hash = f"$2b${cost}${'.' * 53}"
        self._max_waiting = max_waiting
        self.deadline_seconds = deadline_seconds
        self._size = size
        self._closed = False
        self.abandon()
        abandon_in_child(self)

    def abandon(self) -> None:
        """Begin anew. In a child process the threads of the parent do not run."""
        self._waiting = 0
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="hubbub-passwords")
        self._free = asyncio.Semaphore(self._size)
        self._jobs: set[asyncio.Future[Any]] = set()

    async def hash(self, password: str) -> str:
        """A new hash, with a salt of its own.

        Raises: Invalid (the password is empty, longer than 72 bytes or not text; nothing is computed), Unavailable
        (too many calls wait, or the deadline has passed).
        """
        return await self._in_a_thread(_hash, _encoded(password), self._cost)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password is the one that was hashed.

        `None` is for an unknown user and takes as long as a hash of this cost. A password that `hash` would refuse
        is wrong, and a hash that is not one of bcrypt matches nothing. Both take as long, too.
        Raises: Unavailable (too many calls wait, or the deadline has passed).
        """
        try:
            candidate, possible = _encoded(password), True
        except Invalid:
            candidate, possible = b"-", False
        if password_hash is None or not _HASH.fullmatch(password_hash):
            password_hash, possible = self._unknown_user_hash, False
        return await self._in_a_thread(_matches, candidate, password_hash) and possible

    def needs_rehash(self, password_hash: str) -> bool:
        """Whether the hash is cheaper to attack than one that `hash` makes now."""
        found = _HASH.fullmatch(password_hash)
        return found is None or int(found[1]) < self._cost

    async def close(self) -> None:
        """Refuse the calls that wait, let those being computed end, and end the threads. Idempotent."""
        self._closed = True
        if self._jobs:
            await asyncio.wait(self._jobs)
        self._threads.shutdown()

    async def _in_a_thread(self, compute: Callable[[bytes, A], R], password: bytes, other: A) -> R:
        if self._waiting >= self._max_waiting:
            raise Unavailable("hub", f"too many passwords wait to be checked (at most {self._max_waiting})")
        self._waiting += 1
        try:
            async with asyncio.timeout(self.deadline_seconds):
                # Not in the queue of the threads, where a password would stay after its caller was cancelled.
                await self._free.acquire()
                return await asyncio.shield(self._begin(compute, password, other))
        except TimeoutError:
            raise Unavailable("hub", f"no password hash was computed within {self.deadline_seconds:g} s") from None
        finally:
            self._waiting -= 1

    def _begin(self, compute: Callable[[bytes, A], R], password: bytes, other: A) -> asyncio.Future[R]:
        """Start a job in a free thread, which the job holds to its end, even if the caller is cancelled before."""
        if self._closed:
            self._free.release()
            raise Unavailable("hub", "the hub was closed", retryable=False)
        job = asyncio.get_running_loop().run_in_executor(self._threads, compute, password, other)
        self._jobs.add(job)
        job.add_done_callback(self._end)
        return job

    def _end(self, job: asyncio.Future[R]) -> None:
        self._jobs.discard(job)
        self._free.release()


def _encoded(password: object) -> bytes:
    """The bytes to hash. The errors have no cause, because the error of an encoder would quote the password."""
    if not isinstance(password, str):
        raise Invalid("password", "must be text")
    if not password:
        raise Invalid("password", "must not be empty")
    if len(password) > _LONGEST_INPUT:
        raise Invalid("password", _TOO_LONG)
    if _NOT_TEXT.search(password):
        raise Invalid("password", "must not contain a NUL character or half of a surrogate pair")
    encoded = normalize("NFC", password).encode()
    if len(encoded) > LONGEST_BYTES:
        raise Invalid("password", _TOO_LONG)
    return encoded


# bcrypt is imported where it is used, so that a process without passwords does not spend 4 ms on it.


def _hash(password: bytes, cost: int) -> str:
    from bcrypt import gensalt, hashpw  # noqa: PLC0415 - see above

    return hashpw(password, gensalt(cost)).decode("ascii")


def _matches(password: bytes, password_hash: str) -> bool:
    from bcrypt import checkpw  # noqa: PLC0415 - see above

    return checkpw(password, password_hash.encode("ascii"))
