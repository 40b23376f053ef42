"""The account that the servers run as."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from hubbub.errors import Unavailable

ENTER = 0o1
READ_AND_RUN = 0o5


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged user and its own group, without any other group."""

    name: str
    uid: int
    gid: int

    def can_enter(self, folder: Path) -> bool:
        """Whether this account may pass through the folder and all above it. Access lists are not looked at."""
        return all(self._may(ENTER, one) for one in (folder, *folder.parents))

    def can_run(self, program: Path) -> bool:
        """Whether this account may run the program where it lies. `program` has no symbolic link in it."""
        return self.can_enter(program.parent) and self._may(READ_AND_RUN, program)

    def _may(self, wanted: int, path: Path) -> bool:
        status = path.stat()
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid == self.gid else 0
        return status.st_mode >> shift & wanted == wanted


def servers_account(data: Path) -> Account | None:
    """The account that the servers with these data run as; None: the user that we are.

    PostgreSQL refuses to run as root, and Valkey has no reason to. As root both run as the owner of the data
    where there are data, else as `postgres` if there is such a user, else as `nobody`. The owner comes first
    because a user `postgres` may appear later, when a package is installed, and must not change whose data they
    are. Raises Unavailable where there is neither.
    """
    if os.geteuid() != 0:
        return None
    owner = data.stat() if data.exists() else None
    if owner is not None and owner.st_uid != 0:
        return Account(_name(owner.st_uid), owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise Unavailable(
        "embedded",
        "PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as",
        retryable=False,
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
