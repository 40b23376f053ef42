"""Two nodes of Patroni over one etcd. A node is PostgreSQL and the Patroni that starts and promotes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from hubbub import PostgresSettings, Unavailable
from hubbub.embedded.folder import servers_account
from hubbub.embedded.programs import find_postgresql
from hubbub.postgres import connect
from ports import free_port
from versions.catalogue import home, program
from waiting import until_it_answers

PASSWORD = "of-the-tests-of-patroni"
TTL_SECONDS = 20
"""The minimum of Patroni, and the time for which a lost primary keeps its lease."""

CONFIGURATION = """\
scope: chat
name: {name}
restapi: {{listen: "127.0.0.1:{rest}", connect_address: "127.0.0.1:{rest}"}}
etcd3: {{host: "127.0.0.1:{etcd}"}}
bootstrap:
  dcs:
    ttl: {ttl}
    loop_wait: 1
    retry_timeout: 3
    synchronous_mode: {synchronous}
    postgresql: {{use_pg_rewind: true}}
  initdb: [{{encoding: UTF8}}, {{locale: C.UTF-8}}]
postgresql:
  listen: 127.0.0.1:{port}
  connect_address: 127.0.0.1:{port}
  data_dir: {data}
  bin_dir: {programs}
  pgpass: {data}.pgpass
  authentication:
    superuser: {{username: postgres, password: {password}}}
    replication: {{username: replicator, password: {password}}}
  parameters: {{unix_socket_directories: ""}}
  pg_hba: ["host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"]
"""


def lacking() -> str | None:
    """The reason why the servers cannot be started. None if all programs are there."""
    return "etcd and Patroni were not fetched: make patroni" if None in map(program, ("etcd", "patroni")) else None


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    port: int
    rest: int
    data: Path
    process: subprocess.Popen[bytes]

    def signal(self, number: signal.Signals) -> None:
        """Signal Patroni, PostgreSQL and its processes. Parents come first, so that they start no others."""
        postmaster = int((self.data / "postmaster.pid").read_text().partition("\n")[0])
        for pid in (self.process.pid, postmaster):
            os.kill(pid, number)
        with suppress(OSError):
            for pid in map(int, Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()):
                os.kill(pid, number)


class Cluster:
    """The servers, in a folder that their account may enter."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._account = servers_account(folder)
        self._etcd = free_port()
        # An unprivileged account may not reach the Python of this environment.
        self._patroni = (sys.executable if self._account is None else "/usr/bin/python3", "-m", "patroni")
        self._processes: list[subprocess.Popen[bytes]] = []
        self.nodes: list[Node] = []

    async def start(self, *, synchronous: bool) -> PostgresSettings:
        """Start the servers. Returns the settings of a superuser, which name both hosts."""
        if self._account is not None:
            os.chown(self._folder, self._account.uid, self._account.gid)
        peers = free_port()
        etcd = program("etcd")
        assert etcd is not None
        client, peer = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{peers}"
        self._run(
            "etcd",
            *(str(etcd), "--data-dir", str(self._folder / "etcd"), "--name", "etcd"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"etcd={peer}"),
        )
        for name in ("node1", "node2"):
            await self._start_node(name, synchronous=synchronous)
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return PostgresSettings(
            host=hosts, database="postgres", user="postgres", password=PASSWORD, sslmode="disable"
        )

    async def _start_node(self, name: str, *, synchronous: bool) -> None:
        port, rest = free_port(), free_port()
        configuration = self._folder / f"{name}.yml"
        configuration.write_text(
            CONFIGURATION.format(
                name=name,
                rest=rest,
                etcd=self._etcd,
                ttl=TTL_SECONDS,
                synchronous=str(synchronous).lower(),
                port=port,
                data=self._folder / name,
                programs=find_postgresql(self._account).postgres.parent,
                password=PASSWORD,
            )
        )
        node = Node(name, port, rest, self._folder / name, self._run(name, *self._patroni, str(configuration)))
        self.nodes.append(node)
        wanted = "primary" if len(self.nodes) == 1 else "sync_standby" if synchronous else "replica"
        await until_it_answers(lambda: self._has_role(node, wanted))

    def role(self, node: Node) -> str | None:
        """The role of the node by its own report, and whether it follows. None if it does not answer."""
        with suppress(URLError, OSError, ValueError):
            with urllib.request.urlopen(f"http://127.0.0.1:{node.rest}/patroni", timeout=1) as answer:
                state = json.load(answer)
            if state.get("role") == "replica" and state.get("replication_state") != "streaming":
                return None
            if state.get("sync_standby"):
                return "sync_standby"
            return str(state.get("role"))
        return None

    async def _has_role(self, node: Node, role: str) -> bool:
        assert node.process.poll() is None, (self._folder / f"{node.name}.log").read_text()[-2000:]
        return self.role(node) == role

    def switch_over(self, primary: Node, standby: Node) -> None:
        """Have Patroni promote the standby, by a planned switchover."""
        body = json.dumps({"leader": primary.name, "candidate": standby.name}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{primary.rest}/switchover", data=body, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200

    async def promoted(self, node: Node) -> None:
        """Wait until PostgreSQL of the node is a primary."""
        settings = PostgresSettings(
            host="127.0.0.1",
            port=node.port,
            database="postgres",
            user="postgres",
            password=PASSWORD,
            sslmode="disable",
        )

        async def is_primary() -> bool:
            try:
                connection = await connect(settings, within_seconds=1)
            except Unavailable:
                return False
            try:
                return not connection.is_wrong_server
            finally:
                connection.terminate()

        await until_it_answers(is_primary)

    def kill(self, node: Node) -> None:
        """kill -9 of the whole node."""
        node.signal(signal.SIGKILL)
        node.process.wait()

    @contextmanager
    def frozen(self, node: Node) -> Iterator[None]:
        """Freeze the processes of the node during the block. At the end they are killed."""
        node.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.kill(node)

    def stop(self) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                with suppress(OSError):
                    self.kill(node)
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()

    def _run(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        account = self._account
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONPATH": str(home() / "patroni")},
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
                start_new_session=True,
            )
        self._processes.append(process)
        return process
