"""The folder in which the servers of one project keep everything they have.

    .hubbub/
      .gitignore         for all of it: neither passwords nor data belong in a repository
      passwords.json     written before there are data, deleted after them: data without passwords are not ours
      commands.lock      held by whoever starts or stops servers here, while it does so
      owner.lock         held by a `Servers` from start to stop
      postgresql/        the data directory of PostgreSQL
      postgresql.lock    held by the server
      postgresql.log     what the server says
      valkey/
      valkey.conf
      valkey.lock
      valkey.log

All of it is private to one user: the folder 0700, secrets 0600. As root the servers run as another account, which
has to reach its data: the folder then is 0710 with the group of that account, the data directories belong to the
account, and all else belongs to root and stays unreadable. Where the account cannot come as far as the folder
(below /root, say), no right of any folder above is changed, and the data are no place else: the servers are handed
the folder as an open descriptor, and find it as /proc/self/fd/N.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hubbub.embedded import disk, locks
from hubbub.embedded.account import Account, servers_account
from hubbub.errors import Unavailable

COMMAND_SECONDS = 150
"""How long to wait for another command in the same folder: for one that starts and one that stops."""

NAMES = frozenset(
    {
        ".gitignore",
        "commands.lock",
        "owner.lock",
        "passwords.json",
        "passwords.json.new",
        "postgresql",
        "postgresql.lock",
        "postgresql.new",
        "postgresql.log",
        "postgresql.password",
        "postgresql.password.new",
        "valkey",
        "valkey.conf",
        "valkey.conf.new",
        "valkey.lock",
        "valkey.log",
    }
)

NAMES_BEFORE_PASSWORDS = frozenset({".gitignore", "commands.lock", "passwords.json.new"})
"""All that is ours in a folder before it has passwords and after they are deleted, wherever that broke off."""


@dataclass(frozen=True, slots=True)
class Passwords:
    """The secrets of a folder's servers, made once."""

    postgresql: str = field(repr=False)
    postgresql_superuser: str = field(repr=False)
    valkey: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that has been set up, without a symbolic link in its path. `account` is None for our own user.

    `must_be_handed` says that the account cannot come as far as the folder by its path.
    """

    folder: Path
    passwords: Passwords
    account: Account | None
    must_be_handed: bool


class Folder:
    """The folder at `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def place(self) -> Place | None:
        """What was set up here; None when nothing was. Raises Unavailable when it is not ours or not readable."""
        try:
            content = (self.path / "passwords.json").read_bytes()
            passwords = msgspec.json.decode(content, type=Passwords)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise self._refused("belongs to another user: its servers are theirs to start and stop") from None
        except msgspec.DecodeError as error:
            raise self._refused(f"has a passwords.json that cannot be read ({error}): restore it") from error
        self._check_owner()
        return self._place(passwords)

    @asynccontextmanager
    async def command(self) -> AsyncIterator[None]:
        """The right to start and stop servers here; makes the folder if need be.

        Raises Unavailable while a program has servers of its own here, and when the folder holds other things.
        """
        await asyncio.to_thread(self._make)
        lock = await self._lock("commands.lock")
        try:
            if locks.is_held(self.path / "owner.lock"):
                raise self._refused("is in use: a program that runs has servers of its own here", retryable=True)
            yield
        finally:
            lock.release()

    async def own(self) -> locks.Lock:
        """Marks the servers here as ours until the lock is released. Only within `command`."""
        return await self._lock("owner.lock")

    def set_up(self) -> Place:
        """What is set up here, after doing it if need be. Only within `command`. Blocks for some milliseconds."""
        self._admit()
        place = self.place() or self._place(self._make_passwords())
        if place.must_be_handed and sys.platform != "linux":
            raise self._refused("cannot be reached by the account that its servers run as: choose another folder")
        return place

    def delete(self) -> None:
        """Deletes data, passwords and logs. Only within `command`, with no server running. Blocks."""
        # The passwords last but for the locks: data without their passwords would be locked away.
        for names in (NAMES - {"passwords.json", "commands.lock"}, {"passwords.json"}, {"commands.lock"}):
            disk.delete(self.path, frozenset(names))

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        self._check_owner()
        names = {entry.name for entry in self.path.iterdir()}
        if "passwords.json" not in names and names - NAMES_BEFORE_PASSWORDS:
            raise self._refused("holds other things: servers want a folder of their own, new or empty")

    def _check_owner(self) -> None:
        if self.path.stat().st_uid != os.geteuid():
            raise self._refused("belongs to another user: its servers are theirs to start and stop")

    async def _lock(self, name: str) -> locks.Lock:
        lock = await locks.taken(self.path / name, COMMAND_SECONDS)
        if lock is None:
            raise self._refused(
                f"is in use: another hubbub has been busy here for {COMMAND_SECONDS} s", retryable=True
            )
        return lock

    def _place(self, passwords: Passwords) -> Place:
        account = servers_account(self.path / "postgresql")
        folder = self.path.resolve()
        reachable = account is None or account.can_enter(folder)
        return Place(folder, passwords, account, must_be_handed=not reachable)

    def _make_passwords(self) -> Passwords:
        (self.path / ".gitignore").write_text("*\n", encoding="ascii")
        passwords = Passwords(
            postgresql=secrets.token_hex(24),
            postgresql_superuser=secrets.token_hex(24),
            valkey=secrets.token_hex(24),
        )
        disk.write_private(self.path / "passwords.json", msgspec.json.encode(passwords))
        return passwords

    def _admit(self) -> None:
        """Lets the servers' account pass through the folder, and nobody else. It cannot list or change it."""
        account = servers_account(self.path / "postgresql")
        if account is None:
            self.path.chmod(0o700)
            return
        os.chown(self.path, -1, account.gid)
        self.path.chmod(0o710)

    def _refused(self, why: str, *, retryable: bool = False) -> Unavailable:
        return Unavailable("embedded", f"the folder {self.path} {why}", retryable=retryable)
