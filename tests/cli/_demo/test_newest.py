from __future__ import annotations

from uuid import UUID

import pytest

from hubbub.cli._demo.figures import Stopwatch
from hubbub.cli._demo.load import load
from hubbub.cli._demo.newest import read_newest
from hubbub.cli._demo.stage import Stage
from hubbub.services.cache import Entries


async def test_most_pages_come_from_the_cache_and_all_are_those_that_are_stored(stage: Stage) -> None:
    await load(stage)
    watch = Stopwatch()
    scene = await read_newest(stage, watch)
    assert [check.wrong for check in scene.checks] == [()]
    [cached], [read] = scene.figures, watch.figures()
    assert read.count / 2 < cached.count < read.count


async def test_a_cache_that_is_not_told_of_changes_is_caught(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ignore(entries: Entries[object], id: UUID) -> None:
        """Delete nothing."""

    await load(stage)
    monkeypatch.setattr(Entries, "invalidate", ignore)
    [pages] = (await read_newest(stage, Stopwatch())).checks
    assert not pages.ok
