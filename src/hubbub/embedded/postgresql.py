"""PostgreSQL in a folder."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT

from hubbub.embedded import disk
from hubbub.embedded.binaries import PostgresPrograms, find_postgresql
from hubbub.embedded.folder import Place
from hubbub.embedded.process import Process
from hubbub.errors import Unavailable
from hubbub.postgres import connect
from hubbub.settings import PostgresSettings

DATABASE = "chatapp"
USER = "chatuser"
INITDB_SECONDS = 120
ANSWER_SECONDS = 1

# The owner of the database may make further databases, for tests each their own, and is nothing more: whatever
# works here works on a server that somebody else looks after.
FIRST_STATEMENTS = """
CREATE ROLE {user} LOGIN CREATEDB PASSWORD '{password}';

CREATE DATABASE {database} OWNER {user};

"""


class PostgreSQL:
    """The PostgreSQL of a folder: its data directory and its one process at a time."""

    title = "PostgreSQL"
    # Fast shutdown; if it takes too long the immediate one, from which the next start recovers.
    stop_signals = ((SIGINT, 30.0), (SIGQUIT, 10.0), (SIGKILL, 5.0))

    def __init__(self, place: Place, *, fsync: bool = True) -> None:
        self._place = place
        self._fsync = fsync
        self.data = place.folder / "postgresql"
        self.process = Process(self.title, "postgresql", place)

    def settings(self, port: int) -> PostgresSettings:
        """How to log in. Without TLS: the server listens on the loopback interface alone."""
        return PostgresSettings(
            host="127.0.0.1",
            port=port,
            database=DATABASE,
            user=USER,
            password=self._place.passwords.postgresql,
            sslmode="disable",
        )

    async def version(self, port: int) -> str | None:
        """What the server on that port says it is, for instance "18.6"; None unless it is ours and serves."""
        try:
            connection = await connect(self.settings(port), within_seconds=ANSWER_SECONDS)
        except Unavailable:
            return None
        version = connection.get_server_version()
        connection.terminate()  # without the farewell, which a server that hangs would not return
        return f"{version.major}.{version.micro}"  # asyncpg reads 18.6 as 18.0.6

    async def prepare(self) -> Callable[[int], list[str]]:
        """The command that starts the server on a port, once there is a data directory to start it on.

        A data directory gets its name only when it is complete, with role and database in it: what is found
        under that name was never interrupted in the making. Raises Unavailable.
        """
        programs = await asyncio.to_thread(find_postgresql, self._place.account, self._data_major())
        if not self.data.exists():
            await self._make_data(programs)
        self._forget_killed_server()
        durable = "on" if self._fsync else "off"
        fixed = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "logging_collector": "off",  # standard error, which is the log file
            "fsync": durable,
            "synchronous_commit": durable,
            "full_page_writes": durable,
        }
        return lambda port: [
            *(str(programs.postgres), "-D", str(self.data)),
            *(f"--{name}={value}" for name, value in {**fixed, "port": str(port)}.items()),
        ]

    def _data_major(self) -> int | None:
        try:
            return int((self.data / "PG_VERSION").read_text(encoding="ascii"))
        except FileNotFoundError:
            return None

    def _forget_killed_server(self) -> None:
        """Removes the pid file of a server of ours that was killed.

        PostgreSQL takes a pid file for that of a running server as long as the pid exists, as a zombie that the
        first process of a container never reaps, or as another process. We know better where the pid is the one
        that held our lock last: the lock is free, so that server and all its processes are gone. A pid file of
        anyone else stays, and PostgreSQL heeds it.
        """
        pid_file = self.data / "postmaster.pid"
        holder = self.process.holder()
        if holder is None or self.process.is_alive() or not pid_file.exists():
            return
        if pid_file.read_text(encoding="utf-8").partition("\n")[0] == str(holder.pid):
            pid_file.unlink()

    async def _make_data(self, programs: PostgresPrograms) -> None:
        unfinished = self.data.with_name("postgresql.new")
        password_file = self.data.with_name("postgresql.password")
        superuser = self._place.passwords.postgresql_superuser.encode()
        await asyncio.to_thread(_start_afresh, unfinished)
        disk.private_folder(unfinished, self._place.account)
        try:
            await asyncio.to_thread(disk.write_private, password_file, superuser, self._place.account)
            await self.process.run(
                [
                    *(str(programs.initdb), "-D", str(unfinished), "--username=postgres", "--encoding=UTF8"),
                    "--no-instructions",
                    *("--auth=scram-sha-256", f"--pwfile={password_file}", *_locale(programs.major)),
                    *([] if self._fsync else ["--no-sync"]),
                ],
                folder=unfinished,
                seconds=INITDB_SECONDS,
            )
        finally:
            password_file.unlink(missing_ok=True)
        # In single-user mode, so that no half-made server ever listens. -j ends a statement at an empty line.
        await self.process.run(
            [
                *(str(programs.postgres), "--single", "-j", "-D", str(unfinished)),
                # Or it would go on after an error, and log the statement with the password in it.
                *("-c", "exit_on_error=true", "-c", "log_min_error_statement=panic", "template1"),
            ],
            folder=unfinished,
            seconds=INITDB_SECONDS,
            text=FIRST_STATEMENTS.format(user=USER, database=DATABASE, password=self._place.passwords.postgresql),
        )
        unfinished.rename(self.data)
        await asyncio.to_thread(disk.sync_folder, self.data.parent)


def _start_afresh(unfinished: Path) -> None:
    """Removes what an initdb that was interrupted left: it has never been a database."""
    if unfinished.exists():
        shutil.rmtree(unfinished)


def _locale(major: int) -> list[str]:
    """The same order and case everywhere: by code point, and by Unicode. Built in from 17 on."""
    if major >= 17:
        return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--locale=C.UTF-8"]
