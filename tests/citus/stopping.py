"""Stops `hubbub distribute` between two steps, like a kill."""

from __future__ import annotations

from collections.abc import Callable

from hubbub.migrations import distribution


class Killed(Exception):
    pass


def stop_after(number: int) -> Callable[[distribution.Step], None]:
    """A callback for `done` that raises after this many steps."""
    taken: list[distribution.Step] = []

    def done(step: distribution.Step) -> None:
        taken.append(step)
        if len(taken) == number:
            raise Killed

    return done
