"""Registering and logging in: users, their passwords, and how often one may try."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, TypeAlias

from hubbub import inputs
from hubbub.errors import Invalid, NotFound, RateLimited, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from hubbub.models import Credentials, User, Verdict
    from hubbub.passwords import Passwords
    from hubbub.repositories import Users

Limit: TypeAlias = "Callable[[str], Awaitable[Verdict]]"
"""Asked with whom or what the attempt is for; says whether it may be made."""


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
        self, login: str, password: str, *, address: str | None = None, by: float | None = None
    ) -> User | None:
        """The user with this email or username, in any case, and this password; None when there is none such.

        It takes as long for a login that nobody has as for a wrong password. `address` is that of the client:
        attempts are limited for each login and each address (of IPv6, each network of 64 bits), and the one too
        many raises `RateLimited` with the seconds to wait, whether or not the login exists. A hash that is
        cheaper than those made today is renewed on the way, if there is time for it until `by`, in the time of the
        event loop. Raises `Unavailable`.
        """
        known_as = _known_as(login)
        # The address first: one that is refused must not use up what the owner of the login may try.
        if address is not None:
            _let_pass(await self._per_address(_network(address)))
        # By login rather than by user: else two logins that share a limit would be seen to be of one person.
        if known_as is not None:
            _let_pass(await self._per_login(known_as))
        credentials = None if known_as is None else await self._users.find_credentials(login)
        password_hash = None if credentials is None else credentials.password_hash
        if not await self._passwords.verify(password, password_hash) or credentials is None:
            return None
        try:
            user = await self._users.get(credentials.user_id)
        except NotFound:  # deleted meanwhile
            return None
        if self._passwords.needs_rehash(credentials.password_hash):
            await self._renew(credentials, password, by)
        return user

    async def change_password(self, user_id: UUID, password: str) -> None:
        """Give the account another password. Raises `Invalid`, `NotFound`, `Unavailable`."""
        await self._users.change_password_hash(user_id, await self._passwords.hash(password))

    async def _renew(self, credentials: Credentials, password: str, by: float | None) -> None:
        """What goes wrong here, or takes too long, fails no login that succeeded: the next one tries again."""
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout_at(by):
                password_hash = await self._passwords.hash(password)
                await self._users.renew_password_hash(
                    credentials.user_id, password_hash, instead_of=credentials.password_hash
                )


def _let_pass(verdict: Verdict) -> None:
    if not verdict.allowed:
        raise RateLimited(verdict.retry_after_seconds)


def _known_as(login: str) -> str | None:
    """One form for all spellings that find the same user; None for what nobody can be called."""
    try:
        name = inputs.email(login) if isinstance(login, str) and "@" in login else inputs.username(login)
    except Invalid:
        return None
    return name.casefold()


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
