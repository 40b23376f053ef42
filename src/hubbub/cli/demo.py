"""`hubbub demo`: a chat on servers of its own, and the proof that it came through whole."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console

from hubbub.cli._demo import chatlog, report
from hubbub.cli._demo.chatlog import ChatLog
from hubbub.cli._demo.conversation import made_up
from hubbub.cli._demo.run import Result, run

CHECK_FAILED = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "--log",
    "log_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A chat log to load, JSON lines, plain or gzip. Without one, a conversation is made up.",
)
@click.option(
    "--users",
    type=click.IntRange(2, 200),
    default=40,
    show_default=True,
    help="How many people talk at the same time.",
)
@click.option("--json", "in_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Make the temporary folder in this one, for instance to see how fast its disk is.",
)
@click.pass_context
def demo(context: click.Context, log_file: Path | None, users: int, *, in_json: bool, folder: Path | None) -> None:
    """Let a chat happen on servers of its own, check it, and leave nothing behind.

    Starts PostgreSQL and Valkey in a temporary folder, makes the tables, loads a chat log, lets people talk at
    the same time, log in, come and go, type and listen, reads everything back and compares. Exit status 1 when
    something does not hold.

    A log has one JSON object a line, with the keys kind (message, join or leave), room, user, at (ISO 8601) and
    content. Lines that are none are counted and reported.
    """
    try:
        with _opened(log_file) as log, _progress() as tell:
            result = asyncio.run(_unless_stopped(folder, log, users, tell))
    except Stopped as stopped:
        click.echo(stopped, err=True)
        context.exit(128 + stopped.by)
    if in_json:
        click.echo(report.as_json(result))
    else:
        report.show(result, Console())
    if not result.ok:
        context.exit(CHECK_FAILED)


@contextmanager
def _opened(file: Path | None) -> Iterator[ChatLog]:
    """The log, which has at least one event: before servers are started for it."""
    if file is None:
        yield made_up()
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="--log") from error
    with opened:
        log = chatlog.read(file.name, opened)
        first = next(log.events, None)
        if first is None:
            raise click.BadParameter(_nothing_in(file, log), param_hint="--log")
        yield replace(log, events=chain([first], log.events))


def _nothing_in(file: Path, log: ChatLog) -> str:
    if not log.refusals.count:
        return f"{file} is empty"
    line, reason = log.refusals.first[0]
    return f"{file} has no line that can be used; line {line}: {reason}"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Says what is going on, on a terminal alone."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield status.update


class Stopped(Exception):
    """A signal came, and everything has been stopped and deleted since."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(f"stopped by {by.name}; the servers are stopped and their files deleted")
        self.by = by


async def _unless_stopped(folder: Path | None, log: ChatLog, users: int, tell: Callable[[str], None]) -> Result:
    """Run the demo. The first signal ends it in good order, and further ones do not end that before its time."""
    loop = asyncio.get_running_loop()
    playing = asyncio.ensure_future(_play(folder, log, users, tell))
    came: list[signal.Signals] = []

    def stop(by: signal.Signals) -> None:
        if not came:
            playing.cancel()
        came.append(by)

    for one in SIGNALS:
        loop.add_signal_handler(one, stop, one)
    try:
        return await playing
    except asyncio.CancelledError:
        if came:
            raise Stopped(came[0]) from None
        raise
    finally:
        for one in SIGNALS:
            loop.remove_signal_handler(one)


async def _play(folder: Path | None, log: ChatLog, users: int, tell: Callable[[str], None]) -> Result:
    with TemporaryDirectory(prefix="hubbub-demo-", dir=folder) as temporary:
        return await run(Path(temporary), log, users, tell)
