from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import AsyncIterator

import bcrypt
import pytest

from hubbub import passwords as module
from hubbub.errors import Invalid, Unavailable
from hubbub.passwords import Passwords

SECRET = "correct horse battery staple"


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    """At the lowest cost that is allowed, and with one thread."""
    passwords = Passwords(cost=10, threads=1)
    yield passwords
    await passwords.close()


class Gate:
    """Stands in for bcrypt where a test must decide how long a hash takes."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.computing = threading.Event()
        self.done: list[bytes] = []

    def hash(self, password: bytes, cost: int) -> str:
        self.computing.set()
        assert self.open.wait(30)
        self.done.append(password)
        return f"{cost}"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(module, "_hash", gate.hash)
    return gate


async def computing(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.computing.wait, 30)


async def test_a_password_matches_its_own_hash_and_no_other(passwords: Passwords) -> None:
    hashed = await passwords.hash(SECRET)
    assert await passwords.verify(SECRET, hashed)
    assert not await passwords.verify(SECRET + ".", hashed)
    assert not await passwords.verify(SECRET.upper(), hashed)


async def test_two_hashes_of_one_password_differ(passwords: Passwords) -> None:
    assert await passwords.hash(SECRET) != await passwords.hash(SECRET)


async def test_hashes_are_those_that_every_bcrypt_makes_and_checks(passwords: Passwords) -> None:
    assert bcrypt.checkpw(SECRET.encode(), (await passwords.hash(SECRET)).encode())
    for prefix in (b"2a", b"2b"):
        theirs = bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4, prefix))
        assert await passwords.verify(SECRET, theirs.decode())
        # The $2y$ of PHP is $2b$ by another name.
        assert await passwords.verify(SECRET, theirs.decode().replace("$2b$", "$2y$"))


async def test_the_cost_is_12_unless_told_otherwise() -> None:
    passwords = Passwords()
    try:
        assert (await passwords.hash(SECRET)).startswith("$2b$12$")
    finally:
        await passwords.close()


@pytest.mark.parametrize("cost", [-1, 0, 4, 9, 17, 31, 12.5, None])
def test_a_cost_below_10_or_without_an_end_is_refused(cost: int) -> None:
    with pytest.raises(Invalid, match="cost: must be a whole number from 10 to 16"):
        Passwords(cost=cost)


async def test_one_letter_typed_in_two_ways_is_one_password(passwords: Passwords) -> None:
    assert await passwords.verify("cafe\u0301", await passwords.hash("caf\u00e9"))


@pytest.mark.parametrize(
    "password", ["x" * 72, "\u00e9" * 36, "e\u0301" * 36, "\u6f22" * 24, "\U0001f980" * 18, " "]
)
async def test_72_bytes_count_to_the_last(passwords: Passwords, password: str) -> None:
    hashed = await passwords.hash(password)
    assert await passwords.verify(password, hashed)
    assert not await passwords.verify(password[:-2], hashed)


REFUSED: dict[str, tuple[object, str]] = {
    "empty": ("", "must not be empty"),
    "73 letters": ("x" * 73, "must have at most 72 bytes"),
    "37 umlauts": ("\u00e4" * 37, "must have at most 72 bytes"),
    "a book": ("x" * 5_000_000, "must have at most 72 bytes"),
    "a heap of accents": ("a" + "\u0301\u0327" * 500_000, "must have at most 72 bytes"),
    "NUL": ("horse\0staple", "must not hold a NUL character"),
    "half of a pair": ("horse\ud83d", "half of a surrogate pair"),
    "bytes": (b"horse", "must be text"),
    "nothing": (None, "must be text"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_password_that_bcrypt_would_cut_or_cannot_take_is_refused(passwords: Passwords, name: str) -> None:
    password, reason = REFUSED[name]
    with pytest.raises(Invalid, match=reason) as refusal:
        await passwords.hash(password)  # type: ignore[arg-type]  # what a socket brings
    assert refusal.value.field == "password"


@pytest.mark.parametrize("name", REFUSED)
async def test_at_a_login_such_a_password_is_simply_wrong(passwords: Passwords, name: str) -> None:
    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert not await passwords.verify(REFUSED[name][0], hashed)  # type: ignore[arg-type]  # what a socket brings


@pytest.mark.parametrize(
    "password_hash",
    ["", "not a hash", "$2b$12$", "$2b$31$" + "." * 53, "$2b$03$" + "." * 53, "$2b$10$" + "." * 52 + "\u00e9"],
)
async def test_what_is_no_hash_of_bcrypt_matches_nothing(passwords: Passwords, password_hash: str) -> None:
    assert not await passwords.verify(SECRET, password_hash)
    assert passwords.needs_rehash(password_hash)


async def test_an_unknown_user_a_malformed_password_and_a_wrong_one_cost_the_same(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the clock, which a busy machine bends: each computes one hash of the same cost."""
    hashed = await passwords.hash(SECRET)
    costs: list[str] = []
    matches = module._matches

    def counted(password: bytes, password_hash: str) -> bool:
        costs.append(password_hash[:7])
        return matches(password, password_hash)

    monkeypatch.setattr(module, "_matches", counted)
    for password, password_hash in [
        (SECRET, hashed),
        ("wrong", hashed),
        (SECRET, None),
        ("", None),
        ("", hashed),
        ("x" * 73, hashed),
        (SECRET, "?"),
    ]:
        await passwords.verify(password, password_hash)
    assert costs == ["$2b$10$"] * 7


def test_a_cheaper_hash_is_to_be_renewed() -> None:
    passwords = Passwords(cost=11)
    assert passwords.needs_rehash("$2b$10$" + "." * 53)
    assert not passwords.needs_rehash("$2b$11$" + "." * 53)
    assert not passwords.needs_rehash("$2a$12$" + "." * 53)


async def test_the_event_loop_and_its_own_threads_are_free_during_a_storm_of_logins(
    passwords: Passwords, gate: Gate
) -> None:
    storm = [asyncio.create_task(passwords.hash(f"password {n}")) for n in range(100)]
    await computing(gate)
    assert await asyncio.to_thread(lambda: "free") == "free"
    gate.open.set()
    assert await asyncio.gather(*storm) == ["10"] * 100
    assert gate.done == [b"password %d" % n for n in range(100)]  # first come first served


async def test_more_than_may_wait_are_refused_at_once(gate: Gate) -> None:
    passwords = Passwords(cost=10, threads=1, max_waiting=3)
    waiting = [asyncio.create_task(passwords.hash(SECRET)) for _ in range(3)]
    await computing(gate)
    with pytest.raises(Unavailable, match="too many passwords wait") as refusal:
        await passwords.hash(SECRET)
    assert refusal.value.retryable
    gate.open.set()
    await asyncio.gather(*waiting)
    assert await passwords.hash(SECRET) == "10"
    await passwords.close()


async def test_nobody_waits_longer_than_the_deadline(gate: Gate) -> None:
    passwords = Passwords(cost=10, threads=1, deadline_seconds=0.1)
    calls = [passwords.hash(SECRET) for _ in range(3)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(error) for error in errors] == ["hub: no turn for a password within 0.1 s"] * 3
    gate.open.set()
    await passwords.close()
    assert gate.done == [SECRET.encode()]  # those that waited were never begun


async def test_whoever_gives_up_makes_room_but_the_thread_is_taken_until_it_is_done(gate: Gate) -> None:
    passwords = Passwords(cost=10, threads=1, max_waiting=2)
    first = asyncio.create_task(passwords.hash("first"))
    await computing(gate)
    for _ in range(50):
        second = asyncio.create_task(passwords.hash("second"))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
    first.cancel()
    await asyncio.wait([first])
    third = asyncio.create_task(passwords.hash("third"))
    await asyncio.sleep(0)
    assert not third.done()
    gate.open.set()
    assert await third == "10"
    assert gate.done == [b"first", b"third"]
    await passwords.close()


async def test_closing_leaves_the_loop_free_while_a_hash_that_nobody_waits_for_ends(gate: Gate) -> None:
    passwords = Passwords(cost=10, threads=1)
    given_up = asyncio.create_task(passwords.hash("given up"))
    await computing(gate)
    given_up.cancel()
    await asyncio.wait([given_up])
    closing = asyncio.create_task(passwords.close())
    await asyncio.sleep(0)
    gate.open.set()  # never reached if closing blocked the loop
    await closing
    assert gate.done == [b"given up"]


async def test_closing_ends_what_is_computed_refuses_what_waits_and_leaves_no_thread(gate: Gate) -> None:
    passwords = Passwords(cost=10, threads=1)
    calls = [asyncio.create_task(passwords.hash(SECRET)) for _ in range(3)]
    await computing(gate)
    closing = asyncio.create_task(passwords.close())
    await asyncio.sleep(0)
    gate.open.set()
    await closing
    first, *others = await asyncio.gather(*calls, return_exceptions=True)
    assert first == "10"
    for refused in [*others, *await asyncio.gather(passwords.hash(SECRET), return_exceptions=True)]:
        assert isinstance(refused, Unavailable)
        assert not refused.retryable
    await passwords.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("hubbub-passwords")]


async def test_no_error_and_no_log_holds_a_password(
    passwords: Passwords, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = [repr(passwords)]
    for password in (SECRET + "x" * 72, SECRET + "\0", SECRET + "\ud83d"):
        with pytest.raises(Invalid) as refusal:
            await passwords.hash(password)
        assert refusal.value.__context__ is None
        told.extend(traceback.format_exception(refusal.value))
    hopeless = Passwords(cost=10, threads=1, deadline_seconds=0.01)
    with pytest.raises(Unavailable) as late:
        await hopeless.hash(SECRET)
    told.extend(traceback.format_exception(late.value))
    gate.open.set()
    await hopeless.close()
    told.extend(record.getMessage() for record in caplog.records)
    assert not [text for text in told if "horse" in text]


async def test_a_hash_is_computed_while_the_loop_turns(passwords: Passwords) -> None:
    """bcrypt lets go of the interpreter: a loop that stood still would count no turns."""
    hashing = asyncio.create_task(passwords.hash(SECRET))
    turns = 0
    started = time.monotonic()
    while not hashing.done() and time.monotonic() - started < 30:
        await asyncio.sleep(0)
        turns += 1
    assert (await hashing).startswith("$2b$10$")
    assert turns > 100
