"""One server process: started, recognised by anyone who asks, stopped."""

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
from hubbub.embedded.account import Account
from hubbub.embedded.folder import Place
from hubbub.errors import Unavailable

LAUNCH_SECONDS = 10
LOG_BYTES = 16_384
LOG_LINES = 12


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock of a server, in the server's own words. Believed only while the lock is held."""

    pid: Annotated[int, msgspec.Meta(gt=0)]  # the others are groups of processes, and -1 is all there are
    started: str
    port: int
    detached: bool


class Process:
    """One server of a folder, whoever started it.

    The server holds the lock of its lock file from before it starts until its last process is gone, and has
    written its pid and port into it. So no one is misled by a pid from before a crash, and two servers never
    share data. Its output goes to the log file, never to a pipe: a full one would stop the server, and an
    inherited one keep the reader of a command's output waiting for as long as the server lives.
    """

    def __init__(self, title: str, name: str, place: Place) -> None:
        self.title = title
        self.log = place.folder / f"{name}.log"
        self._lock = place.folder / f"{name}.lock"
        self._place = place
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def is_alive(self) -> bool:
        """Whether any process of the server lives."""
        return locks.is_held(self._lock)

    def is_ours(self) -> bool:
        """Whether this very object started the process that lives, as one that dies with us."""
        return self._child is not None and self._child.poll() is None

    def is_detached(self) -> bool:
        """Whether the server lives and is one that outlives whoever started it."""
        holder = self.holder()
        return self.is_alive() and holder is not None and holder.detached

    def holder(self) -> Holder | None:
        """Who holds the lock, or held it last; None when nobody has signed it yet."""
        try:
            return msgspec.json.decode(self._lock.read_bytes(), type=Holder)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    async def launch(
        self, program: Sequence[str], *, folder: Path, port: int, last_signal: Signals | None
    ) -> None:
        """Starts the program in `folder`. Whether it serves is for the caller to ask.

        It gets `last_signal` when this thread ends; with None it outlives us. Raises Unavailable when the server
        is running already.
        """
        lock = await self._free_lock()
        try:
            os.ftruncate(lock.descriptor, 0)
            await self._reap()
            self._child = self._spawn(program, folder=folder, lock=lock, port=port, last_signal=last_signal)
        finally:
            lock.release()
        if last_signal is None:
            await self._reap()  # the launcher, which leaves the server behind

    async def run(self, program: Sequence[str], *, folder: Path, seconds: float, text: str = "") -> None:
        """Runs a program that ends by itself, under the lock of the server, with `text` as its input.

        It is killed when this thread ends or the caller is cancelled. Raises Unavailable when it fails or takes
        longer than `seconds`.
        """
        lock = await self._free_lock()
        try:
            await self._reap()
            child = self._child = self._spawn(
                program, folder=folder, lock=lock, port=0, last_signal=Signals.SIGKILL, text=text
            )
        finally:
            lock.release()
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
        """Stops the server, by each signal in turn, waiting so many seconds after it. False when none lived.

        Raises Unavailable when it still lives after the last.
        """
        lived = self.is_alive()
        for last_signal, seconds in signals:
            told: Holder | None = None
            for pause in locks.pauses(seconds):
                if not self.is_alive():
                    await self._reap()
                    return lived
                # Asked anew each time: one that was starting signs a moment later.
                if (holder := self.holder()) is not None and holder != told:
                    _send(holder, last_signal, self._place.account)
                    told = holder
                await asyncio.sleep(pause)
        raise self.failure(f"{self.title} does not stop")

    def failure(self, what: str) -> Unavailable:
        """The error for `what` went wrong, with what the server logged since it was launched."""
        lines = self.new_log().strip().splitlines()[-LOG_LINES:]
        said = "".join(f"\n    {line}" for line in lines) or " is silent about it"
        log = f"its log {self.log}{':' if lines else ''}{said}"
        return Unavailable("embedded", f"{what}; {log}", retryable=False)

    def new_log(self) -> str:
        """The end of what was logged since the last launch."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_start, self.log.stat().st_size - LOG_BYTES))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    async def _free_lock(self) -> locks.Lock:
        lock = await locks.taken(self._lock, LAUNCH_SECONDS)
        if lock is None:
            raise self.failure(f"{self.title} is running already")
        return lock

    def _spawn(
        self,
        program: Sequence[str],
        *,
        folder: Path,
        lock: locks.Lock,
        port: int,
        last_signal: Signals | None,
        text: str = "",
    ) -> subprocess.Popen[bytes]:
        account = self._place.account
        order = launch.Order(
            program=list(program),
            lock=lock.descriptor,
            port=port,
            handed=str(self._place.folder) if self._place.must_be_handed else None,
            uid=account.uid if account else None,
            gid=account.gid if account else None,
            owner=None if last_signal is None else os.getpid(),
            last_signal=last_signal or 0,
        )
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            self._log_start = os.fstat(log).st_size
            child = subprocess.Popen(  # noqa: S603 - a program that we found or brought, no shell
                [sys.executable, "-I", "-S", launch.__file__, json.dumps(order)],
                cwd=folder,
                stdin=subprocess.PIPE if text else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock.descriptor],
                # Away from the terminal: Ctrl-C is for the owner, who then stops its servers in good order.
                start_new_session=True,
            )
        finally:
            os.close(log)
        if child.stdin is not None:
            # One that has ended already does not read; its exit status says why.
            with suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(text.encode())
        return child

    async def _reap(self) -> None:
        """Waits for the child, which is known to end, so that no zombie stays."""
        if self._child is None:
            return
        for pause in locks.pauses(LAUNCH_SECONDS):
            if self._child.poll() is not None:
                self._child = None
                return
            await asyncio.sleep(pause)
        raise self.failure(f"{self.title} does not end")


def _send(holder: Holder, last_signal: Signals, account: Account | None) -> None:
    """Signals the process that signed the lock; not a later one of that pid, where the system tells them apart."""
    if launch.started(holder.pid) != holder.started or not _is_of(account, holder.pid):
        return
    # Not by pidfd, which containers often forbid: a pid is not given away again in this one moment.
    with suppress(ProcessLookupError):
        os.kill(holder.pid, last_signal)


def _is_of(account: Account | None, pid: int) -> bool:
    """Whether the process is one of the account. True where that is us: whom we may signal, the kernel knows.

    Root may signal anyone, and the servers can write their locks: they must not choose whom. Linux alone says.
    """
    if account is None or sys.platform != "linux":
        return True
    try:
        return Path(f"/proc/{pid}").stat().st_uid == account.uid
    except (FileNotFoundError, ProcessLookupError):
        return False
