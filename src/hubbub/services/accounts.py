"""Accounts: registration, login with a limited number of attempts, and change of passwords."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import Final, TypeAlias
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid, NotFound, RateLimited, Unavailable
from hubbub.models import Credentials, RateLimitResult, User
from hubbub.passwords import Passwords
from hubbub.postgres import key_of_account
from hubbub.redis import Connection
from hubbub.redis.replies import Part
from hubbub.repositories import Users

Limit: TypeAlias = Callable[[str], Awaitable[RateLimitResult]]
"""Called with the login or address of an attempt. Returns whether it is allowed."""

CHECKS: Final = 2
"""How many hashes a password is checked against. A concurrent login may have renewed the first."""

KNOWN_SECONDS: Final = 30 * 86_400
"""How long the network of a login that succeeded is remembered: longer than most users stay away."""

KNOWN_WITHIN_SECONDS: Final = 0.5
"""How long a login waits for Redis to report whether its network is known, as for the limits."""

READS_SECONDS: Final = 1.0
"""The time before the deadline of a login that is left for the reads after the renewal of a hash."""


class KnownNetworks:
    """The networks from which each login has succeeded lately, in Redis. Without Redis there are none."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def has(self, login: str, network: str) -> bool:
        """Whether the login has succeeded from this network. Raises: Unavailable."""
        return await self._execute("GET", _known_key(login, network), writes=False) is not None

    async def add(self, login: str, network: str) -> None:
        """The login has succeeded from this network."""
        with suppress(Unavailable):
            await self._execute("SET", _known_key(login, network), "1", "EX", KNOWN_SECONDS)

    async def _execute(self, *words: Part, writes: bool = True) -> object:
        return await self._connection.execute(*words, deadline_seconds=KNOWN_WITHIN_SECONDS, writes=writes)


def _known_key(login: str, network: str) -> str:
    digest = sha256(f"{network}\0{login}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"limit:known:{digest}"


class Accounts:
    """Finds the user of a login and a password. Passwords and their hashes never leave it.

    `per_login` and `per_address` limit attempts. They should allow all attempts while Redis is down, or else no
    user could log in. Guesses per second are still bounded then, by the few threads that check passwords.

    Attempts from a network that is `known`, because the login has succeeded from it, have a limit of their own. So
    attempts from other networks cannot lock the owner out.
    """

    def __init__(
        self,
        users: Users,
        passwords: Passwords,
        *,
        per_login: Limit,
        per_address: Limit,
        known: KnownNetworks,
    ) -> None:
        self._users = users
        self._known = known
        self._passwords = passwords
        self._per_login = per_login
        self._per_address = per_address

    async def register(
        self, email: str | None, username: str, password: str, *, display_name: str | None = None
    ) -> User:
        """`Hub.register`."""
        email, username = None if email is None else inputs.email(email), inputs.username(username)
        display_name = inputs.display_name(display_name)
        password_hash = await self._passwords.hash(password)
        return await self._users.create(email, username, password_hash, display_name=display_name)

    async def authenticate(
        self, login: str, password: str, *, address: str | None = None, deadline: float | None = None
    ) -> User | None:
        """`Hub.authenticate`. The time does not depend on whether the login exists.

        Attempts are limited for each login and each address (of IPv6, each network of 64 bits), and for a login
        from a known network. `RateLimited` has the seconds to wait, and is raised whether or not the login exists.
        A hash that is cheaper than those of today is renewed, if `deadline`, in the time of the event loop, leaves
        time for it.

        After changing a password that was stolen, end all sessions once more when the logins in progress are over.
        The change does not end the sessions that callers create from the results of these.
        """
        name = canonical_login(login)
        network = None if address is None else _network(address)
        is_limited = await self._count(name, network)
        keys = [f"{kind} {key}" for kind, key in (("login", name), ("address", network)) if key is not None]
        credentials = None if name is None else await self._users.find_credentials(login)
        for _ in range(CHECKS):
            is_right = await self._passwords.verify(
                password, None if credentials is None else credentials.password_hash, keys=keys
            )
            if not is_right or credentials is None:
                return None
            checked = await self._renewed(credentials, password, keys, deadline)
            try:
                user = await self._users.get(checked.user_id)
            except NotFound:  # deleted in the meantime
                return None
            # Last, and only after a right password, or else the time would reveal which logins exist.
            credentials = await self._users.find_credentials(login)
            if credentials == checked:
                if is_limited and name is not None and network is not None:
                    await self._known.add(name, network)
                return user
        return None

    async def _count(self, name: str | None, network: str | None) -> bool:
        """Count the attempt. False after Redis did not answer, so that further checks do not wait for it.

        Raises: RateLimited.
        """
        # The address comes first because attempts that it refuses must not use up those of the owner of the login.
        if network is not None and not _is_counted(await self._per_address(network)):
            return False
        if name is None:
            return True
        # By login, not by user, because two logins with a common limit would be recognized as those of one user.
        subject = name
        if network is not None:
            try:
                if await self._known.has(name, network):
                    subject = f"{network}\0{name}"  # no login has a NUL
            except Unavailable:
                return False
        return _is_counted(await self._per_login(subject))

    async def change_password(self, user_id: UUID, password: str) -> None:
        """Set the password of the account. Raises: NotFound."""
        await self._users._check_not_locked(key_of_account(inputs.uuid("user_id", user_id)))
        keys = [f"user {user_id}"]
        await self._users.change_password_hash(user_id, await self._passwords.hash(password, keys=keys))

    async def _renewed(
        self, credentials: Credentials, password: str, keys: Collection[str], deadline: float | None
    ) -> Credentials:
        """The credentials, with a new hash if theirs was cheap and no concurrent call has changed it.

        A login succeeds even if this fails or takes too long. The next login tries again.
        """
        is_cheap = self._passwords.needs_rehash(credentials.password_hash)
        if not is_cheap or self._users._is_locked_by_caller(credentials.user_id):
            return credentials
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout_at(None if deadline is None else deadline - READS_SECONDS):
                renewed = Credentials(credentials.user_id, await self._passwords.hash(password, keys=keys))
                await self._users.renew_password_hash(
                    renewed.user_id, renewed.password_hash, instead_of=credentials.password_hash
                )
                return renewed
        return credentials


def _is_counted(verdict: RateLimitResult) -> bool:
    if not verdict.allowed:
        raise RateLimited(verdict.retry_after_seconds)
    return not verdict.degraded


def canonical_login(login: str) -> str | None:
    """One form for all spellings that find the same user. None for text that cannot be a login."""
    try:
        return inputs.login_key(inputs.text("login", login, longest=inputs.EMAIL_LENGTH))
    except Invalid:
        return None


def _network(address: str) -> str:
    """The form of an address whose attempts are counted. A client with one IPv6 address has a whole network.

    The zone of a scoped address is left out. It names an interface of this machine and not of the client.
    """
    if not isinstance(address, str):
        raise Invalid("address", "must be text")
    try:
        parsed = ip_address(address)
    except ValueError:
        raise Invalid("address", "must be an IP address") from None
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    parsed = IPv6Address(int(parsed))
    return str(parsed.ipv4_mapped or parsed.exploded[:19])
