"""Child processes of a process with an open hub. They must not affect the parent."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID
from weakref import WeakMethod

import pytest

import forking
from children import in_child
from hubbub import Hub, HubbubError, Passwords, Room, Settings, Unavailable, User, forks
from hubbub.passwords import MIN_COST
from hubbub.postgres import Pool, connect
from hubbub.postgres.pool import Connections

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 warns of forks

AT_ONCE_SECONDS = 5
"""Half of the deadline of a call."""


@pytest.fixture
def settings(settings: Settings, servers: Settings) -> Settings:
    """Settings of a Redis user who may listen on a channel of the application."""
    return replace(settings, redis=servers.redis)


async def outcome(call: Callable[[], Awaitable[Any]]) -> str:
    try:
        async with asyncio.timeout(AT_ONCE_SECONDS):
            answer = await call()
    except Unavailable as error:
        return f"retryable: {error}" if error.retryable else error.reason[:26]
    except BaseException as error:  # noqa: BLE001 - the test shows it
        return repr(error)
    return f"answered {answer!r}"


async def enter(context: Any) -> None:  # noqa: ANN401 - any asynchronous context manager
    async with context:
        pass


def calls(hub: Hub, room: Room, ada: User) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "lookup": lambda: hub.users.get(ada.id),
        "statement": lambda: hub.users.find_by_username("ada"),
        "change": lambda: hub.users.update_online_status(ada.id, True),
        "send": lambda: hub.messages.send(room.id, ada.id, "hello"),
        "page": lambda: hub.messages.page(room.id),
        "transaction": lambda: enter(hub.transaction()),
        "cache": lambda: hub.cache.user(ada.id),
        "session": lambda: hub.sessions.create_session(ada.id),
        "session lookup": lambda: hub.sessions.get_session("a" * 43),
        "publish": lambda: hub.realtime.publish("app:news", "hello"),
        "listen": lambda: hub.realtime.listen("app:news"),
        "online": lambda: enter(hub.presence.online(ada.id)),
        "is online": lambda: hub.presence.is_online([ada.id]),
        "typing": lambda: hub.typing.start(room.id, ada.id),
        "limit": lambda: hub.limits.take("login", "ada", capacity=1, refill_per_second=1, fail_open=True),
        "register": lambda: hub.register("bob@example.org", "bob", "forked phrase nine"),
        "authenticate": lambda: hub.authenticate("ada", "forked phrase nine"),
        "follow": lambda: enter(hub.follow(ada.id)),
        "start": hub.start,
    }


async def test_every_call_in_child_is_refused_at_once(hub: Hub, room: Room, ada: User) -> None:
    asked = calls(hub, room, ada)
    news = await hub.realtime.listen("app:news")
    async with hub.transaction() as transaction, hub.follow(ada.id) as feed:
        await transaction.users.get(ada.id)
        asked |= {
            "open transaction": lambda: transaction.users.get(ada.id),
            "feed": lambda: anext(feed),
            "listener": lambda: anext(news),
        }

        async def ask_all() -> dict[str, str]:
            return {name: await outcome(call) for name, call in asked.items()}

        assert await in_child(ask_all) == dict.fromkeys(asked, "it was opened before a for")
    news.unsubscribe()


async def test_child_is_refused_while_calls_of_parent_are_in_flight(hub: Hub, room: Room, ada: User) -> None:
    in_flight = [
        asyncio.create_task(call)
        for call in (
            hub.messages.send(room.id, ada.id, "hello"),
            hub.users.get(ada.id),
            hub.presence.is_online([ada.id]),
        )
    ]
    await asyncio.sleep(0)

    async def ask_all() -> list[str]:
        return list({await outcome(call) for call in calls(hub, room, ada).values()})

    assert await in_child(ask_all) == ["it was opened before a for"]
    await asyncio.gather(*in_flight)


async def test_health_in_child_is_not_ready(hub: Hub) -> None:
    async def ask() -> list[Any]:
        health = await hub.health()
        await hub.close()
        return [health.ready, health.postgres.reason, health.redis.reason]

    ready, *reasons = await in_child(ask)
    assert not ready
    assert all("before a fork" in reason for reason in reasons)


async def test_answers_of_parent_are_its_own_while_children_ask(hub: Hub, ada: User, bob: User) -> None:
    async def ask() -> str:
        return await outcome(lambda: hub.users.find_by_username("ada"))

    children = [asyncio.create_task(in_child(ask)) for _ in range(3)]
    found: set[UUID] = set()
    while not all(child.done() for child in children):
        found.add((await hub.users.find_by_username("bob")).id)  # type: ignore[union-attr]  # he exists
    assert found == {bob.id}
    assert {await child for child in children} == {"it was opened before a for"}


async def test_hub_that_was_not_started_works_in_child(settings: Settings, ada: User) -> None:
    passwords = Passwords(cost=MIN_COST)
    await passwords.hash("its threads run in the parent")
    preloaded = Hub(settings, passwords=passwords)

    async def use() -> str:
        async with preloaded as hub:
            carol = await hub.register("carol@example.org", "carol", "forked phrase nine")
            return carol.username

    assert await in_child(use) == "carol"
    await passwords.close()


@pytest.mark.session("a lock of a session")
async def test_garbage_in_child_leaves_connection_and_its_lock_to_parent(settings: Settings) -> None:
    held = [await connect(settings.postgres)]
    await held[0].execute("SELECT pg_advisory_lock(77)")

    async def drop() -> None:
        with pytest.raises(Exception, match="closed"):
            await held[0].execute("SELECT pg_advisory_unlock_all()")
        held.pop()
        gc.collect()

    assert await in_child(drop) is None
    assert await held[0].fetchval("SELECT pg_advisory_unlock(77)") is True
    await held[0].close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # as an error it would keep asyncpg from closing
async def test_connection_that_only_an_abandoned_pool_holds_is_left_to_parent(
    hub: Hub, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the child the pool lets go of its idle connections, maybe before these have dead sockets."""

    def is_of_pool(method: WeakMethod[Callable[[], None]]) -> bool:
        return isinstance(getattr(method(), "__self__", None), Pool)

    abandon = Connections.abandon

    def abandon_and_collect(connections: Connections) -> None:
        abandon(connections)
        gc.collect()

    async def nothing() -> None:
        pass

    class InOrder(list[WeakMethod[Callable[[], None]]]):
        add = list.append  # by objects of this process that are made meanwhile

    with monkeypatch.context() as patch:
        patch.setattr(Connections, "abandon", abandon_and_collect)
        patch.setattr(forks, "_abandoning", InOrder(sorted(forks._abandoning, key=is_of_pool, reverse=True)))
        assert await in_child(nothing) is None
    async with asyncio.timeout(AT_ONCE_SECONDS):
        assert await hub.users.find_by_username("ada") == ada


async def test_child_that_ends_as_a_program_does_leaves_everything_to_parent(settings: Settings) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        forking.__file__,
        json.dumps(settings.to_env()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    assert said == b"unharmed\n"
    if sys.version_info < (
        3,
        14,
    ):  # later versions destroy the tasks of the parent when the child ends, and say so
        assert complained.decode() == ""


# Another event loop


def test_every_call_in_another_event_loop_is_refused_at_once(settings: Settings) -> None:
    with asyncio.Runner() as runner, asyncio.Runner() as other:
        hub = Hub(settings)
        runner.run(hub.start())
        ada = runner.run(hub.users.create("ada@example.org", "ada", "!"))
        room = runner.run(hub.rooms.create("engine-room", created_by=ada.id))
        asked = calls(hub, room, ada) | {"close": hub.close}
        del asked["start"]
        found = {name: other.run(outcome(call)) for name, call in asked.items()}
        assert found == dict.fromkeys(asked, "it is used in another even")
        assert runner.run(hub.users.get(ada.id)) == ada
        runner.run(hub.close())


async def test_every_call_from_loop_of_another_thread_is_refused(hub: Hub, room: Room, ada: User) -> None:
    asked = calls(hub, room, ada)
    del asked["start"]

    def ask_all() -> dict[str, str]:
        return {name: asyncio.run(outcome(call)) for name, call in asked.items()}

    found = await asyncio.to_thread(ask_all)
    assert found == dict.fromkeys(asked, "it is used in another even")
    assert (await hub.users.get(ada.id)).username == "ada"


async def test_refusal_is_a_hubbub_error_with_the_remedy(hub: Hub, ada: User) -> None:
    async def ask() -> str:
        try:
            await hub.users.get(ada.id)
        except HubbubError as error:
            return str(error)
        return ""

    assert await in_child(ask) == (
        "hub: it was opened before a fork, by the parent process: open a hub in each process, after the fork"
    )
    assert "asyncio.run_coroutine_threadsafe" in await asyncio.to_thread(lambda: asyncio.run(ask()))
