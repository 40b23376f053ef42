"""Answers are lost after the commit, or senders are killed. The message is sent again and stored once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faults import checker
from faults.chat import Chat
from faults.checker import stored_in
from faults.figures import SCALE, Figures
from faults.relays import LostAnswers, one_in
from faults.sender import unanswered


@pytest.mark.guarantee("G2", "answers cut off after the commit, 1 % of them, half of these with all connections")
async def test_change_is_made_once_when_its_answer_is_lost_and_not_at_all_when_it_is_refused(
    chat: Chat, figures: Figures
) -> None:
    """Authors read their messages after each call, and abandon calls that were not made."""
    postgres = chat.settings.postgres
    async with LostAnswers(postgres.host, postgres.port, one_in(100), refuses=10) as relay:
        through = replace(chat.settings, postgres=replace(postgres, port=relay.port))
        for seed in range(2):
            await chat.sender(
                SCALE.messages // 4, seed=seed, callers=3, changes=0.5, verifies=True, through=through
            )
        await chat.all_is_sent()
    twice = list(checker.duplicates(await stored_in(postgres)))
    figures.found(
        f"{len(twice)} duplicates, {relay.lost} of {relay.lost + relay.carried:,} answers were lost; "
        f"{chat.errors} tries failed, {chat.given_up} calls were refused for certain"
    )
    assert relay.lost
    assert relay.refused
    assert not twice
    assert await chat.violations() == []


@pytest.mark.guarantee("G2", "kill -9 of a sender, whose messages another process sends again")
async def test_unanswered_sends_of_killed_process_are_stored_once_when_the_next_repeats_them(
    chat: Chat, figures: Figures
) -> None:
    again = 0
    for seed in range(SCALE.seeds):
        first = await chat.sender(1_000_000, seed=seed, callers=20)
        await chat.acknowledged(SCALE.messages // 4)
        await first.kill()
        again += len(unanswered([first.history]))
        await (await chat.sender(10, seed=100 + seed, left_behind=first)).succeeds()
    twice = list(checker.duplicates(await stored_in(chat.settings.postgres)))
    figures.found(f"{len(twice)} duplicates, {again} messages sent again")
    assert again
    assert await chat.violations() == []
