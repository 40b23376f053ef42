"""PgBouncer in transaction mode. Each transaction may run in a different session of PostgreSQL."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from hubbub import PostgresSettings
from hubbub.embedded.folder import servers_account
from ports import free_port

START_SECONDS = 20

CONFIGURATION = """\
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {roles}
pool_mode = transaction
max_client_conn = 1000
; In turn, so that a transaction finds state that an earlier one has left in a session.
server_round_robin = 1
; By default it waits 15 s before it reconnects to a server that was down.
server_login_retry = 1
{others}
"""


class PgBouncer:
    """One process in front of one server and all its databases. It keeps its port over a restart."""

    def __init__(self, program: Path, folder: Path, roles: Sequence[PostgresSettings], *others: str) -> None:
        """It accepts the users of `roles`, which have the same server, and logs in to the server as them.

        `others` are additional lines of its configuration.
        """
        self.port = free_port()
        self._program = program
        self._folder = folder
        self._configuration = folder / "pgbouncer.ini"
        self._process: subprocess.Popen[bytes] | None = None
        auth_file = folder / "roles"
        auth_file.write_text("".join(f'"{_doubled(one.user)}" "{one.password}"\n' for one in roles))
        if (account := servers_account(folder)) is not None:
            others = (*others, f"user = {account.name}")  # it does not run as root
        [(host, port)] = {(one.host, one.port) for one in roles}
        self._configuration.write_text(
            CONFIGURATION.format(
                host=host, port=port, own_port=self.port, roles=auth_file, others="\n".join(others)
            )
        )

    def start(self) -> Self:
        with (self._folder / "pgbouncer.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, self._configuration], stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._accepts():
            assert self._process.poll() is None, (self._folder / "pgbouncer.log").read_text()
            assert time.monotonic() < deadline, "PgBouncer did not start"
            time.sleep(0.005)
        return self

    def in_front_of(self, settings: PostgresSettings) -> PostgresSettings:
        """The same database and role through the pooler, with the setting that a pooler needs."""
        return replace(settings, host="127.0.0.1", port=self.port, prepared_statements=False)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Start it for the block, and stop it."""
        try:
            yield self.start()
        finally:
            self.stop()

    def stop(self) -> None:
        """End it at once: SIGTERM, unlike SIGINT, waits for no client. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=START_SECONDS)

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _doubled(name: str) -> str:
    return name.replace('"', '""')
