"""Redis is down from the start to the end."""

from __future__ import annotations

import pytest

from faults.chat import Chat
from faults.figures import SCALE, Figures
from faults.fragile import FragileServers
from hubbub import Hub


@pytest.mark.guarantee("G12", "Redis down from beginning to end")
async def test_sends_commit_followers_converge_and_presence_is_unknown_without_redis(
    chat: Chat, fragile: FragileServers, figures: Figures
) -> None:
    fragile.kill("valkey")
    await chat.follower()
    await chat.sender(SCALE.messages, seed=1, callers=20)
    await chat.all_is_sent()
    await chat.converged()
    async with Hub(chat.settings) as hub:
        presence = await hub.presence.is_online(chat.user_ids)
    found = await chat.violations()
    unknown = list(presence.values()).count(None)
    figures.found(
        f"{chat.errors} errors in {chat.count:,} calls, {len(found)} violations, delay at most "
        f"{chat.delays()[-1]:.2f} s, presence of {unknown} of {len(presence)} unknown"
    )
    assert chat.errors == 0
    assert not found
    assert presence == dict.fromkeys(chat.user_ids)
