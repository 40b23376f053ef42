from __future__ import annotations

import pytest

from hubbub.cli._demo import broadcast as module
from hubbub.cli._demo.broadcast import LISTENERS, MESSAGES, broadcast
from hubbub.cli._demo.figures import Stopwatch
from hubbub.cli._demo.stage import Stage
from hubbub.services.realtime import RealtimeService


async def test_every_listener_hears_every_message(stage: Stage) -> None:
    watch = Stopwatch()
    [delivery] = (await broadcast(stage, watch)).checks
    assert delivery.ok
    assert delivery.count == LISTENERS * MESSAGES
    counts = {figure.what: figure.count for figure in watch.figures()}
    assert counts == {"publish a message": MESSAGES, "hear a published message": LISTENERS * MESSAGES}


@pytest.mark.parametrize(
    ("times", "wrong"), [(0, "a message did not arrive"), (2, "message 8 was due, message 7 came")]
)
async def test_a_message_that_is_lost_or_comes_twice_is_caught(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, times: int, wrong: str
) -> None:
    publish = RealtimeService.publish

    async def unreliable(realtime: RealtimeService, channel: str, message: str) -> int:
        for _ in range(times if message == "7" else 1):
            await publish(realtime, channel, message)
        return 1

    monkeypatch.setattr(RealtimeService, "publish", unreliable)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 3)
    monkeypatch.setattr(module, "LISTENERS", 1)
    monkeypatch.setattr(module, "MESSAGES", 9)
    [delivery] = (await broadcast(stage, Stopwatch())).checks
    assert wrong in delivery.wrong
