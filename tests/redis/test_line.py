from __future__ import annotations

import pytest

from hubbub.redis.line import pause_seconds


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.05), (2, 0.1), (10, 0.5), (40, 2), (1_000, 2)])
def test_the_pause_grows_with_each_attempt_up_to_two_seconds(attempt: int, longest: float) -> None:
    pauses = [pause_seconds(attempt) for _ in range(200)]
    assert longest / 2 <= min(pauses)
    assert max(pauses) <= longest
    assert max(pauses) > min(pauses)
