"""The folder in which the servers of one project keep their data, and the account that they run as.

    .hubbub/
      .gitignore         for all of it: neither passwords nor data belong in a repository
      passwords.json     written before there are data, and deleted after them
      commands.lock      held by a process while it starts or stops servers here
      owner.lock         held by a `Servers` from start to stop
      postgresql/        the data directory of PostgreSQL
      postgresql.lock    held by the server
      postgresql.log     the output of the server
      valkey/
      valkey.conf
      valkey.lock
      valkey.log

All of it is private to one user: the folder has mode 0700, secrets have 0600. If root starts the servers, they
run as another account, which has to reach its data. Then the folder has mode 0710 and the group of that account,
the data directories belong to the account, and everything else belongs to root and stays unreadable. If the
account cannot reach the folder by its path (below /root, for instance), the rights of the folders above stay as
they are. The servers then inherit the folder as an open descriptor, and open it as /proc/self/fd/N.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hubbub.embedded import locks
from hubbub.errors import Unavailable

COMMAND_SECONDS = 150
"""How long to wait for another command in the same folder: long enough for one start and one stop."""

NAMES = (
    *("postgresql", "postgresql.new", "postgresql.password", "postgresql.password.new", "postgresql.lock"),
    *("valkey", "valkey.conf", "valkey.conf.new", "valkey.lock", "postgresql.log", "valkey.log"),
    *(".gitignore", "owner.lock", "passwords.json.new", "passwords.json", "commands.lock"),
)
"""In the order of their deletion: the passwords after the data, which could not be read without them."""

NAMES_BEFORE_PASSWORDS = frozenset({".gitignore", "commands.lock", "passwords.json.new"})
"""The entries that a folder may have before its passwords are made or after they are deleted."""

OF_ANOTHER_USER = "belongs to another user: only that user may start and stop its servers"


@dataclass(frozen=True, slots=True)
class ServerPasswords:
    """The secrets of a folder's servers, generated once."""

    postgresql: str = field(repr=False)
    postgresql_superuser: str = field(repr=False)
    valkey: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """A folder that is set up. Its path has no symbolic link. `account` is None for the user of this process.

    `needs_descriptor` is True if the account cannot reach the folder by its path.
    """

    path: Path
    passwords: ServerPasswords
    account: Account | None
    needs_descriptor: bool


class Folder:
    """The folder at `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def find(self) -> ServerFolder | None:
        """The folder as it was set up; None when it was not.

        Raises: Unavailable (it belongs to another user, or cannot be read).
        """
        try:
            content = (self.path / "passwords.json").read_bytes()
            passwords = msgspec.json.decode(content, type=ServerPasswords)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise self._refused(OF_ANOTHER_USER) from None
        except msgspec.DecodeError as error:
            raise self._refused(f"has a passwords.json that cannot be read ({error}): restore it") from error
        self._check_owner()
        return self._server_folder(passwords)

    @asynccontextmanager
    async def command(self) -> AsyncIterator[None]:
        """Hold the right to start and stop servers here. Makes the folder if it is missing.

        Raises: Unavailable (a running program has servers of its own here, or the folder holds other files).
        """
        await asyncio.to_thread(self._make)
        lock = await self._lock("commands.lock")
        try:
            if locks.is_held(self.path / "owner.lock"):
                raise self._refused("is in use: a running program has servers of its own here", retryable=True)
            yield
        finally:
            lock.release()

    async def own(self) -> locks.Lock:
        """Reserve the servers here for this process until the lock is released. Only within `command`."""
        return await self._lock("owner.lock")

    def set_up(self) -> ServerFolder:
        """The folder, set up if it was not. Only within `command`. Blocks for some milliseconds."""
        account = servers_account(self.path / "postgresql")
        if account is not None:  # It alone may pass through the folder. It cannot list or change the folder.
            os.chown(self.path, -1, account.gid)
        self.path.chmod(0o700 if account is None else 0o710)
        found = self.find()
        if found is None:
            (self.path / ".gitignore").write_text("*\n", encoding="ascii")
            passwords = ServerPasswords(secrets.token_hex(24), secrets.token_hex(24), secrets.token_hex(24))
            write_private(self.path / "passwords.json", msgspec.json.encode(passwords))
            found = self._server_folder(passwords)
        if found.needs_descriptor and sys.platform != "linux":
            raise self._refused("cannot be reached by the account that its servers run as: choose another folder")
        return found

    def delete(self) -> None:
        """Delete data, passwords and logs. Only within `command`, with no server running. Blocks."""
        for path in (self.path / name for name in NAMES):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: it holds files that are not of the servers
            self.path.rmdir()

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        self._check_owner()
        names = {entry.name for entry in self.path.iterdir()}
        if "passwords.json" not in names and names - NAMES_BEFORE_PASSWORDS:
            raise self._refused("holds other files: choose a new or an empty one with --folder")

    def _check_owner(self) -> None:
        if self.path.stat().st_uid != os.geteuid():
            raise self._refused(OF_ANOTHER_USER)

    async def _lock(self, name: str) -> locks.Lock:
        if (lock := await locks.acquire(self.path / name, COMMAND_SECONDS)) is not None:
            return lock
        why = f"is in use: another hubbub has been busy here for {COMMAND_SECONDS} s"
        raise self._refused(why, retryable=True)

    def _server_folder(self, passwords: ServerPasswords) -> ServerFolder:
        account = servers_account(self.path / "postgresql")
        folder = self.path.resolve()
        needs_descriptor = account is not None and not account.can_enter(folder)
        return ServerFolder(folder, passwords, account, needs_descriptor)

    def _refused(self, why: str, *, retryable: bool = False) -> Unavailable:
        return Unavailable("embedded", f"the folder {self.path} {why}", retryable=retryable)


ENTER = 0o1
READ_AND_RUN = 0o5


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged user and its own group, without any other group."""

    name: str
    uid: int
    gid: int

    def can_enter(self, folder: Path) -> bool:
        """Whether this account may pass through the folder and all above it. Access control lists are ignored."""
        return all(self._may(ENTER, one) for one in (folder, *folder.parents))

    def can_run(self, program: Path) -> bool:
        """Whether this account may run the program at its path, which has no symbolic link."""
        return self.can_enter(program.parent) and self._may(READ_AND_RUN, program)

    def _may(self, wanted: int, path: Path) -> bool:
        status = path.stat()
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid == self.gid else 0
        return status.st_mode >> shift & wanted == wanted


def servers_account(data: Path) -> Account | None:
    """The account that the servers with these data run as; None for the user of this process.

    PostgreSQL refuses to run as root, and Valkey has no reason to. Under root both run as the owner of the data if
    there are any, else as `postgres` if there is such a user, else as `nobody`. The owner comes first, because a
    package that is installed later may add a user `postgres`, which must not become the owner of existing data.
    Raises: Unavailable (there is no such user).
    """
    if os.geteuid() != 0:
        return None
    owner = data.stat() if data.exists() else None
    if owner is not None and owner.st_uid != 0:
        return Account(_name(owner.st_uid), owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    reason = "PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as"
    raise Unavailable("embedded", reason, retryable=False)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def write_private(path: Path, content: bytes, account: Account | None = None) -> None:
    """Write a file that only `account` may read, completely or not at all, and wait until it is on the disk."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if account is not None:
            os.fchown(descriptor, account.uid, account.gid)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    new.rename(path)
    sync_folder(path.parent)


def private_folder(path: Path, account: Account | None) -> None:
    """Make a folder that only `account` may enter. It may exist already."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if account is not None:
        os.chown(path, account.uid, account.gid)


def sync_folder(folder: Path) -> None:
    """Wait until the names in the folder are on the disk, such as that of a renamed file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors_as_unavailable(what: str) -> Iterator[None]:
    """Raise Unavailable for an OSError in the block, such as a full disk or a folder that may not be written."""
    try:
        yield
    except OSError as error:
        raise Unavailable("embedded", f"{what}: {error}", retryable=False) from error
