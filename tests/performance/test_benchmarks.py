"""The ratios, targets and tables that are made of the figures of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks import capacity, report, simulate
from benchmarks.machine import Machine, Run
from benchmarks.measuring import (
    ASYNCIO,
    SELDOM,
    UVLOOP,
    Comparison,
    Done,
    Figures,
    Pace,
    Target,
    aims,
    closed_loop,
    compare,
    summary,
)
from benchmarks.results import RESULTS, Results, outcomes

PACE = Pace(rounds=3, seconds=0, messages=0, quick=True)


def results(*comparisons: Comparison) -> Results:
    versions = {"PostgreSQL": "18.6", "Valkey": "9.1.2", "Python": "3.11.7"}
    run = Run("2026-01-31 12:00", 90.0, 73.0, 0.1, 1.5, 0.02, [found.cell for found in comparisons])
    return Results(Machine(2, "AMD", 8, "Linux 6.1", versions), PACE, [run], list(comparisons))


def two(*rounds: tuple[Figures, Figures], targets: list[Target]) -> Comparison:
    return Comparison("sends-200", "sends", [{UVLOOP: ours, "seed": theirs} for ours, theirs in rounds], targets)


def target(figure: str, at_least: float) -> Target:
    return Target(figure, at_least, against="seed", of=UVLOOP)


async def test_contenders_run_once_per_round_in_alternating_order_and_some_of_them_seldom() -> None:
    ran: list[str] = []
    rates: Iterator[int] = iter(range(1, 100))

    def contender(name: str) -> object:
        async def load(_: float) -> Figures:
            ran.append(name)
            return {"rate": next(rates)}

        return load

    contenders = {name: contender(name) for name in "abc"}
    wanted = Target("rate", at_least=1, against="b", of="a")
    left_out = Target("rate", at_least=1, against="not here", of="a")
    pace = msgspec.structs.replace(PACE, rounds=SELDOM + 1)
    found = await compare("cell", "title", contenders, pace, targets=[wanted, left_out], seldom={"c"})  # type: ignore[arg-type]
    assert "".join(ran) == "abc" + "abc" + "ba" + "ab" + "cba"
    assert [list(one) for one in found.rounds] == [["a", "b", "c"], ["a", "b"], ["a", "b"], ["a", "b", "c"]]
    assert found.names == ["a", "b", "c"]
    assert len(found.ratios("rate", "a", "c")) == 2
    assert found.targets == [wanted]


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

    done = await closed_loop(step, callers=7, seconds=0.01)
    assert most == 7
    assert len(set(numbers)) == len(numbers) == done.operations >= 7
    figures = summary(done)
    assert figures["p50_ms"] <= figures["p99_ms"]


async def test_p99_is_that_of_the_calls_of_all_rounds() -> None:
    class Pooled:
        async def __call__(self, _: float) -> Figures:
            return {"p99_ms": 1.0}

        async def warm_up(self, _: float) -> None:
            pass

        async def pooled(self) -> Figures:
            return {"p99_ms": self.p99_ms}

        def __init__(self, p99_ms: float) -> None:
            self.p99_ms = p99_ms

    pair = {UVLOOP: Pooled(10.0), "seed": Pooled(40.0)}
    found = await compare("sends-200", "sends", pair, PACE, targets=[target("p99_ms", 3)])
    [outcome] = outcomes(results(found))
    assert (outcome.least, outcome.middle, outcome.most, outcome.reached) == (1.0, 4.0, 1.0, True)


def test_figures_of_a_window_are_per_second_and_per_operation() -> None:
    figures = summary(
        Done(4, seconds=2.0, cpu_seconds=0.008, latencies=[0.001, 0.002, 0.003, 0.1], more={"MiB": 1})
    )
    assert figures == {"rate": 2.0, "p50_ms": 3.0, "p99_ms": 100.0, "cpu_us": 2_000.0, "MiB": 1}


def test_ratio_is_taken_within_a_round_and_above_one_if_hubbub_is_better() -> None:
    slow, fast = {"rate": 100.0, "p50_ms": 40.0}, {"rate": 300.0, "p50_ms": 10.0}
    targets = [target("rate", 3), target("p50_ms", 3)]
    found = two((fast, slow), (fast, {"rate": 200.0, "p50_ms": 20.0}), (fast, slow), targets=targets)
    rate, p50 = outcomes(results(found))
    assert (rate.least, rate.middle, rate.most, rate.reached) == (1.5, 3.0, 3.0, True)
    assert (p50.least, p50.middle, p50.most, p50.reached) == (2.0, 4.0, 4.0, True)


def test_asyncio_has_to_reach_most_of_each_target() -> None:
    uvloop, asyncio_ = aims(("rate", 2.0, "seed"))
    assert uvloop == target("rate", 2.0)
    assert asyncio_ == Target("rate", 1.7, against="seed", of=ASYNCIO)


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
    found = results(two(({"rate": 123456.789}, {"rate": 2.0}), targets=[target("rate", 5.5)]))
    found.write(tmp_path / "results.json")
    read = Results.read(tmp_path / "results.json")
    assert read.comparisons[0].rounds == [{UVLOOP: {"rate": 123500.0}, "seed": {"rate": 2.0}}]
    assert read.comparisons[0].targets == found.comparisons[0].targets


def test_cells_of_another_run_replace_those_of_the_results_with_their_run() -> None:
    before = results(Comparison("a", "a", [{UVLOOP: {"rate": 1.0}}]), Comparison("b", "b", []))
    found = results(Comparison("a", "a", [{UVLOOP: {"rate": 2.0}}])).merged_into(before)
    assert [(each.cell, each.rounds) for each in found.comparisons] == [
        ("a", [{UVLOOP: {"rate": 2.0}}]),
        ("b", []),
    ]
    assert [run.cells for run in found.runs] == [["b"], ["a"]]
    other = msgspec.structs.replace(before, pace=msgspec.structs.replace(PACE, rounds=4))
    with pytest.raises(ValueError, match="another pace"):
        other.merged_into(before)


def test_table_names_cell_ratio_target_machine_and_how_busy_it_was() -> None:
    found = results(two(({"rate": 600.0}, {"rate": 100.0}), targets=[target("rate", 5.5)]))
    found.comparisons[0].skipped["ioredis"] = "node is not installed"
    table = report.markdown(found)
    assert (
        "| sends | hubbub, uvloop / seed: rate | at least 5.50 x | 6.00 | 6.00 | 6.00 | 600 | 100 | yes |" in table
    )
    assert "2 cores of an AMD, 8 GiB, Linux 6.1, PostgreSQL 18.6, Valkey 9.1.2, Python 3.11.7" in table
    assert "fdatasync 73 us; load average 0.1 before, 1.5 after; other programs took 0.02 cores" in table
    assert "Left out - sends, ioredis: node is not installed." in table


def test_tables_of_a_document_are_between_its_markers() -> None:
    text = "before\n<!-- make bench writes: targets -->\n| old |\n<!-- end -->\nafter\n"
    filled = report.filled(text, results(two(({"rate": 6.0}, {"rate": 1.0}), targets=[target("rate", 5.5)])))
    assert "| sends | rate | seed | at least 5.50 x | 6.00 x | 6.00 to 6.00 | yes |" in filled
    assert "old" not in filled
    assert filled.startswith("before\n<!-- make bench writes: targets -->\n\n|")
    assert filled.endswith("|\n\n<!-- end -->\nafter\n")


@pytest.mark.parametrize("document", report.DOCUMENTS, ids=lambda document: document.name)
def test_tables_of_the_documents_are_those_of_the_results(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert "<!-- make bench writes: " in text
    assert report.filled(text, Results.read(RESULTS / "results.json")) == text


def test_capacity_is_the_peak_rate_times_the_cost_of_one_operation() -> None:
    found = results(two(({"rate": 10_000.0}, {"rate": 1.0}), targets=[]))
    [cost] = capacity.costs(found, 1_000_000)
    assert cost.core_us == 200  # two cores made 10,000 per second
    assert cost.per_second == pytest.approx(1_000_000 * 40 * 3 / 86_400)
    assert cost.cores == pytest.approx(0.2778, rel=1e-3)
    assert "1,000,000 daily users: 1 machine of" in capacity.markdown(found)


def test_capacity_gives_the_application_its_own_processor_time_and_the_server_the_rest() -> None:
    found = results(two(({"rate": 10_000.0, "cpu_us": 50.0}, {"rate": 1.0}), targets=[]))
    cores = capacity.parts(capacity.costs(found, 1_000_000))
    assert cores["application"] == pytest.approx(cores[capacity.PRIMARY] / 3)
    assert sum(cores.values()) == pytest.approx(0.2778, rel=1e-3)


def test_capacity_multiplies_the_part_of_postgresql_where_rooms_are_distributed() -> None:
    found = results(two(({"rate": 10_000.0, "cpu_us": 50.0}, {"rate": 1.0}), targets=[]))
    before, after = (capacity.parts(capacity.costs(found, users)) for users in (10_000_000, 100_000_000))
    [factor] = [one.on_citus for one in capacity.ACTIVITIES if one.cell == "sends-200"]
    assert after["application"] == pytest.approx(10 * before["application"])
    assert after[capacity.PRIMARY] == pytest.approx(10 * factor * before[capacity.PRIMARY])


def test_simulation_fills_shards_evenly_but_for_the_largest_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "ROOMS", 20_000)
    even, uneven = (simulate.spread(exponent, 32) for exponent in simulate.EXPONENTS)
    assert 1 < even.rooms < 1.2
    assert even.largest_room < uneven.largest_room < uneven.messages
    classes = list(simulate.size_classes(100, 10))
    for share in ("rooms", "messages", "deliveries"):
        assert sum(getattr(one, share) for one in classes) == pytest.approx(1)
    costs = [one.message_us for one in classes]
    assert costs == sorted(costs)
