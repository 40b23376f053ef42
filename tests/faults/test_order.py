"""Many processes send into the same rooms at once."""

from __future__ import annotations

import pytest

from faults import checker
from faults.chat import Chat
from faults.checker import stored_in
from faults.figures import SCALE, Figures


@pytest.mark.guarantee("G3", "three processes send, edit and delete in the same rooms")
async def test_seqs_have_no_hole_and_follow_real_time(chat: Chat, figures: Figures) -> None:
    for seed in range(3):
        await chat.sender(SCALE.messages, seed=seed, callers=10)
    await chat.all_is_sent()
    stored = await stored_in(chat.settings.postgres)
    found = [*checker.holes(stored), *checker.out_of_order(chat.sent, stored)]
    figures.found(f"{len(found)} violations in {chat.count:,} calls")
    assert not found
    assert await chat.violations() == []
