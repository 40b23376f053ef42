from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import replace
from functools import partial

import bcrypt
import pytest

from hubbub import Settings
from hubbub import passwords as passwords_module
from hubbub.errors import Conflict, Invalid, RateLimited, Unavailable
from hubbub.models import Credentials, RateLimitResult, User
from hubbub.passwords import Passwords
from hubbub.postgres import Pool
from hubbub.redis import Connection
from hubbub.redis.replies import Part, Reply, as_bytes_list
from hubbub.repositories import Users
from hubbub.services.accounts import READS_SECONDS, Accounts, KnownNetworks
from hubbub.services.rate_limits import RateLimits
from redis_server import Server
from services.monitored import monitored
from waiting import HANGS_AFTER_SECONDS

SECRET = "correct horse battery staple"
SLOWLY = 1 / 3600  # attempts per second: none is added during a test


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine Redis may take longer, and an attempt would be allowed without being counted."""
    if "own_server" not in request.fixturenames:
        monkeypatch.setattr("hubbub.services.rate_limits.FAIL_OPEN_SECONDS", HANGS_AFTER_SECONDS)
        monkeypatch.setattr("hubbub.services.accounts.KNOWN_WITHIN_SECONDS", HANGS_AFTER_SECONDS)


@pytest.fixture
def users(pool: Pool) -> Users:
    return Users(pool)


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    passwords = Passwords(cost=10)
    yield passwords
    await passwords.close()


@pytest.fixture
def accounts(users: Users, passwords: Passwords, connection: Connection) -> Accounts:
    return limited(users, passwords, connection)


def limited(
    users: Users, passwords: Passwords, connection: Connection, *, per_login: int = 100, per_address: int = 1_000
) -> Accounts:
    attempt = partial(RateLimits(connection).take, refill_per_second=SLOWLY, fail_open=True)
    return Accounts(
        users,
        passwords,
        per_login=partial(attempt, "login", capacity=per_login),
        per_address=partial(attempt, "login-address", capacity=per_address),
        known=KnownNetworks(connection),
    )


@pytest.fixture
async def ada(accounts: Accounts) -> User:
    return await accounts.register("ada@example.org", "Ada", SECRET)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The computations of bcrypt during the test, in order."""
    names: list[str] = []

    def noted(name: str) -> None:
        compute: Callable[..., object] = getattr(passwords_module, name)

        def compute_and_note(*args: object) -> object:
            names.append(name)
            return compute(*args)

        monkeypatch.setattr(passwords_module, name, compute_and_note)

    noted("_hash")
    noted("_matches")
    return names


async def test_login_by_email_or_username_in_any_case(accounts: Accounts, ada: User) -> None:
    assert (ada.email, ada.username) == ("ada@example.org", "Ada")
    for login in ("ada@example.org", "ADA@Example.ORG", "Ada", "ada", "ADA"):
        assert await accounts.authenticate(login, SECRET) == ada


async def test_wrong_password_and_unknown_login_both_return_none(accounts: Accounts, ada: User) -> None:
    for login, password in [
        (ada.username, "wrong"),
        ("ada@example.org", ""),
        ("nobody", SECRET),
        ("nobody@example.org", SECRET),
    ]:
        assert await accounts.authenticate(login, password) is None


HOSTILE: list[object] = [
    "", " ", "@", "a@", "ada@example.org\0", "ada\0", "\ud800", "x" * 1_000_000, "@" * 1_000_000, "' OR 1=1",
    None, 7, b"ada", ["ada"],
]  # fmt: skip


@pytest.mark.parametrize("login", HOSTILE, ids=range(len(HOSTILE)))
async def test_malformed_login_costs_one_check_and_returns_none(
    accounts: Accounts, computed: list[str], login: str
) -> None:
    assert await accounts.authenticate(login, SECRET) is None
    assert computed == ["_matches"]


async def test_each_attempt_costs_one_hash(
    accounts: Accounts, users: Users, ada: User, computed: list[str]
) -> None:
    await users.upsert(external_id="google-oauth2|1", username="external", email="external@example.org")
    for login, password in [
        ("external", SECRET),
        ("external@example.org", "!"),
        ("Ada", SECRET),
        ("Ada", "wrong"),
        ("Ada", ""),
        ("nobody", "x"),
        ("nobody", "x" * 100),
    ]:
        computed.clear()
        await accounts.authenticate(login, password)
        assert computed == ["_matches"]


@pytest.mark.parametrize(
    ("email", "username", "password", "field"),
    [
        ("ada", "ada", SECRET, "email"),
        ("ada@example.org", "ada@example.org", SECRET, "username"),
        ("ada@example.org", "", SECRET, "username"),
        ("ada@example.org", "ada", "", "password"),
        ("ada@example.org", "ada", "x" * 73, "password"),
        ("ada@example.org", "ada", "x\0", "password"),
    ],
)
async def test_malformed_registration_is_refused_before_hashing(
    accounts: Accounts, users: Users, computed: list[str], email: str, username: str, password: str, field: str
) -> None:
    with pytest.raises(Invalid) as refusal:
        await accounts.register(email, username, password)
    assert refusal.value.field == field
    assert computed == []
    assert await users.find_by_email("ada@example.org") is None


async def test_taken_name_conflicts_also_in_concurrent_registrations(accounts: Accounts, ada: User) -> None:
    with pytest.raises(Conflict, match="email"):
        await accounts.register("ADA@example.org", "ada2", SECRET)
    with pytest.raises(Conflict, match="username"):
        await accounts.register("ada2@example.org", "aDA", SECRET)
    outcomes = await asyncio.gather(
        *(accounts.register(f"bob{n}@example.org", "bob", SECRET) for n in range(4)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "Conflict", "Conflict", "User"]


async def test_login_renews_a_hash_of_lower_cost(accounts: Accounts, users: Users, ada: User) -> None:
    cheap = bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode()
    await users.change_password_hash(ada.id, cheap)
    before = await users.get(ada.id)
    assert await accounts.authenticate("ada", "wrong") is None
    assert await hash_of(users) == cheap
    assert await accounts.authenticate("ada", SECRET) == before
    renewed = await hash_of(users)
    assert renewed.startswith("$2b$10$")
    assert await accounts.authenticate("ada", SECRET) is not None
    assert await hash_of(users) == renewed


async def hash_of(users: Users) -> str:
    credentials = await users.find_credentials("ada")
    assert credentials is not None
    return credentials.password_hash


async def test_renewal_does_not_replace_a_concurrently_changed_password(
    users: Users, passwords: Passwords, connection: Connection, ada: User
) -> None:
    """Otherwise a login with the old password at the right moment would restore it."""
    await users.change_password_hash(ada.id, bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode())
    changed = await passwords.hash("another")

    class Slow(Passwords):
        async def hash(self, password: str, *, keys: Collection[str] = ()) -> str:
            await users.change_password_hash(ada.id, changed)
            return await super().hash(password, keys=keys)

    slow = Slow(cost=10)
    assert await limited(users, slow, connection).authenticate("ada", SECRET) is None
    await slow.close()
    assert await hash_of(users) == changed


async def test_concurrent_logins_succeed_while_one_renews_the_hash(
    accounts: Accounts, users: Users, ada: User
) -> None:
    await users.change_password_hash(ada.id, bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode())
    logins = await asyncio.gather(*(accounts.authenticate("ada", SECRET) for _ in range(5)))
    assert [user and user.id for user in logins] == [ada.id] * 5
    assert (await hash_of(users)).startswith("$2b$10$")


async def test_login_succeeds_when_its_hash_cannot_be_renewed(
    users: Users, connection: Connection, ada: User
) -> None:
    cheap = bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode()
    await users.change_password_hash(ada.id, cheap)

    class Busy(Passwords):
        async def hash(self, password: str, *, keys: Collection[str] = ()) -> str:
            raise Unavailable("hub", "too many passwords wait to be checked")

    busy = Busy(cost=10)
    assert await limited(users, busy, connection).authenticate("ada", SECRET) is not None
    await busy.close()
    assert await hash_of(users) == cheap


async def test_renewal_leaves_time_for_the_reads_after_it(accounts: Accounts, users: Users, ada: User) -> None:
    cheap = bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode()
    await users.change_password_hash(ada.id, cheap)
    deadline = asyncio.get_running_loop().time() + READS_SECONDS
    assert await accounts.authenticate("ada", SECRET, deadline=deadline) is not None
    assert await hash_of(users) == cheap


async def test_login_does_not_wait_for_a_renewal_past_its_deadline(
    users: Users, connection: Connection, ada: User
) -> None:
    cheap = bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode()
    await users.change_password_hash(ada.id, cheap)

    class Stuck(Passwords):
        async def hash(self, password: str, *, keys: Collection[str] = ()) -> str:
            never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            return await never

    stuck, deadline = Stuck(cost=10), asyncio.get_running_loop().time() + READS_SECONDS + 0.5
    assert await limited(users, stuck, connection).authenticate("ada", SECRET, deadline=deadline) is not None
    await stuck.close()
    assert await hash_of(users) == cheap


class Interrupted(Passwords):
    """Runs an action before each check of a password, after its hash was read."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__(cost=10)
        self._meanwhile = meanwhile

    async def verify(self, password: str, password_hash: str | None, *, keys: Collection[str] = ()) -> bool:
        await self._meanwhile()
        return await super().verify(password, password_hash, keys=keys)


async def test_password_changed_during_its_check_is_wrong(
    accounts: Accounts, users: Users, connection: Connection, ada: User
) -> None:
    """Otherwise a thief who logs in continually gets a session after the password change ended all sessions."""
    interrupted = Interrupted(lambda: accounts.change_password(ada.id, "changed meanwhile 3"))
    assert await limited(users, interrupted, connection).authenticate("ada", SECRET) is None
    await interrupted.close()
    assert await accounts.authenticate("ada", "changed meanwhile 3") is not None


async def test_account_deleted_during_a_login_returns_none(
    users: Users, connection: Connection, ada: User
) -> None:
    interrupted = Interrupted(lambda: users.delete(ada.id))
    assert await limited(users, interrupted, connection).authenticate("ada", SECRET) is None
    await interrupted.close()


async def test_hash_renewed_during_a_login_is_checked_again(
    users: Users, passwords: Passwords, connection: Connection, ada: User, computed: list[str]
) -> None:
    other = await passwords.hash(SECRET)
    interrupted = Interrupted(lambda: users.change_password_hash(ada.id, other))
    computed.clear()
    assert await limited(users, interrupted, connection).authenticate("ada", SECRET) is not None
    assert computed == ["_matches"] * 2
    await interrupted.close()


async def test_login_ends_after_two_changed_hashes(
    accounts: Accounts, users: Users, connection: Connection, ada: User, computed: list[str]
) -> None:
    interrupted = Interrupted(lambda: accounts.change_password(ada.id, SECRET))
    assert await limited(users, interrupted, connection).authenticate("ada", SECRET) is None
    assert computed.count("_matches") == 2
    await interrupted.close()


async def test_username_taken_over_during_a_login_returns_none(
    users: Users, passwords: Passwords, connection: Connection, ada: User
) -> None:
    bobs = await passwords.hash("his own 7")

    async def take() -> None:
        if await users.find_by_email("bob@example.org") is None:
            await users.update_profile(ada.id, username="countess")
            await users.create("bob@example.org", "ada", bobs)

    interrupted = Interrupted(take)
    assert await limited(users, interrupted, connection).authenticate("ada", SECRET) is None
    await interrupted.close()


async def test_credentials_are_read_again_only_after_a_right_password(
    pool: Pool, passwords: Passwords, connection: Connection, ada: User
) -> None:
    """Otherwise the time of the answer would reveal which logins exist."""
    read: list[str] = []

    class Noted(Users):
        async def find_credentials(self, login: str) -> Credentials | None:
            read.append(login)
            return await super().find_credentials(login)

    accounts = limited(Noted(pool), passwords, connection)
    for login, password in [("nobody", SECRET), ("ada", "wrong"), ("ADA", SECRET)]:
        await accounts.authenticate(login, password)
    assert read == ["nobody", "ada", "ADA", "ADA"]


async def test_attempt_above_the_limit_raises_with_the_seconds_to_wait(
    users: Users, passwords: Passwords, connection: Connection, ada: User, computed: list[str]
) -> None:
    accounts = limited(users, passwords, connection, per_login=3)
    for _ in range(3):
        assert await accounts.authenticate("ada", "wrong") is None
    computed.clear()
    with pytest.raises(RateLimited) as refusal:
        await accounts.authenticate("ada", SECRET)
    assert 3_500 < refusal.value.retry_after_seconds <= 3_600
    assert computed == []


@pytest.mark.parametrize("login", ["ada", "nobody"])
async def test_spellings_of_a_login_share_a_limit_whether_or_not_it_exists(
    users: Users, passwords: Passwords, connection: Connection, ada: User, login: str
) -> None:
    accounts = limited(users, passwords, connection, per_login=4)
    spellings = [login, login.upper(), login.title(), login]
    for spelling in spellings:
        assert await accounts.authenticate(spelling, "wrong") is None
    with pytest.raises(RateLimited):
        await accounts.authenticate(login.swapcase(), "wrong")


async def test_spellings_of_a_name_that_find_one_user_share_a_limit(
    users: Users, passwords: Passwords, connection: Connection
) -> None:
    accounts = limited(users, passwords, connection, per_login=3)
    await accounts.register("nikos@example.org", "Νίκος", SECRET)
    assert await accounts.authenticate("ΝΊΚΟΣ", SECRET) is not None
    for spelling in ("Νίκοσ", "νίκος"):
        assert await accounts.authenticate(spelling, "wrong") is None
    with pytest.raises(RateLimited):
        await accounts.authenticate("ΝΊκος", "wrong")


async def test_login_of_another_letter_is_another_user_with_a_limit_of_its_own(
    users: Users, passwords: Passwords, connection: Connection
) -> None:
    """İ has no single lower-case letter: its small form is i with a dot above."""
    accounts = limited(users, passwords, connection, per_login=1)
    mississippi = await accounts.register("mississippi@example.org", "Mississippi", SECRET)
    assert await accounts.authenticate("mİssİssİppİ", SECRET) is None
    assert await accounts.authenticate("MISSISSIPPI", SECRET) == mississippi


async def test_email_and_username_of_a_user_do_not_share_a_limit(
    users: Users, passwords: Passwords, connection: Connection, ada: User
) -> None:
    """Otherwise trying both would reveal that they belong to one user."""
    accounts = limited(users, passwords, connection, per_login=1)
    assert await accounts.authenticate("ada", "wrong") is None
    assert await accounts.authenticate("ada@example.org", "wrong") is None


async def test_refused_address_does_not_use_up_the_attempts_of_a_login(
    users: Users, passwords: Passwords, connection: Connection, ada: User
) -> None:
    accounts = limited(users, passwords, connection, per_login=2, per_address=3)
    for n in range(3):
        assert await accounts.authenticate(f"guess{n}", SECRET, address="192.0.2.1") is None
    for _ in range(5):
        with pytest.raises(RateLimited):
            await accounts.authenticate("ada", SECRET, address="192.0.2.1")
    assert await accounts.authenticate("ada", SECRET, address="192.0.2.2") is not None


async def test_attempts_from_elsewhere_do_not_lock_the_owner_out(
    users: Users, passwords: Passwords, connection: Connection, ada: User
) -> None:
    accounts = limited(users, passwords, connection, per_login=2)
    home, phone, elsewhere = "192.0.2.1", "2001:db8::7", "198.51.100.1"
    assert await accounts.authenticate("ada", SECRET, address=home) == ada
    assert await accounts.authenticate("ada", "wrong", address=elsewhere) is None
    for address in (elsewhere, phone, None):
        with pytest.raises(RateLimited):
            await accounts.authenticate("Ada", SECRET, address=address)
    assert await accounts.authenticate("ADA", SECRET, address=home) == ada
    # The attempts of a thief in the same house are limited, too.
    assert await accounts.authenticate("ada", "wrong", address=home) is None
    with pytest.raises(RateLimited):
        await accounts.authenticate("ada", SECRET, address=home)


async def test_wrong_password_and_another_login_make_no_address_known(
    users: Users, passwords: Passwords, connection: Connection, ada: User
) -> None:
    accounts = limited(users, passwords, connection, per_login=2)
    await accounts.register("bob@example.org", "bob", SECRET)
    assert await accounts.authenticate("bob", SECRET, address="192.0.2.1") is not None
    for _ in range(2):
        assert await accounts.authenticate("ada", "wrong", address="192.0.2.1") is None
    with pytest.raises(RateLimited):
        await accounts.authenticate("ada", SECRET, address="192.0.2.1")


@pytest.mark.parametrize(
    "addresses",
    [
        ["2001:db8::1", "2001:db8::2", "2001:0DB8:0:0:ffff::"],
        ["192.0.2.9", "::ffff:192.0.2.9", "::ffff:c000:209"],
        ["fe80::1%eth0", "fe80::2%1", "fe80::1"],
        ["::ffff:192.0.2.9%lo", "192.0.2.9", "::ffff:192.0.2.9"],
    ],
)
async def test_forms_of_an_address_and_of_its_network_share_a_limit(
    users: Users, passwords: Passwords, connection: Connection, addresses: list[str]
) -> None:
    accounts = limited(users, passwords, connection, per_address=2)
    for address in addresses[:2]:
        assert await accounts.authenticate("nobody", SECRET, address=address) is None
    with pytest.raises(RateLimited):
        await accounts.authenticate("somebody", SECRET, address=addresses[2])
    assert await accounts.authenticate("somebody", SECRET, address="2001:db8:0:1::1") is None


@pytest.mark.parametrize("address", ["", "a proxy", "::%", "192.0.2.9:443", "\ud800", "1" * 5_000, 7])
async def test_text_that_is_not_an_address_is_refused(
    users: Users, passwords: Passwords, connection: Connection, address: str
) -> None:
    accounts = limited(users, passwords, connection)
    with pytest.raises(Invalid, match=r"^address: must be"):
        await accounts.authenticate("nobody", SECRET, address=address)


async def test_login_works_without_redis(
    users: Users, passwords: Passwords, own_server: Server, ada: User
) -> None:
    connection = Connection(replace(own_server.settings, deadline_seconds=0.5))
    await connection.start()
    accounts = limited(users, passwords, connection, per_login=1)
    own_server.kill()
    for _ in range(3):
        assert await accounts.authenticate("ada", SECRET, address="192.0.2.1") is not None
        assert await accounts.authenticate("ada", "wrong", address="192.0.2.1") is None
    await connection.close()


async def test_login_waits_once_for_a_redis_that_does_not_answer(
    users: Users, passwords: Passwords, own_server: Server, ada: User
) -> None:
    class Counted(Connection):
        asked = 0

        def execute(
            self, *parts: Part, deadline_seconds: float | None = None, writes: bool = True
        ) -> asyncio.Future[Reply]:
            self.asked += 1
            return super().execute(*parts, deadline_seconds=deadline_seconds, writes=writes)

    connection = Counted(own_server.settings)
    await connection.start()
    accounts = limited(users, passwords, connection, per_login=1)
    own_server.freeze()
    assert await accounts.authenticate("ada", SECRET, address="192.0.2.1") is not None
    assert connection.asked == 1
    assert await accounts.authenticate("ada", SECRET) is not None
    assert connection.asked == 2
    await connection.close()


async def test_logins_above_the_limit_of_waiting_passwords_are_unavailable(
    users: Users, connection: Connection, ada: User
) -> None:
    passwords = Passwords(cost=10, threads=1, max_waiting=10)
    accounts = limited(users, passwords, connection)
    outcomes = await asyncio.gather(
        *(accounts.authenticate("ada", SECRET) for _ in range(40)), return_exceptions=True
    )
    served = [outcome for outcome in outcomes if outcome == ada]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
    assert len(served) >= 10
    assert len(served) + len(refused) == 40
    await passwords.close()


async def test_password_hash_and_login_appear_in_no_log_or_error(
    accounts: Accounts, users: Users, connection: Connection, ada: User, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    full = Passwords(cost=10)
    full._max_waiting = 0
    printed: list[str] = [repr(ada), repr(await accounts.authenticate("ada", SECRET, address="192.0.2.1"))]
    for attempt in (
        accounts.register("ada@example.org", "other", SECRET),
        accounts.register("other@example.org", "other", SECRET + "x" * 72),
        accounts.register("other@example.org", "other", SECRET + "\ud800"),
        limited(users, full, connection).authenticate("ada", SECRET),
    ):
        with pytest.raises((Conflict, Invalid, Unavailable)) as refusal:
            await attempt
        printed.extend(traceback.format_exception(refusal.value))
    printed.extend(record.getMessage() for record in caplog.records)
    printed.extend(key.decode() for key in as_bytes_list(await connection.execute("KEYS", "*")))
    everything = "\n".join(printed)
    assert "horse" not in everything
    assert "$2b$" not in everything
    assert "192.0.2.1" not in everything
    assert not any(re.search(r"\bada\b", key) for key in printed[-2:])  # it may be a part of a hash


async def test_password_hash_login_and_address_are_not_sent_to_redis(
    accounts: Accounts, servers: Settings, connection: Connection, ada: User
) -> None:
    async with monitored(servers.redis, connection) as commands:
        await accounts.register("bob@example.org", "Bob", SECRET)
        for login in ("ada@example.org", "Bob", "nobody@example.org"):
            for password in (SECRET, SECRET + "x"):
                await accounts.authenticate(login, password, address="192.0.2.1")
    assert b"limit:login:" in commands
    for secret in (b"horse", b"$2b$", b"example.org", b"nobody", b"192.0.2.1"):
        assert secret not in commands


def test_repr_of_credentials_hides_the_hash(ada: User) -> None:
    assert "$2b$" not in repr(Credentials(ada.id, "$2b$10$" + "." * 53))


async def test_application_can_pass_a_limit_of_its_own(
    users: Users, passwords: Passwords, connection: Connection, ada: User
) -> None:
    """A limit is any function from a key to a verdict."""
    asked: list[str] = []

    async def refuse(key: str) -> RateLimitResult:
        asked.append(key)
        return RateLimitResult(allowed=False, remaining=0, retry_after_seconds=7)

    known = KnownNetworks(connection)
    accounts = Accounts(users, passwords, per_login=refuse, per_address=refuse, known=known)
    with pytest.raises(RateLimited, match="possible in 7 s"):
        await accounts.authenticate("ADA@example.org", SECRET, address="2001:db8::1")
    with pytest.raises(RateLimited):
        await accounts.authenticate("ADA@example.org", SECRET)
    assert asked == ["2001:0db8:0000:0000", "ada@example.org"]
