from __future__ import annotations

from uuid import UUID

import pytest

from hubbub.cli._demo.figures import Stopwatch
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.typists import type_in_a_room
from hubbub.services.typing_indicators import TypingIndicators


async def test_whoever_types_stops_in_the_end(stage: Stage) -> None:
    watch = Stopwatch()
    scene = await type_in_a_room(stage, watch)
    assert [check.wrong for check in scene.checks] == [(), ()]
    assert [figure.count for figure in watch.figures()] == [8]
    assert stage.ledger.messages == 1


async def test_a_message_that_does_not_stop_its_author_is_caught(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(typing: TypingIndicators, room_id: UUID, user_id: UUID) -> None:
        """Stops nobody."""

    monkeypatch.setattr(TypingIndicators, "stop_soon", forgetful)
    _, known = (await type_in_a_room(stage, Stopwatch())).checks
    assert known.wrong == ("1 people type, 0 are said to",)
