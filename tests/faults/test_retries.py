"""Answers are lost after the commit, and senders are killed before they hear them: the message is sent again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faults import checker
from faults.chat import Chat
from faults.figures import Figures
from faults.relay import LostAnswers
from faults.scale import SCALE
from faults.sender import unanswered
from faults.stored import stored_in

# By chance one of the first answers is lost, so that a short run has some too.
SEED = 145


@pytest.mark.guarantee("G2", "answers cut off after the commit, 1 % of them")
async def test_a_send_whose_answer_was_lost_is_stored_once(chat: Chat, figures: Figures) -> None:
    postgres = chat.settings.postgres
    async with LostAnswers(postgres.host, postgres.port, share=0.01, seed=SEED) as relay:
        through = replace(chat.settings, postgres=replace(postgres, port=relay.port))
        for seed in range(2):
            await chat.sender(SCALE.messages // 2, seed=seed, callers=3, through=through)
        await chat.all_is_sent()
    stored = await stored_in(postgres)
    twice = list(checker.duplicates(stored))
    figures.found(f"{len(twice)} duplicates, {relay.lost} of {relay.lost + relay.carried:,} answers were lost")
    assert relay.lost
    assert not twice
    assert await chat.violations() == []


@pytest.mark.guarantee("G2", "kill -9 of a sender, whose messages another process sends again")
async def test_what_a_killed_sender_had_begun_is_sent_once_by_the_next(chat: Chat, figures: Figures) -> None:
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
