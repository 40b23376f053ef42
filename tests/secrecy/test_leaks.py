"""The search for secrets finds them in all texts of a run, and a run that leaks a secret fails."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubbub import Hub, User
from secrecy.leaks import MARK, LeakSearch

pytest_plugins = ["pytester"]

A_RUN = """
    import logging

    import pytest
    from hubbub import Invalid
    from secrecy.leaks import MARK

    SECRET = "0" * 35 + MARK


    def test_it_is_logged():
        logging.getLogger("hubbub.redis").debug("refused: %s", SECRET)


    def test_it_is_in_an_error():
        with pytest.raises(Invalid):
            raise Invalid("token", f"{SECRET} is none")


    def test_it_is_printed():
        print(SECRET)


    def test_server_writes_it_down(tmp_path):
        (tmp_path / "server.log").write_text(f"no such key: session:{SECRET}")
"""

FOUND = (
    "the logger hubbub.redis",
    "an error, Invalid",
    "Captured stdout call of test_a_run.py::test_it_is_printed",
    "test_server_writes_it_down0/server.log",
)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder outside that of this run, because the search of this run would find the secret as well."""
    with tempfile.TemporaryDirectory(prefix="hubbub-leaks-") as folder:
        yield Path(folder, "run")


def test_run_that_leaks_a_secret_fails_and_names_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pytester.makepyfile(test_a_run=A_RUN)
    result = pytester.runpytest_subprocess(
        *("-p", "secrecy.leaks", "--show-capture=no", f"--basetemp={elsewhere}"), timeout=100
    )
    result.assert_outcomes(passed=4, errors=1)
    output = result.stdout.str()
    assert [where for where in FOUND if f"a session token, in {where}" not in output] == []
    assert MARK not in output


async def test_tokens_of_the_run_have_the_mark_and_differ(hub: Hub, ada: User) -> None:
    tokens = {await hub.sessions.create_session(ada.id) for _ in range(10)}
    assert len(tokens) == 10
    assert all(token.endswith(MARK) and len(token) == 47 for token in tokens)
    assert len({token[4:8] for token in tokens}) > 8


def test_leaked_password_is_found_and_not_repeated() -> None:
    leak_search, password = LeakSearch(), secrets.token_hex()
    leak_search.add_text("an error", f"what a password: {password}")
    assert leak_search.leaks() == []
    leak_search.add_secret(password, "a password that was hashed")
    assert leak_search.leaks() == ["a password that was hashed, in an error"]
