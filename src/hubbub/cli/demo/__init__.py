"""`hubbub demo`: a chat on servers of its own, and the checks that nothing was lost, doubled or reordered."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Final, TypeAlias

import click
from rich.console import Console

from hubbub import migrations, new_id
from hubbub.cli.demo import chat_log, live, recount, report, talk
from hubbub.cli.demo.chat_log import ChatLog
from hubbub.cli.demo.context import Context
from hubbub.cli.demo.report import Result, Section
from hubbub.cli.quiet import unreported
from hubbub.cli.server_info import server_info
from hubbub.embedded import Servers
from hubbub.errors import Unavailable
from hubbub.hub import Hub
from hubbub.passwords import LEAST_COST, Passwords
from hubbub.postgres import Pool, Statement
from hubbub.redis import Connection
from hubbub.settings import Settings

CHECK_FAILED: Final = 1
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROUND_TRIPS: Final = 200
WRONG: Final = "not the password"

CHECK_SECONDS: Final = 300
"""The checks look at every row, which takes longer than anything that an application does."""

Step: TypeAlias = Callable[[Context], Awaitable[Section]]
STEPS: Final[tuple[Step, ...]] = (talk.run, live.run, recount.run)


@click.command()
@click.option(
    "--log",
    "log_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A chat log to import: JSON lines, plain or gzip.  [default: a log that comes with hubbub]",
)
@click.option(
    "--users",
    type=click.IntRange(2, 200),
    default=40,
    show_default=True,
    help="Users that chat at the same time.",
)
@click.option("--json", "in_json", is_flag=True, help="Print the report as one JSON object.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Where to make the temporary folder, for instance on another disk.",
)
@click.pass_context
def demo(context: click.Context, log_file: Path | None, users: int, *, in_json: bool, folder: Path | None) -> None:
    """Run a chat on temporary servers and check that nothing was lost.

    Starts PostgreSQL and Valkey in a temporary folder, creates the tables and imports a chat log. Users then
    chat at the same time, log in, come online, type and follow. At the end everything is read back and compared,
    the servers stop, and their files are deleted. The exit status is 1 when a check failed.

    A log has one JSON object per line, with the keys kind (message, join or leave), room, user, at (ISO 8601) and
    content. Lines in another form are counted and reported.
    """
    # Without a terminal the status shows nothing.
    with _open(log_file) as log, Console(stderr=True).status("") as status:
        result = asyncio.run(_run_until_signal(folder, log, users, status.update))
    if isinstance(result, signal.Signals):
        click.echo(f"stopped by {result.name}; the servers are stopped and their files deleted", err=True)
        context.exit(128 + result)
    if in_json:
        click.echo(report.as_json(result))
    else:
        report.show(result, Console())
    if not result.ok:
        context.exit(CHECK_FAILED)


@contextmanager
def _open(path: Path | None) -> Iterator[ChatLog]:
    """The log. One without a usable line is refused before servers are started for it."""
    try:
        file = (path or chat_log.CONVERSATION).open("rb")
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", param_hint="--log") from error
    with file:
        log = chat_log.read(path.name if path else "the log that comes with hubbub", file)
        first = next(log.lines, None)
        if first is None and not log.refusals.count:
            raise click.BadParameter(f"{path} is empty", param_hint="--log")
        if first is None:
            line, reason = log.refusals.first[0]
            raise click.BadParameter(f"{path} has no usable line; line {line}: {reason}", param_hint="--log")
        yield replace(log, lines=chain([first], log.lines))


async def _run_until_signal(
    folder: Path | None, log: ChatLog, users: int, show: Callable[[str], None]
) -> Result | signal.Signals:
    """The first signal ends the run in good order. Further signals do not cut that short."""
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(run(folder, log, users, show))
    received: list[signal.Signals] = []

    def stop(by: signal.Signals) -> None:
        if not received:
            running.cancel()
        received.append(by)

    for one in SIGNALS:
        loop.add_signal_handler(one, stop, one)
    try:
        return await running
    except asyncio.CancelledError:
        if not received:
            raise
        return received[0]
    finally:
        for one in SIGNALS:
            loop.remove_signal_handler(one)


async def run(
    parent: Path | None, log: ChatLog, users: int, show: Callable[[str], None], steps: Sequence[Step] = STEPS
) -> Result:
    """Run the steps on new servers, which are stopped and deleted in any case before this returns or raises."""
    begin = perf_counter()
    with TemporaryDirectory(prefix="hubbub-demo-", dir=parent) as folder:
        show("starting PostgreSQL and Valkey")
        async with Servers(Path(folder)) as settings, AsyncExitStack() as stack:
            start = Section("Servers and schema", {"passwords": "wrong passwords are refused"})
            show("creating the tables")
            start.total("migrations", len(await migrations.up(settings.postgres)))
            pool = Pool(replace(settings.postgres, deadline_seconds=CHECK_SECONDS))
            redis = Connection(settings.redis)
            stack.push_async_callback(pool.close)
            stack.push_async_callback(redis.close)
            await redis.start()
            hub = await stack.enter_async_context(Hub(settings, passwords=Passwords(cost=LEAST_COST)))
            context = Context(settings, Path(folder), hub, pool, redis, user_count=users, show=show)
            servers = await ask_servers(context, start)
            start.end()
            sections = [start]
            load: Step = partial(chat_log.load, log=log)
            for step in (load, *steps):
                sections.append(await step(context))
                sections[-1].end()
            show("stopping the servers")
    return Result(servers, log.title, log.refusals, log.renamed, sections, seconds=perf_counter() - begin)


_VERSION = Statement("demo.version", str, "SELECT current_setting('server_version') AS version")


async def ask_servers(context: Context, section: Section) -> dict[str, str]:
    """The name and version of each server, after many round trips to each and one login with a wrong password."""
    for _ in range(ROUND_TRIPS):
        version = await section.time("round trips to PostgreSQL", context.pool.fetch_one(_VERSION))
        await section.time("round trips to Valkey", context.redis.execute("PING"))
    settings, redis = context.settings, replace(context.settings.redis, password=WRONG)
    postgres = replace(settings.postgres, password=WRONG)
    for name, wrong in (
        ("PostgreSQL", replace(settings, postgres=postgres)),
        ("Valkey", replace(settings, redis=redis)),
    ):
        section.expect("passwords", await _is_refused(wrong), f"{name} took a wrong password")
    info = await server_info(context.redis)
    return {"PostgreSQL": str(version), info.name: info.version}


async def _is_refused(settings: Settings) -> bool:
    try:
        with unreported():
            async with Hub(settings) as hub:
                await hub.sessions.list_sessions(new_id())
    except Unavailable as refusal:
        return not refusal.retryable
    return False
