"""Asking the doctor, and reading what it says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hubbub.cli._doctor.examination import Section
from hubbub.cli._doctor.findings import Outcome, Severity

Sql = Callable[[str], Awaitable[None]]
Look = Callable[..., Awaitable[Section]]


def of(section: Section, name: str) -> Outcome:
    """What became of the check of this name."""
    [outcome] = [outcome for outcome in section.checks if outcome.name == name]
    return outcome


def severities(section: Section, name: str) -> list[str]:
    return [finding.severity.value for finding in of(section, name).findings]


def meanings(section: Section, name: str) -> str:
    return "\n".join(f"{finding.meaning} {finding.remedy}" for finding in of(section, name).findings)


def troubled(section: Section) -> set[str]:
    """The names of the checks that found something, or could not look."""
    return {
        outcome.name
        for outcome in section.checks
        if outcome.unseen or any(finding.severity is not Severity.NOTE for finding in outcome.findings)
    }
