"""A coordinator and two workers of Citus, of the installation that CITUS names."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGINT, SIGKILL

from commands import execute
from hubbub import PostgresSettings, Unavailable
from hubbub.embedded.folder import servers_account
from ports import free_port
from waiting import until_it_answers

INSTALLATION = os.environ.get("CITUS")
"""The folder with `postgres` and `initdb` of a PostgreSQL that has the extension."""

LACKING = "CITUS names no folder with `postgres` and `initdb` of a PostgreSQL with Citus"

OWNER = "chatuser"
DATABASE = "chatapp"


@dataclass
class Node:
    name: str
    port: int
    data: Path
    process: subprocess.Popen[bytes] | None = None


class Cluster:
    """The servers. They listen on the loopback interface, accept every login, and lose data in a power cut."""

    def __init__(self, folder: Path) -> None:
        assert INSTALLATION is not None
        self._programs = Path(INSTALLATION)
        self._folder = folder
        self._account = servers_account(folder)
        if self._account is not None:
            os.chown(folder, self._account.uid, self._account.gid)
        names = ("coordinator", "worker1", "worker2")
        self.coordinator, *self.workers = (Node(name, free_port(), folder / name) for name in names)

    async def start(self) -> None:
        for node in (self.coordinator, *self.workers):
            self._wait_for(
                *(str(self._programs / "initdb"), "-D", str(node.data), "--username=postgres", "--encoding=UTF8"),
                *("--auth=trust", "--locale=C", "--no-sync"),
            )
            await self.run(node)
            await execute(self.superuser(node), f"CREATE ROLE {OWNER} LOGIN CREATEDB")
        await self.make_database(DATABASE)

    async def make_database(self, database: str) -> PostgresSettings:
        """Create a database on all nodes. Returns the settings of its owner, on the coordinator."""
        for node in (self.coordinator, *self.workers):
            await execute(self.superuser(node), f"CREATE DATABASE {database} OWNER {OWNER}")
            await execute(self.superuser(node, database), "CREATE EXTENSION citus")
        await execute(
            self.superuser(self.coordinator, database),
            f"SELECT citus_set_coordinator_host('127.0.0.1', {self.coordinator.port})",
            *(f"SELECT citus_add_node('127.0.0.1', {worker.port})" for worker in self.workers),
        )
        return replace(self.superuser(self.coordinator, database), user=OWNER)

    def superuser(self, node: Node, database: str = "postgres") -> PostgresSettings:
        return PostgresSettings(
            host="127.0.0.1", port=node.port, database=database, user="postgres", sslmode="disable"
        )

    async def run(self, node: Node) -> None:
        """Start the server of the node, and return once it answers."""
        node.process = self._start(
            *(str(self._programs / "postgres"), "-D", str(node.data), f"--port={node.port}"),
            *("--listen_addresses=127.0.0.1", "--unix_socket_directories=", "--logging_collector=off"),
            *("--shared_preload_libraries=citus", "--wal_level=logical", "--max_connections=300"),
            *("--fsync=off", "--full_page_writes=off", "--autovacuum_naptime=1"),
            *("-c", "citus.node_conninfo=sslmode=disable", "-c", "citus.shard_count=8"),
        )

        async def answers() -> bool:
            assert node.process is not None
            assert node.process.poll() is None, self.log()[-2000:]
            with suppress(Unavailable):
                await execute(self.superuser(node))
                return True
            return False

        await until_it_answers(answers)

    def kill(self, node: Node) -> None:
        """kill -9 of all processes of the node."""
        assert node.process is not None
        pid = node.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(one, SIGKILL)
        node.process.wait()
        (node.data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        for node in (self.coordinator, *self.workers):
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(SIGINT)
        for node in (self.coordinator, *self.workers):
            if node.process is not None:
                node.process.wait()

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def _wait_for(self, *command: str) -> None:
        assert self._start(*command).wait() == 0, self.log()[-2000:]

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        account = self._account
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
                start_new_session=True,
            )


@asynccontextmanager
async def running() -> AsyncIterator[Cluster]:
    """The cluster, in a folder outside of pytest's own, which the account of the servers may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="hubbub-citus-"))
    cluster = Cluster(folder)
    try:
        await cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)
