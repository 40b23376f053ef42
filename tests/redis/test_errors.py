from __future__ import annotations

import pytest

from hubbub.errors import Unavailable
from hubbub.redis.errors import ReplyError, to_error


@pytest.mark.parametrize("code", ["BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "OOM", "READONLY"])
def test_a_server_that_cannot_serve_now_may_be_asked_again(code: str) -> None:
    reply = ReplyError(f"{code} for some reason")
    error = to_error(reply)
    assert isinstance(error, Unavailable)
    assert error.retryable
    assert not error.outcome_unknown
    assert error.__cause__ is reply


@pytest.mark.parametrize("code", ["NOAUTH", "NOPERM", "WRONGPASS"])
def test_a_login_that_is_refused_stays_refused(code: str) -> None:
    error = to_error(ReplyError(f"{code} for some reason"))
    assert isinstance(error, Unavailable)
    assert not error.retryable


@pytest.mark.parametrize("code", ["CROSSSLOT", "ERR", "EXECABORT", "NOSCRIPT", "WRONGTYPE"])
def test_a_wrong_command_is_our_own_mistake(code: str) -> None:
    reply = ReplyError(f"{code} for some reason")
    assert to_error(reply) is reply
    assert reply.code == code


def test_the_values_of_an_unknown_command_are_left_out() -> None:
    reply = ReplyError("ERR unknown command 'X', with args beginning with: 'secret' 'secret'")
    assert str(reply) == "ERR unknown command 'X'"


def test_what_a_script_ran_into_is_found_in_the_words_of_redis_6() -> None:
    text = "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -READONLY You can't write"
    assert ReplyError(text).code == "READONLY"
