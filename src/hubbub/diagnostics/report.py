"""Checks of the doctor: their results, how they are run, and the report for programs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address
from typing import Final, Generic, Literal, NamedTuple, TypeVar

import msgspec

from hubbub.errors import Unavailable
from hubbub.redis import ReplyError
from hubbub.settings import Address

T = TypeVar("T")

SOMETHING_FOUND: Final = 1
OUT_OF_REACH: Final = 3


class Severity(StrEnum):
    """How bad it is. A note is good to know and needs nothing to be done, so it does not count as a finding."""

    ERROR = "error"
    """A guarantee of hubbub does not hold, or it does not work at all."""
    WARNING = "warning"
    """It works, but fails under load, after a crash or under attack."""
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True):
    """A problem: its meaning and its remedy, in a sentence or two each."""

    severity: Severity
    meaning: str
    remedy: str


error = partial(Finding, Severity.ERROR)
warning = partial(Finding, Severity.WARNING)
note = partial(Finding, Severity.NOTE)


class Result(NamedTuple):
    """The outcome of a check: the state in a few words, and its problems."""

    summary: str
    findings: Sequence[Finding] = ()


class Skipped(Exception):
    """Raised by a check that cannot run; the text is the reason."""


class Check(NamedTuple, Generic[T]):
    """A look at one thing. `name` is its stable name in the output; T is what it looks at."""

    name: str
    title: str
    run: Callable[[T], Awaitable[Result]]
    """Raises `Skipped`. A check whose statement or command is refused counts as skipped as well."""


class CheckResult(msgspec.Struct, frozen=True):
    """`skipped` is why the check could not look, or None. The JSON keeps the names of the first release."""

    name: str
    title: str
    summary: str = msgspec.field(name="remark")
    skipped: str | None = msgspec.field(name="unseen")
    findings: tuple[Finding, ...]


class Section(msgspec.Struct, frozen=True):
    """The checks of one server, or of both together.

    `where` is the host and port. `out_of_reach` is why the server could not be asked, or not to the end.
    """

    kind: Literal["postgresql", "redis", "together"]
    name: str
    where: str | None
    out_of_reach: str | None
    checks: tuple[CheckResult, ...]


class Report(msgspec.Struct, frozen=True):
    """`exit_status` is 0 without an error or warning, 1 with one, and 3 with a server out of reach."""

    hubbub: str
    exit_status: int
    sections: tuple[Section, ...]


async def run_checks(
    kind: Literal["postgresql", "redis", "together"],
    name: str,
    where: str | None,
    checks: Iterable[Check[T]],
    run: Callable[[Check[T]], Awaitable[Result]],
) -> Section:
    """Run them until one finds that the server is out of reach. Does not raise for it."""
    results, out_of_reach = list[CheckResult](), None
    for check in checks:
        result, skipped = Result(""), None
        try:
            result = await run(check)
        except Unavailable as refusal:
            if refusal.retryable:
                out_of_reach = f"{refusal.reason} (at: {check.title})"
                break
            skipped = refusal.reason
        except (Skipped, ReplyError) as reason:
            skipped = str(reason)
        results.append(CheckResult(check.name, check.title, result.summary, skipped, tuple(result.findings)))
    return Section(kind, name, where, out_of_reach, tuple(results))


def is_this_machine(host: str) -> bool:
    """Whether the host is the loopback interface, on which only root can listen."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def are_on_this_machine(addresses: Iterable[Address]) -> bool:
    return all(is_this_machine(address.host) for address in addresses)


def unencrypted(service: str, addresses: Iterable[Address], remedy: str) -> Result:
    if are_on_this_machine(addresses):
        return Result("off, and the server is on this machine")
    meaning = f"Messages, hashes and tokens can be read and changed between here and {service}."
    return Result("off", [error(meaning, remedy)])


def summarize(sections: Sequence[Section]) -> Report:
    found = {finding.severity for section in sections for check in section.checks for finding in check.findings}
    out_of_reach = any(section.out_of_reach for section in sections)
    status = OUT_OF_REACH if out_of_reach else SOMETHING_FOUND if found - {Severity.NOTE} else 0
    return Report(version("hubbub"), status, tuple(sections))


def as_json(report: Report) -> str:
    """The fields of `Report`, `Section`, `CheckResult` and `Finding`."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
