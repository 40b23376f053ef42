"""Stops `hubbub distribute` between two steps, as a kill does."""

from __future__ import annotations

from collections.abc import Callable

from hubbub.migrations import distribution


class Killed(Exception):
    pass


def stop_after(number: int) -> Callable[[distribution.Step], None]:
    """For `done`: raises once so many steps were taken."""
    taken: list[distribution.Step] = []

    def done(step: distribution.Step) -> None:
        taken.append(step)
        if len(taken) == number:
            raise Killed

    return done
