"""The longest test files of a run start first."""

from __future__ import annotations

from file_order import LONG_SECONDS, rank


def test_files_start_in_the_order_of_their_durations_and_short_ones_stay_in_random_order() -> None:
    seconds = {
        "tests/faults/test_short.py": 1.0,
        "tests/test_long.py": 90.0,
        "tests/test_medium.py": LONG_SECONDS + 0.1,
        "tests/test_short.py": LONG_SECONDS - 0.1,
    }
    files = ["tests/test_new.py", "tests/test_short.py", "tests/faults/test_new.py", *seconds]
    assert sorted(set(files), key=lambda file: rank(file, seconds))[:3] == [
        "tests/faults/test_new.py",
        "tests/test_long.py",
        "tests/test_medium.py",
    ]
    assert {
        rank(file, seconds) for file in ("tests/test_new.py", "tests/test_short.py", "tests/faults/test_short.py")
    } == {0}
