"""The demo from beginning to end: servers, schema, the steps one by one, and everything stopped again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Final

from hubbub import migrations
from hubbub.cli._demo.chatlog import ChatLog, Refusal
from hubbub.cli._demo.checks import check
from hubbub.cli._demo.figures import Check, Figure, Section
from hubbub.cli._demo.live import live
from hubbub.cli._demo.load import load
from hubbub.cli._demo.people import People
from hubbub.cli._demo.servers import greet, versions
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.talk import talk
from hubbub.embedded import Servers
from hubbub.history import Renamed
from hubbub.hub import Hub
from hubbub.passwords import LEAST_COST, Passwords
from hubbub.postgres import Pool
from hubbub.redis import Connection
from hubbub.settings import Settings

Step = Callable[[Stage], Awaitable[Section]]

# What is shown, in this order; a part of hubbub that is to be seen gets a step here.
STEPS: Final[tuple[Step, ...]] = (greet, load, talk, live, check)

# The checks look at every row, which takes longer than anything an application does.
CHECK_SECONDS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that the demo found. `seconds` is the whole time, from starting the servers until they had stopped."""

    servers: dict[str, str]
    log: str
    sections: tuple[Section, ...]
    renamed: tuple[Renamed, ...]
    refused_lines: int
    first_refused: tuple[Refusal, ...]
    seconds: float

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(check for section in self.sections for check in section.checks)

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


async def run(
    folder: Path, log: ChatLog, users: int, tell: Callable[[str], None], steps: Sequence[Step] = STEPS
) -> Result:
    """Run the steps on servers of their own in `folder`, which stop in any case before this returns or raises.

    Raises `HubbubError` when a server cannot be started or something is refused that had to work.
    """
    begin = perf_counter()
    tell("starting PostgreSQL and Valkey")
    async with Servers(folder) as settings:
        tell("making the tables")
        revisions = await migrations.up(settings.postgres)
        made = Figure(what="migrations", count=len(revisions))
        title = "Start the servers, make the tables"
        sections = [Section(title=title, seconds=perf_counter() - begin, figures=(made,))]
        async with _stage(settings, log, users, tell) as stage:
            found = await versions(stage)
            sections += [await _timed(step, stage) for step in steps]
        tell("stopping the servers")
    return Result(
        servers=found,
        log=log.title,
        sections=tuple(sections),
        renamed=tuple(stage.people.renamed),
        refused_lines=log.refusals.count,
        first_refused=tuple(log.refusals.first),
        seconds=perf_counter() - begin,
    )


async def _timed(step: Step, stage: Stage) -> Section:
    begin = perf_counter()
    section = await step(stage)
    return replace(section, seconds=perf_counter() - begin)


@asynccontextmanager
async def _stage(
    settings: Settings, log: ChatLog, users: int, tell: Callable[[str], None]
) -> AsyncIterator[Stage]:
    pool = Pool(replace(settings.postgres, deadline_seconds=CHECK_SECONDS))
    redis = Connection(settings.redis)
    await redis.start()
    try:
        async with Hub(settings, passwords=Passwords(cost=LEAST_COST)) as hub:
            people = People(hub.users)
            yield Stage(
                settings=settings,
                hub=hub,
                pool=pool,
                redis=redis,
                log=log,
                users=users,
                tell=tell,
                people=people,
            )
    finally:
        await redis.close()
        await pool.close()
