from __future__ import annotations

import pytest

from hubbub import User
from hubbub.cli._demo.figures import Stopwatch
from hubbub.cli._demo.logins import PEOPLE, log_in
from hubbub.cli._demo.stage import Stage
from hubbub.passwords import Passwords
from hubbub.services.accounts import Accounts


async def test_people_make_accounts_and_log_in(stage: Stage) -> None:
    watch = Stopwatch()
    [passwords] = (await log_in(stage, watch)).checks
    assert passwords.ok
    assert {figure.what: figure.count for figure in watch.figures()} == {
        "make an account with a password": PEOPLE,
        "log in": PEOPLE,
    }
    assert len(stage.people) == PEOPLE


async def test_a_hub_that_takes_any_password_is_caught(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def trusting(passwords: Passwords, password: str, password_hash: str | None) -> bool:
        return True

    monkeypatch.setattr(Passwords, "verify", trusting)
    [passwords] = (await log_in(stage, Stopwatch())).checks
    assert passwords.wrong == tuple(f"guest {number} was let in with a wrong password" for number in (1, 3, 5))


async def test_a_hub_that_lets_nobody_in_is_caught(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def locked(accounts: Accounts, login: str, password: str, **_: object) -> User | None:
        return None

    monkeypatch.setattr(Accounts, "authenticate", locked)
    [passwords] = (await log_in(stage, Stopwatch())).checks
    assert len(passwords.wrong) == PEOPLE
