from __future__ import annotations

from uuid import UUID

import pytest

from hubbub.cli._demo import transitions
from hubbub.cli._demo.devices import DEVICES, come_and_go
from hubbub.cli._demo.figures import Stopwatch
from hubbub.cli._demo.stage import Stage
from hubbub.services.presence import Presence
from hubbub.services.realtime import RealtimeService


@pytest.fixture
async def people(stage: Stage) -> list[UUID]:
    return [await stage.people.meet(f"visitor-{number}") for number in range(4)]


async def test_people_come_and_go(stage: Stage, people: list[UUID]) -> None:
    watch = Stopwatch()
    scene = await come_and_go(stage, watch, people)
    assert [check.wrong for check in scene.checks] == [(), ()]
    assert [figure.count for figure in watch.figures()] == [len(DEVICES) * len(people)]


async def test_an_event_that_comes_twice_is_caught(
    stage: Stage, people: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = RealtimeService.publish_user_presence

    async def twice(realtime: RealtimeService, user_id: UUID, is_online: bool) -> None:
        await publish(realtime, people[0], False)
        await publish(realtime, user_id, is_online)

    monkeypatch.setattr(RealtimeService, "publish_user_presence", twice)
    events, _ = (await come_and_go(stage, Stopwatch(), people)).checks
    assert events.wrong == (f"of {people[0]} was heard [True, False, False]",)


async def test_who_is_said_to_be_online_and_never_to_have_gone_is_caught(
    stage: Stage, people: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def all_of_them(presence: Presence, user_ids: list[UUID]) -> dict[UUID, bool]:
        return dict.fromkeys(user_ids, True)

    monkeypatch.setattr(Presence, "is_online", all_of_them)
    monkeypatch.setattr(transitions, "PATIENCE_SECONDS", 0.5)  # less than the grace time: nobody goes in time
    events, present = (await come_and_go(stage, Stopwatch(), people)).checks
    assert len(events.wrong) == len(present.wrong) == len(people)
