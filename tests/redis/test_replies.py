from __future__ import annotations

from collections.abc import Callable

import pytest

from hubbub.redis.replies import (
    Reply,
    as_bool,
    as_bytes,
    as_bytes_list,
    as_int,
    as_list,
    as_optional_bytes,
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
