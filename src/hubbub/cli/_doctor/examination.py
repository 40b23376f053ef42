"""Running the checks of a server, whatever it refuses and whenever it goes away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Literal, TypeVar

import msgspec

from hubbub.cli._doctor.findings import Check, Finding, Outcome, Seen, Severity, Unseen
from hubbub.errors import Unavailable
from hubbub.redis import ReplyError

P = TypeVar("P")

Kind = Literal["postgresql", "redis", "together"]


class Section(msgspec.Struct, frozen=True):
    """What was seen of one server, or of what they do together.

    `where` is its host and port. `out_of_reach` is why it could not be asked, or not to the end.
    """

    kind: Kind
    name: str
    where: str | None
    out_of_reach: str | None
    checks: tuple[Outcome, ...]

    @property
    def findings(self) -> list[Finding]:
        """What there is to do something about: errors and warnings."""
        found = [finding for check in self.checks for finding in check.findings]
        return [finding for finding in found if finding.severity is not Severity.NOTE]


async def examine(
    checks: Iterable[Check[P]], look: Callable[[Check[P]], Awaitable[Seen]]
) -> tuple[list[Outcome], str | None]:
    """Look by all the checks. Gives what became of them and, where the server went away meanwhile, why."""
    outcomes: list[Outcome] = []
    for check in checks:
        try:
            seen = await look(check)
        except Unavailable as refusal:
            if refusal.retryable:
                return outcomes, f"{refusal.reason} (at: {check.title})"
            outcomes.append(_unseen(check, refusal.reason))
        except (Unseen, ReplyError) as reason:
            outcomes.append(_unseen(check, str(reason)))
        else:
            outcomes.append(Outcome(check.name, check.title, seen.remark, None, seen.findings))
    return outcomes, None


def _unseen(check: Check[P], reason: str) -> Outcome:
    return Outcome(check.name, check.title, "", reason, ())
