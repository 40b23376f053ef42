"""Registering and logging in: users, their passwords, and how often one may try."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, TypeAlias
from unicodedata import normalize

from hubbub import inputs
from hubbub.errors import Invalid, NotFound, RateLimited, Unavailable
from hubbub.models import Credentials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from hubbub.models import User, Verdict
    from hubbub.passwords import Passwords
    from hubbub.repositories import Users

Limit: TypeAlias = "Callable[[str], Awaitable[Verdict]]"
"""Asked with whom or what the attempt is for; says whether it may be made."""

CHECKS: Final = 2
"""How many hashes a password is checked against. A second one is there when a login beside renewed the first."""

READS_SECONDS: Final = 1.0
"""What is kept of the time of a login for the reads after the renewal of a hash."""

DOT_ABOVE: Final = "\N{COMBINING DOT ABOVE}"
DOTLESS_I: Final = "\N{LATIN SMALL LETTER DOTLESS I}"


class Accounts:
    """Turns a login and a password into a user. Passwords and their hashes never leave it.

    `per_login` and `per_address` limit attempts. They should let all pass while Redis is down, as a limit that
    cannot be asked would lock everybody out; the few threads that check passwords go on to bound how many
    guesses a second can be made.
    """

    def __init__(self, users: Users, passwords: Passwords, *, per_login: Limit, per_address: Limit) -> None:
        self._users = users
        self._passwords = passwords
        self._per_login = per_login
        self._per_address = per_address

    async def register(self, email: str, username: str, password: str) -> User:
        """Make an account.

        Raises `Invalid` for an email, username or password that is malformed, before a hash is computed;
        `Conflict` for an email or username that is taken in any case; `Unavailable`.
        """
        email, username = inputs.email(email), inputs.username(username)
        return await self._users.create(email, username, await self._passwords.hash(password))

    async def authenticate(
        self, login: str, password: str, *, address: str | None = None, deadline: float | None = None
    ) -> User | None:
        """The user with this email or username, in any case, and this password; None when there is none such.

        It takes as long for a login that nobody has as for a wrong password. `address` is that of the client:
        attempts are limited for each login and each address (of IPv6, each network of 64 bits), and the one too
        many raises `RateLimited` with the seconds to wait, whether or not the login exists. A hash that is
        cheaper than those made today is renewed on the way, if there is time for it until `by`, in the time of the
        event loop. Raises `Unavailable`.

        A password that is changed while it is checked is wrong. A session that the caller makes of the answer is
        not covered: a change just before it ends the sessions that exist at that time. Whoever changes a password
        that a thief knows ends all sessions once more when the logins that were under way are over.
        """
        name = known_as(login)
        # The address first: one that is refused must not use up what the owner of the login may try.
        if address is not None:
            _let_pass(await self._per_address(_network(address)))
        # By login rather than by user: else two logins that share a limit would be seen to be of one person.
        if name is not None:
            _let_pass(await self._per_login(name))
        credentials = None if name is None else await self._users.find_credentials(login)
        for _ in range(CHECKS):
            password_hash = None if credentials is None else credentials.password_hash
            if not await self._passwords.verify(password, password_hash) or credentials is None:
                return None
            checked = await self._renewed(credentials, password, deadline)
            try:
                user = await self._users.get(checked.user_id)
            except NotFound:  # deleted meanwhile
                return None
            # Last, and after a right password only: else the time would tell which logins exist.
            credentials = await self._users.find_credentials(login)
            if credentials == checked:
                return user
        return None

    async def change_password(self, user_id: UUID, password: str) -> None:
        """Give the account another password. Raises `Invalid`, `NotFound`, `Unavailable`."""
        await self._users.change_password_hash(user_id, await self._passwords.hash(password))

    async def _renewed(self, credentials: Credentials, password: str, deadline: float | None) -> Credentials:
        """What the credentials are now, unless somebody else changed them: with a new hash if theirs was cheap.

        What goes wrong here, or takes too long, fails no login that succeeded: the next one tries again.
        """
        if not self._passwords.needs_rehash(credentials.password_hash):
            return credentials
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout_at(None if deadline is None else deadline - READS_SECONDS):
                renewed = Credentials(credentials.user_id, await self._passwords.hash(password))
                await self._users.renew_password_hash(
                    renewed.user_id, renewed.password_hash, instead_of=credentials.password_hash
                )
                return renewed
        return credentials


def _let_pass(verdict: Verdict) -> None:
    if not verdict.allowed:
        raise RateLimited(verdict.retry_after_seconds)


def known_as(login: str) -> str | None:
    """One form for all spellings that may find the same user; None for what nobody can be called.

    Which spellings do is for the database's `lower` to say, by its locale: in Turkish the small form of I has no
    dot, elsewhere İ is a capital of i, and Lithuanian writes the dot under an accent. A form that told two of them
    apart would give each its own attempts, so this one has neither dots above nor the i without. That żeta shares
    the attempts of zeta costs little. Letters are taken apart first, for the dot that stands before an accent. A
    name of nothing but dots is its own form, as no `lower` changes it.
    """
    try:
        name = inputs.email(login) if isinstance(login, str) and "@" in login else inputs.username(login)
    except Invalid:
        return None
    return normalize("NFD", name).casefold().replace(DOT_ABOVE, "").replace(DOTLESS_I, "i") or name


def _network(address: str) -> str:
    """What to count an address as: who has one address of IPv6 has a network of them."""
    if not isinstance(address, str):
        raise Invalid("address", "must be text")
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or parsed.exploded[:19])
