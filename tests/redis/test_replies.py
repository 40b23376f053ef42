from __future__ import annotations

from collections.abc import Callable

import pytest

from hubbub.redis.replies import (
    Reply,
    array,
    data,
    data_array,
    integer,
    nothing,
    optional_data,
    truth,
)


def test_a_reply_of_the_expected_kind_is_given_as_that_kind() -> None:
    assert integer(1) == 1
    assert data(b"x") == b"x"
    assert optional_data(None) is None
    assert array([1, b"x"]) == [1, b"x"]
    assert data_array([b"x"]) == [b"x"]
    assert truth(1)
    assert not truth(None)
    nothing(b"whatever")


@pytest.mark.parametrize(
    ("read", "reply"),
    [
        (integer, b"1"),
        (data, None),
        (optional_data, 1),
        (array, b"secret"),
        (data_array, [b"x", None]),
    ],
)
def test_a_reply_of_another_kind_is_a_bug_and_its_content_is_not_told(
    read: Callable[[Reply], object], reply: Reply
) -> None:
    with pytest.raises(TypeError) as caught:
        read(reply)
    assert "secret" not in str(caught.value)
