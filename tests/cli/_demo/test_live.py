from __future__ import annotations

import pytest

from hubbub.cli._demo.checks import check
from hubbub.cli._demo.live import live
from hubbub.cli._demo.load import load
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.talk import talk


@pytest.mark.parametrize("users", [2, 9])
async def test_people_log_in_come_and_go_type_and_listen_and_everything_holds(stage: Stage, users: int) -> None:
    stage.users = users
    await load(stage)
    await talk(stage)
    section = await live(stage)
    assert [check for check in section.checks if not check.ok] == []
    assert all(check.count for check in section.checks), "a check looked at nothing"
    counts = [figure.count for figure in section.figures]
    assert counts == sorted(counts, reverse=True)
    assert [check for check in (await check(stage)).checks if not check.ok] == []
