"""What a check has seen, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

import msgspec

P = TypeVar("P")


class Severity(StrEnum):
    """How bad it is. A note is no finding: it says what to know, and needs nothing to be done."""

    ERROR = "error"
    """What hubbub promises does not hold, or it does not work at all."""
    WARNING = "warning"
    """It works, and will hurt under load, in an accident or at an attack."""
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it should be: what it means, and what to do about it, in a sentence or two."""

    severity: Severity
    meaning: str
    remedy: str


class Seen(NamedTuple):
    """What there was to see, in a few words, and what of it is not as it should be."""

    remark: str
    findings: tuple[Finding, ...] = ()


class Unseen(Exception):
    """Raised by a check that has no way to look; says why."""


class Check(NamedTuple, Generic[P]):
    """A look at one thing. `name` is its stable name in the output; P is what it looks at."""

    name: str
    title: str
    look: Callable[[P], Awaitable[Seen]]
    """Raises `Unseen`; what a server refuses counts as unseen as well."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of a check. `unseen` is why it could not look, None where it could."""

    name: str
    title: str
    remark: str
    unseen: str | None
    findings: tuple[Finding, ...]


def error(meaning: str, remedy: str) -> Finding:
    return Finding(Severity.ERROR, meaning, remedy)


def warning(meaning: str, remedy: str) -> Finding:
    return Finding(Severity.WARNING, meaning, remedy)


def note(meaning: str, remedy: str) -> Finding:
    return Finding(Severity.NOTE, meaning, remedy)
