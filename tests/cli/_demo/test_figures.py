from __future__ import annotations

import pytest

from hubbub.cli._demo.figures import Claim, Stopwatch, at_share


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_a_share_of_the_values_does_not_exceed_it(share: float, value: float) -> None:
    assert at_share([float(n) for n in range(1, 101)], share) == value


def test_a_single_value_is_every_share() -> None:
    assert at_share([7.0], 0.5) == at_share([7.0], 0.99) == 7.0


def test_a_call_that_raises_is_not_counted() -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.time("read"):
        raise KeyError
    with watch.time("read"):
        pass
    for _ in range(2):
        with watch.time("send"):
            pass
    assert [(figure.what, figure.count) for figure in watch.figures()] == [("send", 2), ("read", 1)]
    assert watch.calls == 3
    assert watch.all_in_all("calls", 3).per_second


def test_a_claim_holds_until_it_is_broken_once() -> None:
    claim = Claim("all is well")
    claim.holds(True, "never")
    assert claim.check().ok
    for n in range(50):
        claim.holds(False, f"broken {n}")
    check = claim.check()
    assert not check.ok
    assert check.count == 51
    assert check.wrong[0] == "broken 0"
    assert len(check.wrong) == 10
