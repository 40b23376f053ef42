"""What lives in Redis: people log in, come and go, type, and listen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from uuid import UUID

from hubbub.cli._demo.broadcast import broadcast
from hubbub.cli._demo.checkins import check_in
from hubbub.cli._demo.devices import come_and_go
from hubbub.cli._demo.figures import Scene, Section, Stopwatch
from hubbub.cli._demo.logins import log_in
from hubbub.cli._demo.newest import read_newest
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.together import together
from hubbub.cli._demo.typists import type_in_a_room


async def live(stage: Stage) -> Section:
    """All of it beside each other: to see somebody fade takes seconds, in which the others have enough to do."""
    watch = Stopwatch()
    people = stage.people.ids[-stage.users :]
    stage.tell(f"{len(people)} people log in, come and go, and type")
    scene = _in_all(
        await together(
            [come_and_go(stage, watch, people), type_in_a_room(stage, watch), _meanwhile(stage, watch, people)]
        )
    )
    figures = sorted((*scene.figures, *watch.figures()), key=lambda figure: -figure.count)
    title = f"Live: {len(people)} people on three devices each"
    return Section(title=title, figures=tuple(figures), checks=scene.checks)


async def _meanwhile(stage: Stage, watch: Stopwatch, people: Sequence[UUID]) -> Scene:
    """One after the other, as these are timed."""
    return _in_all(
        [
            await log_in(stage, watch),
            await check_in(stage, watch, people),
            await broadcast(stage, watch),
            await read_newest(stage, watch),
        ]
    )


def _in_all(scenes: Sequence[Scene]) -> Scene:
    checks = chain.from_iterable(scene.checks for scene in scenes)
    figures = chain.from_iterable(scene.figures for scene in scenes)
    return Scene(tuple(checks), tuple(figures))
