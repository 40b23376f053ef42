"""Reads sections of the report of `hubbub doctor`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hubbub import PostgresSettings
from hubbub.diagnostics import postgresql
from hubbub.diagnostics.report import CheckResult, Section, Severity
from hubbub.postgres import Pool

Sql = Callable[[str], Awaitable[None]]
Look = Callable[..., Awaitable[Section]]


async def section_of(
    settings: PostgresSettings, *, processes: int = 1, pretended: PostgresSettings | None = None
) -> Section:
    """The section of PostgreSQL. With `pretended` the checks get these settings instead of the connection's."""
    pool = Pool(settings)
    try:
        return await postgresql.check(pool, pretended or settings, processes)
    finally:
        await pool.close()


def result_of(section: Section, name: str) -> CheckResult:
    [result] = [result for result in section.checks if result.name == name]
    return result


def severities(section: Section, name: str) -> list[str]:
    return [finding.severity.value for finding in result_of(section, name).findings]


def meanings(section: Section, name: str) -> str:
    return "\n".join(f"{finding.meaning} {finding.remedy}" for finding in result_of(section, name).findings)


def failed(section: Section) -> set[str]:
    """The names of checks with an error or a warning, and of skipped checks."""
    return {
        result.name
        for result in section.checks
        if result.skipped or any(finding.severity is not Severity.NOTE for finding in result.findings)
    }
