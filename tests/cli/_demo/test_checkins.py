from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from hubbub import Session
from hubbub.cli._demo.checkins import CALLERS, LOOKUPS, check_in
from hubbub.cli._demo.figures import Stopwatch
from hubbub.cli._demo.stage import Stage
from hubbub.services.sessions import SessionService


@pytest.fixture
def people() -> list[UUID]:
    return [uuid4() for _ in range(6)]


async def test_sessions_are_looked_up_while_others_end(stage: Stage, people: list[UUID]) -> None:
    scene = await check_in(stage, Stopwatch(), people)
    assert [check.wrong for check in scene.checks] == [(), ()]
    assert all(check.count for check in scene.checks)
    [lookups] = scene.figures
    assert lookups.count == CALLERS * LOOKUPS
    for user_id, left in zip(people, [0, 3] * 3, strict=True):
        assert len(await stage.hub.sessions.list_sessions(user_id)) == left


async def test_a_hub_that_remembers_sessions_is_caught(
    stage: Stage, people: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    get, remembered = SessionService.get_session, dict[str, Session]()

    async def remembering(sessions: SessionService, token: str) -> Session | None:
        found = await get(sessions, token)
        if found is not None:
            remembered[token] = found
        return remembered.get(token)

    monkeypatch.setattr(SessionService, "get_session", remembering)
    scene = await check_in(stage, Stopwatch(), people)
    assert [check.what for check in scene.checks if not check.ok] == ["an ended session is never accepted"]


async def test_a_hub_that_mixes_sessions_up_is_caught(
    stage: Stage, people: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    get, seen = SessionService.get_session, list[str]()

    async def mixing(sessions: SessionService, token: str) -> Session | None:
        seen.append(token)
        return await get(sessions, seen[0])

    monkeypatch.setattr(SessionService, "get_session", mixing)
    scene = await check_in(stage, Stopwatch(), people)
    assert "a session is that of its user" in [check.what for check in scene.checks if not check.ok]
