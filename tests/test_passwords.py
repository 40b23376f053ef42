from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import AsyncIterator
from typing import Any

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub import passwords as module
from hubbub.errors import Invalid, Unavailable
from hubbub.passwords import Passwords

SECRET = "correct horse battery staple"


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    """At the lowest allowed cost, with one thread."""
    passwords = Passwords(cost=10, threads=1)
    yield passwords
    await passwords.close()


class Gate:
    """Replaces bcrypt in tests that decide how long a hash takes."""

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


async def test_password_matches_its_own_hash_and_no_other(passwords: Passwords) -> None:
    hashed = await passwords.hash(SECRET)
    assert await passwords.verify(SECRET, hashed)
    assert not await passwords.verify(SECRET + ".", hashed)
    assert not await passwords.verify(SECRET.upper(), hashed)


async def test_two_hashes_of_one_password_differ(passwords: Passwords) -> None:
    assert await passwords.hash(SECRET) != await passwords.hash(SECRET)


async def test_hashes_are_compatible_with_other_implementations_of_bcrypt(passwords: Passwords) -> None:
    assert bcrypt.checkpw(SECRET.encode(), (await passwords.hash(SECRET)).encode())
    for prefix in (b"2a", b"2b"):
        theirs = bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4, prefix))
        assert await passwords.verify(SECRET, theirs.decode())
        # The $2y$ of PHP is another name of $2b$.
        assert await passwords.verify(SECRET, theirs.decode().replace("$2b$", "$2y$"))


async def test_default_cost_is_12() -> None:
    passwords = Passwords()
    try:
        assert (await passwords.hash(SECRET)).startswith("$2b$12$")
    finally:
        await passwords.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("threads", 0), ("threads", -1), ("threads", "2"), ("max_waiting", 0), ("max_waiting", None)),
        *(("threads", True), ("max_waiting", True), ("deadline_seconds", True), ("deadline_seconds", 10**400)),
        *(("deadline_seconds", 0), ("deadline_seconds", float("nan")), ("deadline_seconds", "5")),
        *(("deadline_seconds", float("inf")), ("cost", True)),
    ],
)
def test_impossible_bounds_are_invalid(field: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(Invalid) as refusal:
        Passwords(**{field: value})
    assert refusal.value.field == field


@pytest.mark.parametrize("cost", [-1, 0, 4, 9, 17, 31, 12.5, None])
def test_cost_below_10_or_above_16_is_refused(cost: int) -> None:
    with pytest.raises(Invalid, match="cost: must be a whole number from 10 to 16"):
        Passwords(cost=cost)


async def test_composed_and_decomposed_letters_are_one_password(passwords: Passwords) -> None:
    assert await passwords.verify("cafe\u0301", await passwords.hash("caf\u00e9"))


@pytest.mark.parametrize(
    "password", ["x" * 72, "\u00e9" * 36, "e\u0301" * 36, "\u6f22" * 24, "\U0001f980" * 18, " "]
)
async def test_all_72_bytes_are_significant(passwords: Passwords, password: str) -> None:
    hashed = await passwords.hash(password)
    assert await passwords.verify(password, hashed)
    assert not await passwords.verify(password[:-2], hashed)


REFUSED_PASSWORDS: dict[str, tuple[object, str]] = {
    "empty": ("", "must not be empty"),
    "73 letters": ("x" * 73, "must have at most 72 bytes"),
    "37 umlauts": ("\u00e4" * 37, "must have at most 72 bytes"),
    "a book": ("x" * 5_000_000, "must have at most 72 bytes"),
    "a heap of accents": ("a" + "\u0301\u0327" * 500_000, "must have at most 72 bytes"),
    "NUL": ("horse\0staple", "must not contain a NUL character"),
    "half of a pair": ("horse\ud83d", "half of a surrogate pair"),
    "bytes": (b"horse", "must be text"),
    "nothing": (None, "must be text"),
}


@pytest.mark.parametrize("name", REFUSED_PASSWORDS)
async def test_hash_refuses_a_password_that_bcrypt_would_cut_or_cannot_take(
    passwords: Passwords, name: str
) -> None:
    password, reason = REFUSED_PASSWORDS[name]
    with pytest.raises(Invalid, match=reason) as refusal:
        await passwords.hash(password)  # type: ignore[arg-type]  # as from a socket
    assert refusal.value.field == "password"


@pytest.mark.parametrize("name", REFUSED_PASSWORDS)
async def test_verify_treats_a_refused_password_as_wrong(passwords: Passwords, name: str) -> None:
    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert not await passwords.verify(REFUSED_PASSWORDS[name][0], hashed)  # type: ignore[arg-type]  # as from a socket


@pytest.mark.parametrize(
    "password_hash",
    ["", "not a hash", "$2b$12$", "$2b$31$" + "." * 53, "$2b$03$" + "." * 53, "$2b$10$" + "." * 52 + "\u00e9"],
)
async def test_value_that_is_not_a_bcrypt_hash_matches_nothing(passwords: Passwords, password_hash: str) -> None:
    assert not await passwords.verify(SECRET, password_hash)
    assert passwords.needs_rehash(password_hash)


async def test_unknown_user_malformed_password_and_wrong_password_cost_the_same(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt computes one hash of the same cost. Times would depend on the load of the machine."""
    hashed = await passwords.hash(SECRET)
    costs: list[str] = []
    matches = module._matches

    def counted(password: bytes, password_hash: str, cost: int) -> bool:
        costs.append(password_hash[:7])
        return matches(password, password_hash, cost)

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


@pytest.mark.parametrize("cost", [4, 9, 10])
async def test_hash_of_a_lower_cost_takes_the_work_of_an_unknown_user(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch, cost: int
) -> None:
    """Otherwise the time would reveal existing users after the cost was raised. Each step doubles the work."""
    work: list[int] = []
    hashpw, checkpw = bcrypt.hashpw, bcrypt.checkpw

    def counted_hashpw(password: bytes, salt: bytes) -> bytes:
        work.append(2 ** int(salt[4:6]))
        return hashpw(password, salt)

    def counted_checkpw(password: bytes, hashed: bytes) -> bool:
        work.append(2 ** int(hashed[4:6]))
        return checkpw(password, hashed)

    hashed = bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(cost)).decode()
    monkeypatch.setattr(bcrypt, "hashpw", counted_hashpw)
    monkeypatch.setattr(bcrypt, "checkpw", counted_checkpw)
    for password_hash in (hashed, None):
        for password in (SECRET, "wrong", ""):
            work.clear()
            right = await passwords.verify(password, password_hash)
            assert right is (password == SECRET and password_hash is not None)
            assert sum(work) == 2**10


def test_cheaper_hash_needs_a_rehash() -> None:
    passwords = Passwords(cost=11)
    assert passwords.needs_rehash("$2b$10$" + "." * 53)
    assert not passwords.needs_rehash("$2b$11$" + "." * 53)
    assert not passwords.needs_rehash("$2a$12$" + "." * 53)


async def test_event_loop_and_its_default_threads_are_free_during_a_storm_of_logins(
    passwords: Passwords, gate: Gate
) -> None:
    storm = [asyncio.create_task(passwords.hash(f"password {n}")) for n in range(100)]
    await computing(gate)
    assert await asyncio.to_thread(lambda: "free") == "free"
    gate.open.set()
    assert await asyncio.gather(*storm) == ["10"] * 100
    assert gate.done == [b"password %d" % n for n in range(100)]  # first come, first served


async def test_call_beyond_the_waiting_limit_is_refused_at_once(gate: Gate) -> None:
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


async def test_calls_with_a_key_of_their_own_overtake_a_flood_with_one_key(gate: Gate) -> None:
    passwords = Passwords(cost=10, threads=1)
    flood = [
        asyncio.create_task(passwords.hash(f"flood {n}", keys=["address x", f"login {n}"])) for n in range(20)
    ]
    await computing(gate)
    # The flood also tries the login of the second call. The last call has the address of the flood.
    others = [("a", "y"), ("5", "z"), ("b", "y"), ("c", "x")]
    calls = [
        asyncio.create_task(passwords.hash(f"{login} {address}", keys=[f"login {login}", f"address {address}"]))
        for login, address in others
    ]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(*flood, *calls)
    order = [password.decode() for password in gate.done]
    assert order[0] == "flood 0"
    assert order[1:6] == ["a y", "flood 1", "5 z", "b y", "flood 2"]
    assert order[-1] == "c x"
    await passwords.close()


async def test_flood_for_one_login_from_many_addresses_delays_no_other_login(gate: Gate) -> None:
    passwords = Passwords(cost=10, threads=1)
    flood = [
        asyncio.create_task(passwords.hash(f"flood {n}", keys=["login ada", f"address {n}"])) for n in range(20)
    ]
    await computing(gate)
    bob = asyncio.create_task(passwords.hash("bob", keys=["login bob", "address b"]))
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(*flood, bob)
    assert gate.done[1] == b"bob"
    await passwords.close()


async def test_full_queue_refuses_the_last_call_of_the_flood_instead_of_another(gate: Gate) -> None:
    passwords = Passwords(cost=10, threads=1, max_waiting=5)
    flood = [asyncio.create_task(passwords.hash(f"flood {n}", keys=["x"])) for n in range(5)]
    await computing(gate)
    others = [asyncio.create_task(passwords.hash(f"other {n}", keys=[f"y {n}"])) for n in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many passwords wait"):
        await passwords.hash("one more", keys=["x"])
    gate.open.set()
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    assert [isinstance(outcome, Unavailable) for outcome in outcomes] == [False] * 3 + [True] * 2
    assert await asyncio.gather(*others) == ["10"] * 2
    await passwords.close()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=30), st.integers(1, 3))
async def test_queue_serves_each_call_once_and_forgets_its_keys(
    calls: list[tuple[str, str]], threads: int
) -> None:
    """This holds for any keys, although every third caller gives up."""
    passwords = Passwords(cost=10, threads=threads, max_waiting=12)
    started: list[int] = []

    async def one(number: int, keys: tuple[str, str]) -> None:
        await passwords._in_a_thread(lambda: started.append(number), keys)

    tasks = [asyncio.create_task(one(number, keys)) for number, keys in enumerate(calls)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    done = [number for number, outcome in enumerate(outcomes) if outcome is None]
    assert len(started) == len(set(started))
    assert set(done) <= set(started)
    assert all(isinstance(outcome, Unavailable | asyncio.CancelledError | None) for outcome in outcomes)
    assert not passwords._queue
    assert not passwords._calls
    await passwords.close()


async def test_waiting_calls_raise_unavailable_at_the_deadline(gate: Gate) -> None:
    passwords = Passwords(cost=10, threads=1, deadline_seconds=0.1)
    calls = [passwords.hash(SECRET) for _ in range(3)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(error) for error in errors] == ["hub: no password hash was computed within 0.1 s"] * 3
    gate.open.set()
    await passwords.close()
    assert gate.done == [SECRET.encode()]  # the waiting calls were never started


async def test_cancelled_call_frees_its_place_in_the_queue_but_not_its_thread(gate: Gate) -> None:
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


async def test_close_leaves_the_loop_free_while_an_abandoned_hash_ends(gate: Gate) -> None:
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


async def test_close_completes_the_running_hash_refuses_waiting_calls_and_leaves_no_thread(gate: Gate) -> None:
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


async def test_errors_and_logs_contain_no_password(
    passwords: Passwords, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = [repr(passwords)]
    for password in (SECRET + "x" * 72, SECRET + "\0", SECRET + "\ud83d"):
        with pytest.raises(Invalid) as refusal:
            await passwords.hash(password)
        assert refusal.value.__context__ is None
        texts.extend(traceback.format_exception(refusal.value))
    hopeless = Passwords(cost=10, threads=1, deadline_seconds=0.01)
    with pytest.raises(Unavailable) as late:
        await hopeless.hash(SECRET)
    texts.extend(traceback.format_exception(late.value))
    gate.open.set()
    await hopeless.close()
    texts.extend(record.getMessage() for record in caplog.records)
    assert not [text for text in texts if "horse" in text]


async def test_event_loop_runs_while_a_hash_is_computed(passwords: Passwords) -> None:
    """bcrypt releases the interpreter lock. A blocked loop would count no turns."""
    turns = []
    for _ in range(5):  # a busy machine may give one hash all of this process's time
        hashing = asyncio.create_task(passwords.hash(SECRET))
        turns.append(0)
        started = time.monotonic()
        while not hashing.done() and time.monotonic() - started < 30:
            await asyncio.sleep(0)
            turns[-1] += 1
        assert (await hashing).startswith("$2b$10$")
    assert max(turns) > 100
