"""PostgreSQL and Valkey for a laptop and for tests: started and stopped by hubbub, on loopback, with passwords.

`up`, `down`, `status` and `delete_data` are for servers that outlive the command that started them. `Servers` end
with the program.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT, SIGTERM

from hubbub.embedded.folder import (
    Folder,
    ServerFolder,
    os_errors_as_unavailable,
    private_folder,
    sync_folder,
    write_private,
)
from hubbub.embedded.locks import pauses
from hubbub.embedded.process import Process
from hubbub.embedded.programs import PostgresPrograms, find_postgresql, find_valkey
from hubbub.errors import Unavailable
from hubbub.postgres import connect
from hubbub.scheduling import gather_or_cancel
from hubbub.settings import PostgresSettings, RedisSettings, Settings

__all__ = ["FOLDER", "ServerStatus", "Servers", "Status", "delete_data", "down", "find", "status", "up"]

FOLDER = Path(".hubbub")
"""The folder of the servers of `hubbub up`, in the folder that it is called in."""

# `find` runs when an application opens a hub, so it waits for a port of this machine no longer than this.
CONNECT_SECONDS = 0.5

DATABASE = "chatapp"
USER = "chatuser"
# Initializing a data directory takes about a second; this is for a slow disk under load.
INITDB_SECONDS = 120
# A server of this machine that does not answer within a second is not ready.
ANSWER_SECONDS = 1

# The owner of the database may also create databases, one for each test, and has no other right. So code that
# works here also works on a server that an administrator runs.
FIRST_STATEMENTS = """
CREATE ROLE {user} LOGIN CREATEDB PASSWORD '{password}';

CREATE DATABASE {database} OWNER {user};

"""


class PostgreSQL:
    """The PostgreSQL of a folder: its data directory and its one process at a time."""

    title = "PostgreSQL"
    # Fast shutdown; if it takes too long the immediate one, from which the next start recovers.
    stop_signals = ((SIGINT, 30.0), (SIGQUIT, 10.0), (SIGKILL, 5.0))

    def __init__(self, folder: ServerFolder, *, fsync: bool = True) -> None:
        self._folder = folder
        self._fsync = fsync
        self.data = folder.path / "postgresql"
        self.process = Process(self.title, "postgresql", folder)

    def settings(self, port: int) -> PostgresSettings:
        """The settings for this port. Without TLS, because the server listens on the loopback interface only."""
        password = self._folder.passwords.postgresql
        return PostgresSettings(
            host="127.0.0.1", port=port, database=DATABASE, user=USER, password=password, sslmode="disable"
        )

    async def version(self, port: int) -> str | None:
        """The version of the server on that port, for instance "18.6"; None unless it is ours and serves."""
        try:
            connection = await connect(self.settings(port), within_seconds=ANSWER_SECONDS)
        except Unavailable:
            return None
        version = connection.get_server_version()
        connection.terminate()  # not close(), which would wait for a server that hangs
        return f"{version.major}.{version.micro}"  # asyncpg reads 18.6 as 18.0.6

    async def prepare(self) -> Callable[[int], list[str]]:
        """The command that starts the server on a port. Makes the data directory if it is missing.

        A data directory gets its name only when it is complete, with role and database in it. So a directory of
        that name was never interrupted while it was made.
        Raises: Unavailable.
        """
        version = self.data / "PG_VERSION"
        data_major = int(version.read_text(encoding="ascii")) if version.exists() else None
        programs = await asyncio.to_thread(find_postgresql, self._folder.account, data_major)
        if not self.data.exists():
            await self._make_data(programs)
        self._remove_stale_pid_file()
        durable = "on" if self._fsync else "off"
        fixed = [
            *("--listen_addresses=127.0.0.1", "--unix_socket_directories="),
            "--logging_collector=off",  # standard error, which is the log file
            *(f"--{name}={durable}" for name in ("fsync", "synchronous_commit", "full_page_writes")),
        ]
        return lambda port: [str(programs.postgres), "-D", str(self.data), *fixed, f"--port={port}"]

    def _remove_stale_pid_file(self) -> None:
        """Remove the pid file of a server of ours that was killed.

        PostgreSQL takes a pid file for that of a running server as long as the pid exists, even as a zombie that
        the first process of a container never reaps, or as another process. If the pid is the last holder of our
        lock and the lock is free, then that server and all its processes have ended. Any other pid file stays, and
        PostgreSQL refuses to start beside it.
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
        superuser = self._folder.passwords.postgresql_superuser.encode()
        if unfinished.exists():  # from an initdb that was interrupted: it has never been a database
            await asyncio.to_thread(shutil.rmtree, unfinished)
        private_folder(unfinished, self._folder.account)
        # Order by code point, case by Unicode: the same on every machine. Built in from PostgreSQL 17 on.
        built_in = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        locale = built_in if programs.major >= 17 else ["--locale=C.UTF-8"]
        try:
            await asyncio.to_thread(write_private, password_file, superuser, self._folder.account)
            initdb = [
                *(str(programs.initdb), "-D", str(unfinished), "--username=postgres", "--encoding=UTF8"),
                *("--auth=scram-sha-256", f"--pwfile={password_file}", *locale),
                *("--no-instructions", *([] if self._fsync else ["--no-sync"])),
            ]
            await self.process.run(initdb, cwd=unfinished, seconds=INITDB_SECONDS)
        finally:
            password_file.unlink(missing_ok=True)
        # In single-user mode, so that an incomplete server never listens. -j ends a statement at an empty line.
        single_user = [
            *(str(programs.postgres), "--single", "-j", "-D", str(unfinished)),
            # Otherwise it would continue after an error, and log the statement with the password.
            *("-c", "exit_on_error=true", "-c", "log_min_error_statement=panic", "template1"),
        ]
        text = FIRST_STATEMENTS.format(user=USER, database=DATABASE, password=self._folder.passwords.postgresql)
        await self.process.run(single_user, cwd=unfinished, seconds=INITDB_SECONDS, text=text)
        unfinished.rename(self.data)
        await asyncio.to_thread(sync_folder, self.data.parent)


# `dir .` is the data directory, in which the server is started: so no path has to be quoted.
#
# Every write is in the append-only file before it is answered, so a killed server loses nothing. `everysec`
# would be worse: it holds writes back for up to two seconds while the disk is busy. With `no` the system decides
# when the file reaches the disk, so a power cut may lose the last half minute. The log of messages is in
# PostgreSQL.
CONFIGURATION = """\
bind 127.0.0.1
protected-mode yes
requirepass {password}
dir .
save ""
appendonly yes
appendfsync no
"""


class Valkey:
    """The Valkey of a folder: its data directory and its one process at a time."""

    title = "Valkey"
    stop_signals = ((SIGTERM, 30.0), (SIGKILL, 5.0))

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder
        self.data = folder.path / "valkey"
        self.process = Process(self.title, "valkey", folder)

    def settings(self, port: int) -> RedisSettings:
        """The settings for this port. Without TLS, because the server listens on the loopback interface only."""
        return RedisSettings(host="127.0.0.1", port=port, password=self._folder.passwords.valkey)

    async def version(self, port: int) -> str | None:
        """The version of the server on that port, for instance "9.1.2"; None unless it is ours and serves.

        Three plain lines over a socket: hiredis is for redis/ alone, and a connection of redis/ is more than
        this needs. A server that still loads its data does not answer with PONG.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with closing(writer):
                    writer.write(f"AUTH {self._folder.passwords.valkey}\r\nPING\r\nINFO server\r\n".encode())
                    replies = [await reader.readline() for _ in range(3)]
                    if replies[:2] != [b"+OK\r\n", b"+PONG\r\n"] or not replies[2].startswith(b"$"):
                        return None
                    information = await reader.readexactly(int(replies[2][1:]))
        except (OSError, EOFError, ValueError):  # no server, one that just ended, or another program on that port
            return None
        # Valkey also reports the version of Redis that it is compatible with.
        found = re.search(rb"valkey_version:(\S+)", information) or re.search(rb"redis_version:(\S+)", information)
        return found[1].decode() if found else None

    async def prepare(self) -> Callable[[int], list[str]]:
        """The command that starts the server on a port. Writes its configuration. Raises: Unavailable."""
        program = await asyncio.to_thread(find_valkey, self._folder.account)
        private_folder(self.data, self._folder.account)
        configuration = self.data.with_name("valkey.conf")
        text = CONFIGURATION.format(password=self._folder.passwords.valkey)
        await asyncio.to_thread(write_private, configuration, text.encode(), self._folder.account)
        return lambda port: [str(program), str(configuration), "--port", str(port)]


Server = PostgreSQL | Valkey

START_SECONDS = 60
"""How long a server may take until it serves. Recovery after a crash takes longest."""

# Another process may take a port in the instant before the server does. Five times in a row it does not happen.
PORTS_TO_TRY = 5


class ServerPair:
    """PostgreSQL and Valkey of one folder."""

    def __init__(self, folder: ServerFolder, *, fsync: bool = True) -> None:
        self.postgresql = PostgreSQL(folder, fsync=fsync)
        self.valkey = Valkey(folder)
        self.servers: tuple[Server, ...] = (self.postgresql, self.valkey)

    async def start(self, *, detached: bool) -> Settings:
        """Start each server that does not serve yet. If one cannot be started, no server stays that this started.

        Servers that are not `detached` end with this thread.
        Raises: Unavailable.
        """
        async with AsyncExitStack() as undo:
            ports = await gather_or_cancel(_serve(server, undo, detached=detached) for server in self.servers)
            undo.pop_all()
        return self.settings(*ports)

    async def stop(self) -> bool:
        """Stop both. False when none lived. Raises: Unavailable (one cannot be stopped)."""
        stops = (server.process.stop(server.stop_signals) for server in self.servers)
        # Not a TaskGroup, which would give up on one server when the other does not stop.
        results = await asyncio.gather(*stops, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return any(results)

    def settings(self, postgresql_port: int, valkey_port: int) -> Settings:
        postgres, redis = self.postgresql.settings(postgresql_port), self.valkey.settings(valkey_port)
        return Settings(postgres=postgres, redis=redis)


async def _serve(server: Server, undo: AsyncExitStack, *, detached: bool) -> int:
    """The port of the server, which is started unless it serves already.

    A server whose owner was killed a moment ago still runs, but must not be used. This waits for its end.
    """
    process = server.process
    for pause in pauses(START_SECONDS):
        if not process.is_alive():
            undo.push_async_callback(process.stop, server.stop_signals)
            return await start_server(server, detached=detached)
        holder = process.holder()
        usable = holder is not None and (holder.detached if detached else process.is_ours())
        if holder is not None and usable and await server.version(holder.port):
            return holder.port
        await asyncio.sleep(pause)
    raise process.failure(f"{server.title} runs but does not answer (`hubbub down` stops it)")


async def start_server(server: Server, *, detached: bool) -> int:
    """Start the server, and return its port once it answers. Raises: Unavailable."""
    former = server.process.holder()
    command = await server.prepare()
    for port in _ports(former.port if former else 0):
        death_signal = None if detached else server.stop_signals[0][0]
        await server.process.launch(command(port), cwd=server.data, port=port, death_signal=death_signal)
        if await _serves(server, port):
            return port
        # Another process may have taken the port meanwhile.
        if "Address already in use" not in server.process.new_log():
            raise server.process.failure(f"{server.title} ended while starting")
    raise server.process.failure(f"{server.title} found no free port")


async def _serves(server: Server, port: int) -> bool:
    """True once the server answers, False if it ends instead."""
    for pause in pauses(START_SECONDS):
        if await server.version(port):
            return True
        if not server.process.is_alive():
            return False
        await asyncio.sleep(pause)
    raise server.process.failure(f"{server.title} did not answer within {START_SECONDS} s")


def _ports(former: int) -> Iterator[int]:
    """Ports of the loopback interface that are free now. The former one comes first, so that addresses stay."""
    with suppress(OSError):
        yield free_port(former)
    for _ in range(PORTS_TO_TRY):
        yield free_port()


def free_port(wanted: int = 0) -> int:
    """A port of the loopback interface that is free now: the wanted one, or any. Raises OSError if it is taken."""
    with socket.socket() as probe:
        if wanted:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        probe.bind(("127.0.0.1", wanted))
        port: int = probe.getsockname()[1]
        return port


class Servers:
    """PostgreSQL and Valkey that end with this process at the latest.

        async with Servers(Path("chat-servers")) as settings:
            ...

    `folder` is new, empty or from an earlier run, and has one owner at a time. Data, passwords and logs stay in it
    when the servers stop, and the next start uses them again, even after owner or servers were killed. With
    `fsync=False` no write waits for the disk: this is fast, but a power cut may lose the data. It is for tests.

    On Linux the servers stop when the thread that started them ends, in whatever way. On other systems the
    servers of a killed owner run until `hubbub down --folder ...`.
    """

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        self._folder = Folder(folder)
        self._fsync = fsync
        self._pair: ServerPair | None = None
        self._stack = AsyncExitStack()
        self._turn = asyncio.Lock()

    async def start(self) -> Settings:
        """Start each server that does not run yet, and return when both answer.

        It may be called again at any time: it checks the servers, and restarts one that has died. The first start
        in a folder also makes the data.
        Raises: Unavailable (then no server is left that this call started).
        """
        async with self._turn:
            with os_errors_as_unavailable("cannot start servers"):
                if self._pair is not None:
                    return await self._pair.start(detached=False)
                return await self._take_and_start()

    async def stop(self) -> None:
        """Stop the servers in order and keep their data. Does nothing when none run.

        Raises: Unavailable (one cannot be stopped).
        """
        async with self._turn:
            self._pair = None
            await self._stack.aclose()

    async def __aenter__(self) -> Settings:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _take_and_start(self) -> Settings:
        async with self._folder.command(), AsyncExitStack() as stack:
            pair = ServerPair(await asyncio.to_thread(self._folder.set_up), fsync=self._fsync)
            holders = [server.process.living_holder() for server in pair.servers]
            if any(holder and holder.detached for holder in holders):
                reason = f"the servers of `hubbub up` run in {self._folder.path}: use them, or `hubbub down` first"
                raise Unavailable("embedded", reason, retryable=False)
            ownership = await self._folder.own()
            stack.callback(ownership.release)
            settings = await pair.start(detached=False)
            stack.push_async_callback(pair.stop)
            self._pair, self._stack = pair, stack.pop_all()
            return settings


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server: `version` and `port` are None unless it answers, with the folder's password."""

    title: str
    version: str | None
    port: int | None
    alive: bool
    log: Path


@dataclass(frozen=True, slots=True)
class Status:
    """The servers of a folder. `settings` is None unless both answer; `servers` is empty if none ever ran."""

    folder: Path
    servers: tuple[ServerStatus, ...]
    settings: Settings | None


async def up(folder: Path) -> Settings:
    """Start the servers of this folder unless they run, and leave them running.

    The first call makes the folder, passwords and data.
    Raises: Unavailable (then no server is left that this call started).
    """
    ours = Folder(folder)
    with os_errors_as_unavailable("cannot start servers"):
        async with ours.command():
            return await ServerPair(await asyncio.to_thread(ours.set_up)).start(detached=True)


async def down(folder: Path) -> bool:
    """Stop the servers of this folder and keep their data. False when none ran.

    Raises: Unavailable (they belong to a running program, or one cannot be stopped).
    """
    with os_errors_as_unavailable("cannot stop servers"):
        return await _end(Folder(folder), delete=False)


async def delete_data(folder: Path) -> bool:
    """Stop the servers of this folder and delete data, passwords and logs permanently. False if there were none.

    Other files in the folder stay.
    Raises: Unavailable (as `down` does).
    """
    with os_errors_as_unavailable("cannot delete the data"):
        return await _end(Folder(folder), delete=True)


async def _end(ours: Folder, *, delete: bool) -> bool:
    if ours.find() is None:
        return False
    async with ours.command():
        found = ours.find()
        stopped = found is not None and await ServerPair(found).stop()
        if delete:
            await asyncio.to_thread(ours.delete)
        return found is not None if delete else stopped


def find(folder: Path) -> Settings | None:
    """The settings of the servers that run in this folder; None if they do not both run, or are another user's.

    It checks two lock files and two ports, and no password, for a caller that is about to connect.
    """
    with suppress(Unavailable):
        if (found := Folder(folder).find()) is not None:
            pair = ServerPair(found)
            return _settings(pair, [_listening_port(server) for server in pair.servers])
    return None


async def status(folder: Path) -> Status:
    """The status of the servers of this folder. Starts and makes nothing.

    Raises: Unavailable (the folder belongs to another user).
    """
    found = Folder(folder).find()
    if found is None:
        return Status(folder, (), None)
    pair = ServerPair(found)
    servers = await asyncio.gather(*(_server_status(server) for server in pair.servers))
    return Status(folder, tuple(servers), _settings(pair, [server.port for server in servers]))


def _settings(pair: ServerPair, ports: list[int | None]) -> Settings | None:
    running = [port for port in ports if port is not None]
    return pair.settings(*running) if len(running) == len(pair.servers) else None


async def _server_status(server: Server) -> ServerStatus:
    alive = server.process.is_alive()
    holder = server.process.holder() if alive else None
    version = await server.version(holder.port) if holder else None
    return ServerStatus(
        server.title, version, holder.port if holder and version else None, alive, server.process.log
    )


def _listening_port(server: Server) -> int | None:
    if (holder := server.process.living_holder()) is not None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", holder.port), timeout=CONNECT_SECONDS):
            return holder.port
    return None
