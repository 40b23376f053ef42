"""`hubbub demo`: a chat on servers of its own, and the checks that nothing was lost, doubled or reordered."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from io import BufferedReader
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final, TypeAlias

import click
from rich.console import Console

from hubbub import embedded, migrations, new_id
from hubbub.cli import END_SIGNALS, on_signals, playing, printable, unreported
from hubbub.cli.demo import expected, report, talk
from hubbub.cli.demo.expected import CONVERSATION, Context
from hubbub.cli.demo.report import Result, Section
from hubbub.diagnostics.figures import server_info
from hubbub.errors import Unavailable
from hubbub.history import Refusals
from hubbub.hub import Hub
from hubbub.passwords import MIN_COST, Passwords
from hubbub.postgres import Pool
from hubbub.redis import connection_to

WRONG: Final = "not the password"

CHECK_SECONDS: Final = 300
"""The checks look at every row, which takes longer than anything that an application does."""

Step: TypeAlias = Callable[[Context], Awaitable[Section]]
STEPS: Final[tuple[Step, ...]] = (talk.run, expected.compare)


@click.command()
@click.option(
    "--log",
    "file",
    type=click.File("rb"),
    default=str(CONVERSATION),
    show_default="a log that comes with hubbub",
    help="A chat log to import: JSON lines, plain or gzip.",
)
@click.option(
    "--users", type=click.IntRange(2, 200), default=40, show_default=True, help="Users that chat at once."
)
@click.option("--json", "in_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("--serve", is_flag=True, help="Show the log in a browser instead, in a chat where it goes on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8_000, show_default=True, help="With --serve.")
@click.option("--no-browser", is_flag=True, help="With --serve: print the addresses, and open no window.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Where to make the temporary folder, for instance on another disk.",
)
@click.pass_context
def demo(
    context: click.Context,
    file: BufferedReader,
    users: int,
    *,
    in_json: bool,
    serve: bool,
    port: int,
    no_browser: bool,
    folder: Path | None,
) -> None:
    """Run a chat on temporary servers and check that nothing was lost.

    Starts PostgreSQL and Valkey in a temporary folder, creates the tables and imports a chat log. Users then
    chat at the same time, log in, come online, type and follow. At the end everything is read back and compared,
    the servers stop, and their files are deleted. The exit status is 1 when a check failed.

    A log has one JSON object per line, with the keys kind (message, join or leave), room, user, at (ISO 8601) and
    content. Lines in another form are counted and reported.

    With --serve nothing is checked. The chat of examples/chat shows the log in two windows of a browser, and the
    users of the log write its end, up to 200 lines, again and again until a signal ends it.
    """
    title = "the log that comes with hubbub" if file.name == str(CONVERSATION) else printable(Path(file.name).name)
    refusals = Refusals()
    lines = expected.read(file, refusals)
    if (first := next(lines, None)) is None:
        reason = "".join(f"; line {line}: {printable(reason)}" for line, reason in refusals.first[:1])
        raise click.BadParameter(f"{title} has no usable line{reason}", param_hint="--log")
    if serve:
        playing.serve(chain([first], lines), port=port, opens=not no_browser, parent=folder)
        return
    load = partial(expected.load, title=title, lines=chain([first], lines), refusals=refusals)
    with Console(stderr=True).status("") as status:  # without a terminal it shows nothing
        result = asyncio.run(_until_signal(run(folder, (load, *STEPS), users, status.update)))
    if isinstance(result, signal.Signals):
        click.echo(f"stopped by {result.name}; the servers are stopped and their files deleted", err=True)
        context.exit(128 + result)
    if in_json:
        click.echo(report.as_json(result))
    else:
        report.show(result, Console())
    context.exit(0 if result.ok else 1)


async def _until_signal(running: Coroutine[Any, Any, Result]) -> Result | signal.Signals:
    """The first signal ends the run in good order. Further signals do not cut that short."""
    first: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    with on_signals(lambda by: None if first.done() else first.set_result(by), *END_SIGNALS):
        task = asyncio.ensure_future(running)
        first.add_done_callback(lambda _: task.cancel())
        try:
            return await task
        except asyncio.CancelledError:
            return first.result()


async def run(parent: Path | None, steps: Sequence[Step], user_count: int, show: Callable[[str], None]) -> Result:
    """Run the steps on new servers, which are stopped and deleted in any case before this returns or raises."""
    begin, sections = perf_counter(), list[Section]()
    with TemporaryDirectory(prefix="hubbub-demo-", dir=parent) as folder:
        show("starting PostgreSQL and Valkey")
        async with embedded.Servers(Path(folder)) as settings, AsyncExitStack() as stack:
            show("creating the tables")
            revisions = await migrations.up(settings.postgres)
            pool = Pool(replace(settings.postgres, deadline_seconds=CHECK_SECONDS))
            redis = connection_to(settings.redis)
            stack.push_async_callback(pool.close)
            stack.push_async_callback(redis.close)
            await redis.start()
            info, status = await server_info(redis), await embedded.status(Path(folder))
            servers = {"PostgreSQL": str(status.servers[0].version), info.name: info.version}
            hub = await stack.enter_async_context(Hub(settings, passwords=Passwords(cost=MIN_COST)))
            context = Context(settings, Path(folder), hub, pool, user_count, show)
            for step in (try_servers, *steps):
                sections.append(await step(context))
                before = sum(section.seconds for section in sections)
                sections[-1].seconds = round(perf_counter() - begin - before, 3)
            sections[0].total("migrations", len(revisions))
            show("stopping the servers")
    return Result(servers, context.log_findings, sections, seconds=round(perf_counter() - begin, 3))


async def try_servers(context: Context) -> Section:
    """One login to each server with a wrong password."""
    section = Section("Servers and schema")
    for name in ("postgres", "redis"):
        wrong = replace(getattr(context.settings, name), password=WRONG)
        try:
            with unreported():
                async with Hub(replace(context.settings, **{name: wrong})) as hub:
                    await hub.sessions.list(new_id())
            outcome = "accepted"
        except Unavailable as error:
            outcome = "not tried" if error.retryable else "refused"
        section.expect("wrong passwords are refused", f"login to {name}", outcome, "refused")
    return section
