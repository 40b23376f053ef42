"""One server process: starting it, finding it again from any process, stopping it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Annotated

import msgspec

from hubbub.embedded import launch, locks
from hubbub.embedded.folder import Account, ServerFolder
from hubbub.embedded.launch import Order
from hubbub.errors import Unavailable

# For an interpreter to start and exec on a loaded machine; it takes 0.05 s on an idle one.
LAUNCH_SECONDS = 10
# An error shows the end of the log: this many lines, from at most this many bytes.
LOG_BYTES = 16_384
LOG_LINES = 12


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds the lock of a server, as it wrote itself. It is valid only while the lock is held."""

    pid: Annotated[int, msgspec.Meta(gt=0)]  # for kill(), the others are groups of processes
    started: str
    port: int
    detached: bool


class Process:
    """One server of a folder, whichever process started it.

        free ──launch──> lock held by the launcher ──exec──> lock held by the server ──> all its processes ended:
        free

    The server holds the lock of its lock file from before its start until its last process has ended, and writes
    its pid and port into the file. So a pid from before a crash misleads no process, and two servers never share
    data. The output goes to the log file, never to a pipe. A full pipe would block the server, and an inherited
    one would keep the reader of a command's output waiting for as long as the server lives.
    """

    def __init__(self, title: str, name: str, folder: ServerFolder) -> None:
        self.title = title
        self.log = folder.path / f"{name}.log"
        self._lock = folder.path / f"{name}.lock"
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def is_alive(self) -> bool:
        """Whether any process of the server lives."""
        return locks.is_held(self._lock)

    def is_ours(self) -> bool:
        """Whether this object started the living process, and the process ends with this one."""
        return self._child is not None and self._child.poll() is None

    def holder(self) -> Holder | None:
        """The process that holds the lock, or held it last; None when none has written itself yet."""
        with suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode(self._lock.read_bytes(), type=Holder)
        return None

    def living_holder(self) -> Holder | None:
        return self.holder() if self.is_alive() else None

    async def launch(self, program: Sequence[str], *, cwd: Path, port: int, death_signal: Signals | None) -> None:
        """Start the program in the folder `cwd`, without waiting until it serves.

        It gets `death_signal` when this thread ends; with None it outlives this process.
        Raises: Unavailable (the server is already running).
        """
        await self._spawn(program, cwd=cwd, port=port, death_signal=death_signal)
        if death_signal is None:
            await self._reap()  # the launcher, which ends once it has forked the server

    async def run(self, program: Sequence[str], *, cwd: Path, seconds: float, text: str = "") -> None:
        """Run a program that ends by itself, under the lock of the server, with `text` as its input.

        It is killed when this thread ends or the caller is cancelled.
        Raises: Unavailable (it fails, or takes longer than `seconds`).
        """
        child = await self._spawn(program, cwd=cwd, port=0, death_signal=Signals.SIGKILL, text=text)
        try:
            for pause in locks.pauses(seconds):
                if child.poll() is not None:
                    break
                await asyncio.sleep(pause)
        finally:
            child.kill()  # does nothing to one that has ended
            await self._reap()
        if child.returncode != 0:
            raise self.failure(f"{Path(program[0]).name} failed")

    async def stop(self, signals: Sequence[tuple[Signals, float]]) -> bool:
        """Stop the server by each signal in turn, and wait the seconds after each. False if none was running.

        Raises: Unavailable (it still lives after the last signal).
        """
        lived = self.is_alive()
        for death_signal, seconds in signals:
            signalled: Holder | None = None
            for pause in locks.pauses(seconds):
                if not self.is_alive():
                    await self._reap()
                    return lived
                # Read again each time, because a server that was starting writes its holder a moment later.
                if (holder := self.holder()) is not None and holder != signalled:
                    _signal(holder, death_signal, self._folder.account)
                    signalled = holder
                await asyncio.sleep(pause)
        raise self.failure(f"{self.title} does not stop")

    def failure(self, what: str) -> Unavailable:
        """The error for a failure, `what`, with the end of the server's log since its launch."""
        lines = self.new_log().strip().splitlines()[-LOG_LINES:]
        logged = "\n    ".join((":", *lines)) if lines else " has no entry about it"
        return Unavailable("embedded", f"{what}; its log {self.log}{logged}", retryable=False)

    def new_log(self) -> str:
        """The end of the log since the last launch."""
        with suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(max(self._log_start, self.log.stat().st_size - LOG_BYTES))
            return log.read().decode(errors="replace")
        return ""

    async def _spawn(
        self, program: Sequence[str], *, cwd: Path, port: int, death_signal: Signals | None, text: str = ""
    ) -> subprocess.Popen[bytes]:
        lock = await locks.acquire(self._lock, LAUNCH_SECONDS)
        if lock is None:
            raise self.failure(f"{self.title} is already running")
        try:
            os.ftruncate(lock.descriptor, 0)
            await self._reap()
            order = self._order(program, lock=lock.descriptor, port=port, death_signal=death_signal)
            log_descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            with os.fdopen(log_descriptor, "ab") as log:
                self._log_start = os.fstat(log_descriptor).st_size
                child = self._child = subprocess.Popen(  # noqa: ASYNC220, S603 - a program that we found or brought
                    [sys.executable, "-I", "-S", launch.__file__, json.dumps(order)],
                    cwd=cwd,
                    stdin=subprocess.PIPE if text else subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock.descriptor],
                    # Not in the session of the terminal: Ctrl-C goes to the owner, which stops its servers.
                    start_new_session=True,
                )
        finally:
            lock.release()
        if child.stdin is not None:
            # A program that has already ended does not read; its exit status has the reason.
            with suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(text.encode())
        return child

    def _order(self, program: Sequence[str], *, lock: int, port: int, death_signal: Signals | None) -> Order:
        account = self._folder.account
        return Order(
            program=list(program),
            lock=lock,
            port=port,
            folder_by_descriptor=str(self._folder.path) if self._folder.needs_descriptor else None,
            uid=account.uid if account else None,
            gid=account.gid if account else None,
            owner=None if death_signal is None else os.getpid(),
            death_signal=death_signal or 0,
        )

    async def _reap(self) -> None:
        """Wait for the child, which is about to end, so that no zombie stays."""
        if self._child is None:
            return
        for pause in locks.pauses(LAUNCH_SECONDS):
            if self._child.poll() is not None:
                self._child = None
                return
            await asyncio.sleep(pause)
        raise self.failure(f"{self.title} does not end")


def _signal(holder: Holder, death_signal: Signals, account: Account | None) -> None:
    """Signal the holder of the lock, but not a later process with its pid, if the system can tell them apart.

    Root may signal any process, and the servers can write their lock files. They must not choose the process that
    root signals, so it has to run as their account. Only Linux has the user of a process in /proc.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        if launch.start_time(holder.pid) != holder.started:
            return
        if account and sys.platform == "linux" and Path(f"/proc/{holder.pid}").stat().st_uid != account.uid:
            return
        # Not by pidfd, which containers often forbid. A pid is not reused within this instant.
        os.kill(holder.pid, death_signal)
