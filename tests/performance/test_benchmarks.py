"""The figures of a run become ratios, targets and tables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import capacity, report
from benchmarks.machine import Machine
from benchmarks.measuring import Comparison, Figures, Pace, Target, closed_loop, compare
from benchmarks.results import Results, outcomes

PACE = Pace(rounds=3, seconds=0, messages=0, quick=True)


def results(*comparisons: Comparison) -> Results:
    versions = {"PostgreSQL": "18.6", "Python": "3.11.7"}
    machine = Machine(2, "Processor", 8, "Linux 6.1", versions, "2026-01-31")
    return Results(machine, PACE, 1.0, list(comparisons))


def two(*rounds: tuple[Figures, Figures], targets: list[Target]) -> Comparison:
    return Comparison("sends-200", "sends", [{"hubbub": ours, "seed": theirs} for ours, theirs in rounds], targets)


async def test_contenders_run_once_per_round_in_alternating_order() -> None:
    ran: list[str] = []
    rates: Iterator[int] = iter(range(1, 100))

    def contender(name: str) -> object:
        async def load(_: float) -> Figures:
            ran.append(name)
            return {"rate": next(rates)}

        return load

    contenders = {name: contender(name) for name in "ab"}
    target = Target("rate", at_least=1, against="b", of="a")
    left_out = Target("rate", at_least=1, against="not here", of="a")
    found = await compare("cell", "title", contenders, PACE, targets=[target, left_out])  # type: ignore[arg-type]
    assert "".join(ran) == "ab" + "ab" + "ba" + "ab"
    assert [list(one) for one in found.rounds] == [["a", "b"]] * 3
    assert found.targets == [target]


async def test_closed_loop_has_at_most_one_call_in_flight_per_caller() -> None:
    under_way = most = 0
    numbers: list[int] = []

    async def step(number: int) -> None:
        nonlocal under_way, most
        numbers.append(number)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    figures = await closed_loop(step, callers=7, seconds=0.01)
    assert most == 7
    assert len(set(numbers)) == len(numbers) >= 7
    assert figures["p50_ms"] <= figures["p99_ms"]


def test_ratio_is_taken_within_a_round_and_above_one_if_hubbub_is_better() -> None:
    slow, fast = {"rate": 100.0, "p99_ms": 40.0}, {"rate": 300.0, "p99_ms": 10.0}
    targets = [Target("rate", at_least=3, against="seed"), Target("p99_ms", at_least=3, against="seed")]
    found = two((fast, slow), (fast, {"rate": 200.0, "p99_ms": 20.0}), (fast, slow), targets=targets)
    rate, p99 = outcomes(results(found))
    assert (rate.least, rate.middle, rate.most, rate.reached) == (1.5, 3.0, 3.0, True)
    assert (p99.least, p99.middle, p99.most, p99.reached) == (2.0, 4.0, 4.0, True)


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target("MiB", at_most=80), True),
        (Target("MiB", at_most=70), False),
        (Target("MiB", at_least=80), False),
    ],
)
def test_figure_without_a_peer_has_an_absolute_limit(target: Target, reached: bool) -> None:
    [outcome] = outcomes(results(Comparison("idle", "idle", [{"hubbub": {"MiB": 75.0}}], [target])))
    assert outcome.reached is reached


def test_written_run_is_read_back_with_four_significant_digits(tmp_path: Path) -> None:
    found = results(two(({"rate": 123456.789}, {"rate": 2.0}), targets=[Target("rate", 5.5, "seed")]))
    found.write(tmp_path / "results.json")
    read = Results.read(tmp_path / "results.json")
    assert read.comparisons[0].rounds == [{"hubbub": {"rate": 123500.0}, "seed": {"rate": 2.0}}]
    assert read.comparisons[0].targets == found.comparisons[0].targets


def test_table_names_cell_ratio_target_and_machine() -> None:
    found = results(two(({"rate": 600.0}, {"rate": 100.0}), targets=[Target("rate", 5.5, "seed")]))
    found.comparisons[0].skipped["ioredis"] = "node is not installed"
    table = report.markdown(found)
    assert "| sends | hubbub / seed: rate | at least 5.50 x | 6.00 | 6.00 | 6.00 | 600 | 100 | yes |" in table
    assert "2 cores of Processor, 8 GiB, Linux 6.1, PostgreSQL 18.6, Python 3.11.7, 2026-01-31" in table
    assert "Left out - sends, ioredis: node is not installed." in table


def test_capacity_is_the_peak_rate_times_the_cost_of_one_operation() -> None:
    found = results(two(({"rate": 10_000.0}, {"rate": 1.0}), targets=[]))
    [cost] = capacity.costs(found, 1_000_000)
    assert cost.core_us == 200  # two cores did 10,000 a second
    assert cost.per_second == pytest.approx(1_000_000 * 40 * 3 / 86_400)
    assert cost.cores == pytest.approx(0.2778, rel=1e-3)
    assert "1,000,000 daily users: 1 machine of" in capacity.markdown(found)
