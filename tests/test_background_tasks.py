"""Each background task of hubbub is started and closed in every way. No task fails, and no task is left."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import hubbub
from hubbub import Hub, Settings
from hubbub.background import BackgroundTask
from hubbub.postgres.replicas import Replicas
from hubbub.redis import ClusterConnection, Connection, Subscriptions
from hubbub.services.presence import ColumnCheck
from reports import reports
from waiting import until


def existing(check: ColumnCheck | None) -> ColumnCheck:
    assert check is not None
    return check


TASKS: list[tuple[str, str, Callable[[Hub], BackgroundTask]]] = [
    ("redis/connection.py", "f'the connection {client_name}'", lambda hub: Connection(hub.settings.redis)._task),
    (
        "redis/connection.py",
        "f'the connection {client_name}'",
        lambda hub: Subscriptions(hub.settings.redis)._task,
    ),
    (
        "redis/cluster.py",
        "'reading the slots of the cluster'",
        lambda hub: ClusterConnection(replace(hub.settings.redis, cluster=True))._reading,
    ),
    ("author_marks.py", "'marking rooms as read for authors'", lambda hub: hub._author_marks._marking),
    ("services/feed/__init__.py", "'comparing heads of logs'", lambda hub: hub._feed._comparing),
    (
        "services/feed/followers.py",
        "'checking sessions of followers'",
        lambda hub: hub._feed._followers.sessions.task,
    ),
    (
        "services/changes.py",
        "'renew the lease of a feed'",
        lambda hub: hub.changes.follow(consumer="push")._renewing,
    ),
    ("postgres/pool.py", "'look for the primary'", lambda hub: hub._pool._connections._looking),
    (
        "postgres/replicas.py",
        "'measure replicas'",
        lambda hub: Replicas(hub._pool, [], lambda _: 0)._measuring,
    ),
    ("postgres/pool.py", "'end abandoned transactions'", lambda hub: hub._pool._ending_abandoned),
    (
        "services/feed/ephemeral.py",
        "'notifying followers of presence, profiles and read marks'",
        lambda hub: hub._feed._ephemeral.task,
    ),
    ("services/presence/__init__.py", "'writing presence'", lambda hub: hub.presence._column.task),
    (
        "services/presence/__init__.py",
        "'checking the presence of all users'",
        lambda hub: existing(hub.presence._check).task,
    ),
    ("services/presence/leases.py", "'sending leases'", lambda hub: hub.presence._leases.tasks[0]),
    ("services/presence/leases.py", "'sweeping presence'", lambda hub: hub.presence._sweeper.task),
    ("services/typing_indicators.py", "'expiring typing'", lambda hub: hub.typing._expiry.task),
    ("services/typing_indicators.py", "'stopping typing'", lambda hub: hub.typing._stops.task),
]
"""Every use of `BackgroundTask`: its module, its name in the source, and its attribute in a hub."""

LOOPS_THAT_END = {
    ("batching.py", "_work"): "ends with the batch",
    ("client.py", "_run"): "ends with the block of the client, and the iteration and the commands with it",
    ("postgres/connection.py", "_ask"): "ends with the search for the primary",
    ("redis/connector.py", "_until_gone"): "ends with the connection that it watches",
    ("services/feed/rooms.py", "_read_on"): "ends when the room has no follower behind",
    ("sync.py", "_run"): "ends with the block of a thread, or with the loop",
}
"""Tasks with a loop that are not a `BackgroundTask`, with the reason. Endless tasks have to be one."""

LOOPS = {"asyncio", "loop", "_loop", ""}
"""The objects whose `create_task` starts a separate task. The last one is `asyncio.get_running_loop()`."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    source = Path(hubbub.__file__).parent
    for path in sorted(source.rglob("*.py")):
        if path.name != "background.py":
            yield path.relative_to(source).as_posix(), ast.parse(path.read_text())


def calls(tree: ast.Module, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) == name:
            yield node


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_every_use_of_a_background_task_is_in_the_list() -> None:
    used = {
        (module, ast.unparse(call.args[0])) for module, tree in sources() for call in calls(tree, "BackgroundTask")
    }
    assert used == {(module, name) for module, name, _ in TASKS}


def test_every_other_task_ends_by_itself() -> None:
    looping = set()
    for module, tree in sources():
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)}
        for call in calls(tree, "create_task"):
            if name_of(getattr(call.func, "value", call.func)) not in LOOPS:
                continue  # a TaskGroup waits for its tasks, and cancels them
            started = call.args[0]
            function = functions.get(name_of(started.func)) if isinstance(started, ast.Call) else None
            if function is not None and any(isinstance(node, ast.While) for node in ast.walk(function)):
                looping.add((module, function.name))
    assert looping == set(LOOPS_THAT_END)


@pytest.fixture
async def hub(servers: Settings) -> AsyncIterator[Hub]:
    """A hub that is connected to Redis, without started tasks. Each test has to end the tasks that it starts."""
    hub = Hub(servers)
    await hub._connection.start()
    await hub._subscriptions.start()
    before = asyncio.all_tasks()
    yield hub
    await hub._pool.close()  # waits for the pool's tasks that drain cancelled statements
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    await hub._subscriptions.close()
    await hub._connection.close()
    await hub.close()
    assert not left


@pytest.fixture(params=TASKS, ids=lambda use: f"{use[0]}: {use[1]}")
def task(request: pytest.FixtureRequest, hub: Hub) -> BackgroundTask:
    _, _, find = request.param
    task: BackgroundTask = find(hub)
    return task


class Rounds:
    """Counts the rounds of a task. The first `failing` rounds raise an error."""

    def __init__(self, task: BackgroundTask, *, failing: int = 0) -> None:
        self.begun = self.ended = 0
        self._failing = failing
        self._work = task._work
        task._work = self.round
        task._retry_seconds = 0.001

    async def round(self) -> float | None:
        self.begun += 1
        try:
            if self.begun <= self._failing:
                raise ZeroDivisionError
            return await self._work()
        finally:
            self.ended += 1


async def test_task_started_twice_runs_once_and_ends_when_it_is_closed(task: BackgroundTask) -> None:
    before = asyncio.all_tasks()
    task.start()
    task.start()
    assert len(asyncio.all_tasks() - before) == 1
    await task.close()
    assert asyncio.all_tasks() == before


async def test_closed_task_can_be_closed_again_and_not_started(task: BackgroundTask) -> None:
    before = asyncio.all_tasks()
    task.start()
    await task.close()
    await task.close()
    task.start()
    assert not task.is_running
    assert asyncio.all_tasks() == before


async def test_task_closed_before_its_start_never_runs(task: BackgroundTask) -> None:
    rounds = Rounds(task)
    await task.close()
    task.start()
    await asyncio.sleep(0)
    assert rounds.begun == 0


@pytest.mark.parametrize("turns", range(5))
async def test_task_closed_at_any_moment_of_its_first_round_is_over(task: BackgroundTask, turns: int) -> None:
    rounds = Rounds(task)
    task.start()
    for _ in range(turns):
        await asyncio.sleep(0)
    await task.close()
    assert rounds.begun == rounds.ended


async def test_concurrent_closes_all_wait_for_the_end(task: BackgroundTask) -> None:
    before = asyncio.all_tasks()
    rounds = Rounds(task)
    task.start()
    await until(lambda: rounds.begun > 0)

    async def close() -> set[asyncio.Task[object]]:
        await task.close()
        return asyncio.all_tasks() & running

    running = asyncio.all_tasks() - before
    assert await asyncio.gather(*[close() for _ in range(3)]) == [set()] * 3


@pytest.mark.parametrize("turns", range(5))
async def test_cancelled_close_leaves_no_task_and_can_be_repeated(task: BackgroundTask, turns: int) -> None:
    rounds = Rounds(task)
    task.start()
    await until(lambda: rounds.begun > 0)
    closing = asyncio.create_task(task.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await task.close()
    assert rounds.begun == rounds.ended


async def test_round_that_raises_is_reported_and_the_work_goes_on(task: BackgroundTask) -> None:
    rounds = Rounds(task, failing=2)
    with reports() as reported:
        task.start()
        await until(lambda: rounds.begun > 2)
        assert task.is_running
        await task.close()
    assert [context["message"] for context in reported] == [f"{task._name} failed"] * 2


@pytest.mark.parametrize("part", ["presence", "typing", "_feed"])
async def test_part_closes_its_tasks_also_when_it_is_closed_twice_at_once(hub: Hub, part: str) -> None:
    owner = getattr(hub, part)
    before = asyncio.all_tasks()
    start, close = (owner.start, owner.close) if part == "_feed" else (owner._start, owner._close)
    start()
    await asyncio.gather(close(), close())
    await close()
    assert asyncio.all_tasks() == before
