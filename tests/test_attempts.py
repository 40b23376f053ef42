from __future__ import annotations

import asyncio

import pytest

from hubbub.attempts import Attempt, report
from reports import reports


async def test_what_nobody_foresaw_is_reported_and_the_work_goes_on() -> None:
    error = ZeroDivisionError()
    with reports() as reported:
        with Attempt("counting"):
            raise error
        report("there is more", error)
    assert reported == [
        {"message": "counting failed", "exception": error},
        {"message": "there is more", "exception": error},
    ]


async def test_what_goes_well_is_not_reported() -> None:
    with reports() as reported, Attempt("counting"):
        pass
    assert reported == []


@pytest.mark.parametrize("end", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
async def test_what_is_to_end_the_work_ends_it(end: type[BaseException]) -> None:
    with reports() as reported, pytest.raises(end), Attempt("counting"):
        raise end
    assert reported == []
