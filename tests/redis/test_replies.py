from __future__ import annotations

from collections.abc import Callable

import pytest

from hubbub.errors import Unavailable
from hubbub.redis.replies import (
    Reply,
    ReplyError,
    as_bool,
    as_bytes,
    as_bytes_list,
    as_int,
    as_list,
    as_optional_bytes,
    to_error,
)


def test_reply_of_the_expected_type_is_returned() -> None:
    assert as_int(1) == 1
    assert as_bytes(b"x") == b"x"
    assert as_optional_bytes(None) is None
    assert as_list([1, b"x"]) == [1, b"x"]
    assert as_bytes_list([b"x"]) == [b"x"]
    assert as_bool(1)
    assert not as_bool(None)


@pytest.mark.parametrize(
    ("read", "reply"),
    [
        (as_int, b"1"),
        (as_bytes, None),
        (as_optional_bytes, 1),
        (as_list, b"secret"),
        (as_bytes_list, [b"x", None]),
    ],
)
def test_reply_of_another_type_raises_without_its_content(read: Callable[[Reply], object], reply: Reply) -> None:
    with pytest.raises(TypeError) as caught:
        read(reply)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("code", ["BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "OOM", "READONLY"])
def test_passing_error_code_is_retryable(code: str) -> None:
    reply = ReplyError(f"{code} for some reason")
    error = to_error(reply)
    assert isinstance(error, Unavailable)
    assert error.retryable
    assert not error.outcome_unknown
    assert error.__cause__ is reply


@pytest.mark.parametrize("code", ["NOAUTH", "NOPERM", "WRONGPASS"])
def test_login_error_code_is_not_retryable(code: str) -> None:
    error = to_error(ReplyError(f"{code} for some reason"))
    assert isinstance(error, Unavailable)
    assert not error.retryable


@pytest.mark.parametrize("code", ["CROSSSLOT", "ERR", "EXECABORT", "NOSCRIPT", "WRONGTYPE"])
def test_other_error_code_stays_a_reply_error(code: str) -> None:
    reply = ReplyError(f"{code} for some reason")
    assert to_error(reply) is reply
    assert reply.code == code


def test_error_for_an_unknown_command_leaves_out_its_values() -> None:
    reply = ReplyError("ERR unknown command 'X', with args beginning with: 'secret' 'secret'")
    assert str(reply) == "ERR unknown command 'X'"


def test_error_within_a_script_has_its_own_code_in_the_words_of_redis_6() -> None:
    text = "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -READONLY You can't write"
    assert ReplyError(text).code == "READONLY"
