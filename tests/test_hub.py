from __future__ import annotations

import asyncio
import inspect
import math
import pydoc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import pytest

import hubbub
from hubbub import (
    Conflict,
    Device,
    Follower,
    Hub,
    Invalid,
    NotFound,
    Options,
    PostgresSettings,
    Room,
    SchemaMismatch,
    Settings,
    Unavailable,
    User,
    embedded,
)
from hubbub.hub import Repositories, Transaction, find_settings
from hubbub.migrations import HEAD
from hubbub.passwords import MIN_COST, Passwords
from hubbub.postgres import connect
from injection.operations import PARTS
from waiting import HANGS_AFTER_SECONDS, until_it_answers


class Oops(Exception):
    pass


async def connections(settings: PostgresSettings) -> int:
    """The number of connections of hubs to the database, as the server counts them."""
    watch = await connect(settings, server_settings={"application_name": "watch"})
    count: int = await watch.fetchval(
        """
        SELECT count(*)
        FROM pg_stat_activity
        WHERE datname = current_database()
            AND application_name = 'hubbub'
        """
    )
    await watch.close()
    return count


async def no_connection_is_left(settings: PostgresSettings) -> None:
    async with asyncio.timeout(20):
        while await connections(settings):  # noqa: ASYNC110 - the server does not notify
            await asyncio.sleep(0.01)


# Starting


async def test_hub_starts_and_closes(settings: Settings) -> None:
    hub = Hub(settings)
    assert await hub.start() is hub
    ada = await hub.users.create("ada@example.org", "ada", "not a hash")
    await hub.close()
    await hub.close()
    with pytest.raises(Unavailable, match="it is closed"):
        await hub.users.get(ada.id)
    await no_connection_is_left(settings.postgres)


async def test_open_yields_a_started_hub_and_closes_it(settings: Settings) -> None:
    async with hubbub.open(settings) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
    with pytest.raises(Unavailable, match="it is closed"):
        await hub.users.get(ada.id)
    with pytest.raises(Unavailable, match="it is closed"):
        await hub.messages.send(ada.id, ada.id, "hello")
    with pytest.raises(Unavailable, match="it is closed"):
        async with hub.transaction():
            pass


async def test_start_on_a_database_without_schema_raises(
    settings: Settings, empty_database: PostgresSettings
) -> None:
    with pytest.raises(SchemaMismatch, match="hubbub migrate up") as caught:
        async with hubbub.open(replace(settings, postgres=empty_database)):
            raise AssertionError
    assert (caught.value.found, caught.value.wanted) == (None, HEAD)
    await no_connection_is_left(empty_database)


@pytest.mark.parametrize(
    ("revision", "way_out"), [("0003", "hubbub migrate up"), ("9999", "upgrade hubbub")], ids=["older", "newer"]
)
async def test_start_on_another_revision_raises(
    settings: Settings, postgres_settings: PostgresSettings, revision: str, way_out: str
) -> None:
    connection = await connect(postgres_settings)
    await connection.execute(f"UPDATE hubbub_schema_version SET version_num = '{revision}'")
    await connection.close()
    with pytest.raises(SchemaMismatch, match=way_out) as caught:
        await Hub(settings).start()
    assert (caught.value.found, caught.value.wanted) == (revision, HEAD)
    await no_connection_is_left(settings.postgres)


async def test_start_with_a_wrong_password_raises_without_repeating_it(settings: Settings) -> None:
    wrong = replace(settings, postgres=replace(settings.postgres, password="wrong-password"))
    with pytest.raises(Unavailable, match="authentication failed") as caught:
        await Hub(wrong).start()
    assert "wrong-password" not in str(caught.value)


async def test_cancelled_start_leaves_nothing_open(settings: Settings) -> None:
    for turns in range(0, 30, 3):
        starting = asyncio.create_task(Hub(settings).start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            await starting.result().close()
    await no_connection_is_left(settings.postgres)


# Where the settings come from


def test_settings_come_from_the_environment_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in settings.to_env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(embedded, "find", lambda _folder: pytest.fail("the folder was looked at"))
    assert find_settings() == settings


def test_settings_come_from_the_servers_of_this_folder_otherwise(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "find", {tmp_path / embedded.FOLDER: settings}.get)
    assert find_settings() is settings


async def test_open_without_settings_or_servers_raises_with_both_remedies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unavailable, match=r"hubbub up.*DATABASE_URL") as caught:
        async with hubbub.open():
            raise AssertionError
    assert not caught.value.retryable


# Transactions


async def test_transaction_commits_a_room_and_its_first_message_together(hub: Hub, ada: User) -> None:
    async with hub.transaction() as tx:
        room = await tx.rooms.create("launch", created_by=ada.id)
        message = await tx.messages.send(room.id, ada.id, "first")
        with pytest.raises(NotFound):
            await hub.rooms.get(room.id)
    assert (await hub.rooms.get(room.id)).last_seq == message.seq
    assert await hub.messages.get(message.id) == message


async def test_transaction_that_raises_leaves_nothing(hub: Hub, ada: User, room: Room) -> None:
    made: list[UUID] = []

    async def block() -> None:
        async with hub.transaction() as tx:
            made.append((await tx.rooms.create("never", created_by=ada.id)).id)
            await tx.messages.send(room.id, ada.id, "never")
            raise Oops

    with pytest.raises(Oops):
        await block()
    with pytest.raises(NotFound):
        await hub.rooms.get(made[0])
    assert await hub.rooms.get(room.id) == room


async def test_failed_savepoint_keeps_the_rest_of_the_transaction(hub: Hub, ada: User, room: Room) -> None:
    async def register_twice(tx: hubbub.Transaction) -> None:
        async with tx.savepoint() as savepoint:
            await savepoint.messages.send(room.id, ada.id, "undone")
            await savepoint.users.create("ADA@example.org", "other", "not a hash")

    async with hub.transaction() as tx:
        first = await tx.messages.send(room.id, ada.id, "kept")
        with pytest.raises(Conflict):
            await register_twice(tx)
        async with tx.savepoint() as outer, outer.savepoint() as inner:
            second = await inner.messages.send(room.id, ada.id, "kept, and takes the place of what was undone")
    assert second.seq == first.seq + 1
    assert (await hub.rooms.get(room.id)).last_seq == second.seq


async def test_repeated_send_in_a_transaction_does_not_abort_it(hub: Hub, ada: User, room: Room) -> None:
    first = await hub.messages.send(room.id, ada.id, "hello")
    async with hub.transaction() as tx:
        assert await tx.messages.send(room.id, ada.id, "hello", id=first.id) == first
        second = await tx.messages.send(room.id, ada.id, "and on it goes")
    assert second.seq == first.seq + 1


async def test_concurrent_sends_in_one_transaction(hub: Hub, ada: User, room: Room) -> None:
    async with hub.transaction() as tx:
        sent = await asyncio.gather(*(tx.messages.send(room.id, ada.id, f"{n}") for n in range(20)))
    assert sorted(message.seq for message in sent) == list(range(room.last_seq + 1, room.last_seq + 21))


async def test_after_commit_actions_run_after_the_commit_and_see_its_changes(
    hub: Hub, ada: User, room: Room
) -> None:
    found: list[asyncio.Task[hubbub.Message]] = []

    async def fail(tx: hubbub.Transaction) -> None:
        async with tx.savepoint() as savepoint:
            savepoint.after_commit(lambda: pytest.fail("the savepoint was undone"))
            raise Oops

    async with hub.transaction() as tx:
        message = await tx.messages.send(room.id, ada.id, "hello")
        tx.after_commit(lambda: found.append(asyncio.ensure_future(hub.messages.get(message.id))))
        with pytest.raises(Oops):
            await fail(tx)
        async with tx.savepoint() as savepoint:
            savepoint.after_commit(lambda: found.append(asyncio.ensure_future(hub.messages.get(message.id))))
        assert found == []
    await asyncio.sleep(0)
    assert [await one for one in found] == [message, message]


async def test_ended_transaction_is_unavailable(hub: Hub, ada: User, room: Room) -> None:
    async with hub.transaction() as tx:
        await tx.users.get(ada.id)
    with pytest.raises(Unavailable, match="the transaction is over"):
        await tx.messages.send(room.id, ada.id, "too late")
    with pytest.raises(Unavailable, match="the transaction is over"):
        tx.after_commit(lambda: None)
    with pytest.raises(Unavailable, match="the transaction is over"):
        async with tx.savepoint():
            pass


async def test_close_waits_for_a_transaction(settings: Settings) -> None:
    hub = await Hub(settings).start()
    async with hub.transaction() as tx:
        closing = asyncio.create_task(hub.close())
        await asyncio.sleep(0)
        ada = await tx.users.create("ada@example.org", "ada", "not a hash")
    await closing
    async with hubbub.open(settings) as again:
        assert await again.users.get(ada.id) == ada


async def test_change_password_ends_the_other_sessions(hub: Hub) -> None:
    ada = await hub.register("ada@example.org", "ada", "correct horse")
    kept, other = [await hub.sessions.create_session(ada.id) for _ in range(2)]
    await hub.change_password(ada.id, "battery staple", keep_token=kept)
    assert await hub.authenticate("ada", "correct horse") is None
    logged_in = await hub.authenticate("ada", "battery staple")
    assert logged_in is not None
    assert logged_in.id == ada.id
    assert await hub.sessions.get_session(kept) is not None
    assert await hub.sessions.get_session(other) is None
    with pytest.raises(Invalid):
        await hub.change_password(ada.id, "")
    with pytest.raises(NotFound):
        await hub.change_password(UUID(int=1), "battery staple")


async def test_delete_account_ends_all_sessions(hub: Hub, ada: User) -> None:
    tokens = [await hub.sessions.create_session(ada.id) for _ in range(3)]
    await hub.delete_account(ada.id)
    assert [await hub.sessions.get_session(token) for token in tokens] == [None] * 3
    with pytest.raises(NotFound):
        await hub.users.get(ada.id)


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_deletion_of_an_account_reports_its_outcome_if_redis_fails_afterwards(
    hub: Hub, ada: User, monkeypatch: pytest.MonkeyPatch, is_deleted: bool
) -> None:
    async def fail(*_: object) -> None:
        raise Unavailable("redis", "no connection")

    async def lose_answer(*_: object) -> None:
        raise Unavailable("postgresql", "the connection was lost", outcome_unknown=True)

    monkeypatch.setattr(hub.sessions, "_end_rest", fail)
    if not is_deleted:
        monkeypatch.setattr(hub.users, "_delete", lose_answer)
    with pytest.raises(Unavailable) as failure:
        await hub.delete_account(ada.id)
    assert failure.value.service == ("redis" if is_deleted else "postgresql")
    assert failure.value.outcome_unknown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "step", "call"),
    [
        ("users", "create", lambda hub, ada: hub.register("eve@example.org", "eve", "hers alone 5")),
        ("users", "find_credentials", lambda hub, ada: hub.authenticate("ada", "hers alone 5")),
        ("sessions", "revoke_all", lambda hub, ada: hub.change_password(ada.id, "hers alone 5")),
        ("sessions", "revoke_all", lambda hub, ada: hub.delete_account(ada.id)),
    ],
)
async def test_call_of_several_steps_has_one_deadline(
    settings: Settings,
    ada: User,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    step: str,
    call: Callable[[Hub, User], Awaitable[object]],
) -> None:
    """This holds even if no step ends."""

    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    impatient = Settings(
        postgres=replace(settings.postgres, deadline_seconds=2), redis=replace(settings.redis, deadline_seconds=2)
    )
    async with Hub(impatient, passwords=Passwords(cost=MIN_COST, deadline_seconds=2)) as hub:
        monkeypatch.setattr(getattr(hub, part), step, never)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            with pytest.raises(Unavailable, match="within 2 s"):
                await call(hub, ada)


async def test_disconnect_stops_typing(settings: Settings, ada: User, room: Room) -> None:
    async with Hub(settings, options=Options(typing_seconds=3600)) as hub:
        async with hub.presence.online(ada.id):
            await hub.typing.start(room.id, ada.id)
            assert await hub.typing.typing_users(room.id) == [ada.id]

        async def no_user_types() -> bool:
            return not await hub.typing.typing_users(room.id)

        await until_it_answers(no_user_types)


async def test_close_does_not_wait_for_an_abandoned_transaction_that_has_locked_a_room(
    settings: Settings, ada: User, room: Room
) -> None:
    """The send that waits for the lock does not wait for it either, and is sent."""
    hub = await Hub(replace(settings, postgres=replace(settings.postgres, deadline_seconds=600))).start()
    entered = asyncio.Event()

    async def abandoned() -> None:
        async with hub.transaction() as tx:
            await tx.messages.send(room.id, ada.id, "never committed")
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(abandoned())
    await entered.wait()
    sending = asyncio.create_task(hub.messages.send(room.id, ada.id, "sent"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        await hub.close()
    assert (await sending).content == "sent"
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_concurrent_closes_wait_for_the_same_end(settings: Settings) -> None:
    hub = await Hub(settings).start()
    ada = await hub.users.create("ada@example.org", "ada", "not a hash")
    async with hub.presence.online(ada.id):
        await asyncio.gather(*(hub.close() for _ in range(5)))
    with pytest.raises(Unavailable):
        await hub.users.get(ada.id)


async def test_closing_a_hub_that_was_never_started_leaves_no_connection(settings: Settings) -> None:
    hub = Hub(settings)
    await hub.users.create("ada@example.org", "ada", "not a hash")
    await hub.close()
    await no_connection_is_left(settings.postgres)


async def test_close_during_start_ends_the_start(settings: Settings) -> None:
    hub = Hub(settings)
    starting = asyncio.create_task(hub.start())
    await asyncio.sleep(0)
    await hub.close()
    with pytest.raises(Unavailable):
        await starting
    await no_connection_is_left(settings.postgres)


async def test_close_at_the_end_of_start_leaves_nothing_open(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asyncio.all_tasks()
    hub = Hub(settings)
    load_key = hub._feed.load_key

    async def load_key_and_close() -> None:
        await load_key()
        await hub.close()

    monkeypatch.setattr(hub._feed, "load_key", load_key_and_close)
    with pytest.raises(Unavailable, match="closed while it started"):
        await hub.start()
    assert asyncio.all_tasks() == before
    await no_connection_is_left(settings.postgres)


async def test_options_are_applied(settings: Settings) -> None:
    options = Options(session_idle_timeout_seconds=0.2, typing_seconds=0.2, presence_grace_seconds=0)
    async with Hub(settings, options=options) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
        room = await hub.rooms.create("engine-room", created_by=ada.id)
        token = await hub.sessions.create_session(ada.id)
        await hub.typing.start(room.id, ada.id)

        async def all_over() -> bool:
            return not await hub.typing.typing_users(room.id) and not await hub.sessions.list(ada.id)

        await until_it_answers(all_over)
        assert await hub.sessions.get_session(token) is None
    with pytest.raises(Invalid):
        Hub(settings, options=Options(session_life_seconds=1, session_idle_timeout_seconds=2))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, 0, -1, "5", True])
@pytest.mark.parametrize("field", [field.name for field in fields(Options) if field.name.endswith("_seconds")])
def test_options_that_no_server_can_take_are_invalid(field: str, value: Any) -> None:  # noqa: ANN401
    if field == "presence_grace_seconds" and value == 0:
        return  # no grace
    with pytest.raises(Invalid) as refusal:
        Options(**{field: value})
    assert refusal.value.field == field


# A task that would wait for its own transaction


async def test_change_of_hub_in_room_that_own_transaction_has_locked_is_refused_at_once(
    hub: Hub, room: Room, ada: User, bob: User
) -> None:
    async with hub.transaction() as tx:
        await tx.messages.send(room.id, ada.id, "first")
        for call in (
            hub.messages.send(room.id, ada.id, "second"),
            hub.messages.send_many(room.id, ada.id, [hubbub.NewMessage("second")]),
            hub.room_users.add(room.id, bob.id),
            hub.rooms.update(room.id, name="another"),
        ):
            with pytest.raises(Invalid, match=r"wait for its own COMMIT: .* `tx\.messages\.send`"):
                async with asyncio.timeout(HANGS_AFTER_SECONDS):
                    await call
        await tx.messages.send(room.id, ada.id, "second")
    page = await hub.messages.page(room.id)
    assert [message.content for message in page.items] == ["first", "second"]


Lock: TypeAlias = Callable[[Transaction], Awaitable[object]]
Call: TypeAlias = Callable[[], Awaitable[object]]


async def test_change_of_hub_that_would_wait_for_own_transaction_is_refused_at_once(
    hub: Hub, room: Room, ada: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    carol = await hub.users.create("carol@example.org", "carol", "not a hash")
    await hub.room_users.add(room.id, bob.id)
    sent = await hub.messages.send(room.id, ada.id, "hello")
    token = await hub.sessions.create_session(bob.id)
    hashed: list[object] = []
    monkeypatch.setattr(Passwords, "hash", lambda *args, **_: hashed.append(args))
    other = await hub.rooms.create("of bob", created_by=bob.id)
    await hub.room_users.remove(other.id, bob.id)
    of_bob, of_ada = (room.id, bob.id), (room.id, ada.id)

    # The first call locks a row in a transaction, and the second call would wait for that row.
    membership: list[Lock] = [
        lambda tx: tx.receipts.mark_read(*of_bob, up_to=1),
        lambda tx: tx.receipts.mark_unread(*of_bob, from_seq=1),
        lambda tx: tx.room_users.set_role(*of_bob, "moderator"),
        lambda tx: tx.room_users.update(*of_bob, metadata={"a": 1}),
    ]
    account: list[Lock] = [
        lambda tx: tx.users.update_profile(bob.id, display_name="Bobby"),
        lambda tx: tx.users.change_password_hash(bob.id, "?"),
        lambda tx: tx.users.update_online_status(bob.id, True),
        lambda tx: tx.users.set_online_many({bob.id: True}),
    ]
    acting: list[Lock] = [
        lambda tx: tx.receipts.mark_read(*of_ada, up_to=1),
        lambda tx: tx.rooms.update(room.id, name="another", as_user=ada.id),
        lambda tx: tx.room_users.add(room.id, carol.id, as_user=ada.id),
        lambda tx: tx.room_users.remove(*of_bob, as_user=ada.id),
        lambda tx: tx.room_users.set_role(*of_bob, "moderator", as_user=ada.id),
    ]
    cases: list[tuple[list[Lock], Call]] = [
        (membership + acting[3:], lambda: hub.receipts.mark_read(*of_bob, up_to=sent.seq)),
        (membership, lambda: hub.receipts.mark_unread(*of_bob, from_seq=1)),
        (membership, lambda: hub.room_users.remove(*of_bob)),
        (membership, lambda: hub.room_users.set_role(*of_bob, "moderator")),
        (membership, lambda: hub.room_users.update(*of_bob, metadata={"a": 2})),
        (account, lambda: hub.users.update_profile(bob.id, display_name="Bob")),
        (account, lambda: hub.users.change_password_hash(bob.id, "!")),
        (account, lambda: hub.users.update_online_status(bob.id, False)),
        (account, lambda: hub.users.set_online_many({ada.id: True, bob.id: True})),
        (account, lambda: hub.change_password(bob.id, "another")),
        (acting, lambda: hub.receipts.mark_read(*of_ada, up_to=sent.seq)),
        (acting, lambda: hub.room_users.add(room.id, carol.id, as_user=ada.id)),
        (acting, lambda: hub.room_users.remove(*of_bob, as_user=ada.id)),
        (acting, lambda: hub.room_users.set_role(*of_bob, "moderator", as_user=ada.id)),
        (acting, lambda: hub.rooms.update(room.id, name="another", as_user=ada.id)),
        (acting, lambda: hub.rooms.delete(room.id, as_user=ada.id)),
        (acting + membership, lambda: hub.rooms.delete(room.id)),
        (account + membership, lambda: hub.users.delete(bob.id)),
        (account + membership, lambda: hub.delete_account(bob.id)),
        ([lambda tx: tx.messages.send(*of_ada, "in a room of bob")], lambda: hub.users.delete(bob.id)),
        ([lambda tx: tx.rooms.update(other.id, name="made by bob")], lambda: hub.users.delete(bob.id)),
        ([lambda tx: tx.room_users.add(other.id, carol.id)], lambda: hub.users.delete(carol.id)),
        ([lambda tx: tx.rooms.create("new", created_by=bob.id)], lambda: hub.users.delete(bob.id)),
        ([lambda tx: tx.rooms.direct(bob.id, carol.id)], lambda: hub.users.delete(carol.id)),
    ]
    for locks, call in cases:
        for lock in locks:
            await assert_refused_after(hub, lock, call)
    assert not hashed
    assert await hub.sessions.get_session(token) is not None
    assert (await hub.users.get(bob.id)).display_name is None


async def test_change_of_hub_that_does_not_wait_for_own_transaction_is_made(
    hub: Hub, room: Room, ada: User, bob: User
) -> None:
    carol = await hub.users.create("carol@example.org", "carol", "not a hash")
    dora = await hub.users.create("dora@example.org", "dora", "not a hash")
    secret = await hub.rooms.create("secret", created_by=ada.id, is_private=True)
    of_ada, of_bob = (room.id, ada.id), (room.id, bob.id)
    for one in (room, secret):
        await hub.room_users.add(one.id, bob.id)
    marked: Lock = lambda tx: tx.receipts.mark_read(*of_bob, up_to=1)  # noqa: E731
    cases: list[tuple[Lock, Call]] = [
        (marked, lambda: hub.room_users.add(*of_bob)),
        (marked, lambda: hub.room_users.add(*of_bob, as_user=bob.id)),
        (
            lambda tx: tx.receipts.mark_read(secret.id, bob.id, up_to=1),
            lambda: hub.room_users.add(secret.id, bob.id, as_user=bob.id),
        ),
        (marked, lambda: hub.room_users.add(room.id, carol.id, as_user=ada.id)),
        (marked, lambda: hub.rooms.update(room.id, name="another", as_user=ada.id)),
        (marked, lambda: hub.rooms.update(room.id, name="yet another", by=bob.id)),
        (marked, lambda: hub.messages.send(*of_bob, "hello")),
        (marked, lambda: hub.receipts.mark_read(*of_ada, up_to=1)),
        (marked, lambda: hub.users.update_profile(bob.id, display_name="Bob")),
        (marked, lambda: hub.rooms.delete(secret.id)),
        (
            lambda tx: tx.users.update_profile(bob.id, display_name="Bobby"),
            lambda: hub.room_users.set_role(*of_bob, "moderator"),
        ),
        (
            lambda tx: tx.room_users.set_role(*of_bob, "moderator"),
            lambda: hub.room_users.update(*of_bob, metadata={"a": 1}),
        ),
        (
            lambda tx: tx.room_users.update(*of_bob, metadata={"a": 1}),
            lambda: hub.receipts.mark_unread(*of_bob, from_seq=1),
        ),
        (lambda tx: tx.room_users.remove(room.id, uuid4()), lambda: hub.messages.send(*of_bob, "hello")),
        (
            lambda tx: tx.users.set_online_many({uuid4(): True, bob.id: False}),
            lambda: hub.users.change_password_hash(bob.id, "!"),
        ),
        (lambda tx: tx.messages.send(*of_ada, "hello"), lambda: hub.users.delete(dora.id)),
    ]
    for lock, call in cases:
        with described(lock, call):
            async with hub.transaction() as tx:
                await lock(tx)
                async with asyncio.timeout(HANGS_AFTER_SECONDS):
                    await call()


async def test_value_that_own_transaction_has_taken_is_refused_at_once(hub: Hub, ada: User, bob: User) -> None:
    """An id, a name or the pair of a direct room is free or taken only once the transaction has ended."""
    id = hubbub.new_id()
    created: Lock = lambda tx: tx.users.create("eve@example.org", "eve", "!", external_id="e", id=id)  # noqa: E731
    upserted: Lock = lambda tx: tx.users.upsert(external_id="e", username="eve", email="eve@example.org")  # noqa: E731
    changed: Lock = lambda tx: tx.users.update_profile(  # noqa: E731
        bob.id, email="eve@example.org", username="eve", external_id="e"
    )
    by_email: list[Call] = [
        lambda: hub.users.create("EVE@example.org", "mallory", "!"),
        lambda: hub.users.upsert(external_id="m", username="mallory", email="eve@Example.org"),
        lambda: hub.users.update_profile(ada.id, email="eve@example.ORG"),
        lambda: hub.register("eve@example.org", "mallory", "hers alone 6"),
    ]
    by_username: list[Call] = [
        lambda: hub.users.create(None, "Eve", "!"),
        lambda: hub.users.upsert(external_id="m", username="EVE"),
        lambda: hub.users.update_profile(ada.id, username="\uff25ve"),
    ]
    by_external_id: list[Call] = [
        lambda: hub.users.create(None, "mallory", "!", external_id="e"),
        lambda: hub.users.upsert(external_id="e", username="mallory"),
        lambda: hub.users.update_profile(ada.id, external_id="e"),
    ]
    cases: list[tuple[Lock, Call]] = [
        *product([created, upserted, changed], by_email + by_username + by_external_id),
        (created, lambda: hub.users.create(None, "mallory", "!", id=id)),
        (
            lambda tx: tx.rooms.create("first", created_by=ada.id, id=id),
            lambda: hub.rooms.create("second", created_by=ada.id, id=id),
        ),
        (lambda tx: tx.rooms.direct(ada.id, bob.id), lambda: hub.rooms.direct(bob.id, ada.id)),
    ]
    for lock, call in cases:
        await assert_refused_after(hub, lock, call)


async def test_value_that_own_transaction_has_not_taken_is_free_or_a_conflict(
    hub: Hub, room: Room, ada: User, bob: User
) -> None:
    eve = await hub.users.upsert(external_id="e", username="eve", email="eve@example.org")
    direct = await hub.rooms.direct(ada.id, eve.id)

    async def undone(tx: Transaction) -> None:
        async with tx.savepoint() as savepoint:
            await savepoint.users.create("dora@example.org", "dora", "!", external_id="d")
            raise Oops

    async with hub.transaction() as tx, asyncio.timeout(HANGS_AFTER_SECONDS):
        assert await tx.users.upsert(external_id="e", username="mallory") == eve
        assert await hub.users.upsert(external_id="e", username="mallory") == eve
        assert await tx.rooms.direct(ada.id, eve.id) == direct
        assert await hub.rooms.direct(ada.id, eve.id) == direct
        with suppress(Oops):
            await undone(tx)
        await hub.users.create("dora@example.org", "dora", "!", external_id="d")
        await tx.users.create("carol@example.org", "carol", "!")
        await hub.rooms.direct(ada.id, bob.id)
        for name, email in (("eve", None), ("mallory", "eve@example.org")):
            with pytest.raises(Conflict):
                await hub.users.create(email, name, "!")
        with pytest.raises(Conflict):
            await hub.rooms.create("another", created_by=ada.id, id=room.id)


async def test_login_in_own_transaction_that_has_locked_the_account_leaves_a_cheap_hash(
    settings: Settings, hub: Hub
) -> None:
    cheap = await Passwords(cost=MIN_COST).hash("secret")
    ada = await hub.users.create("ada@example.org", "ada", cheap)
    async with hub.transaction() as tx, asyncio.timeout(HANGS_AFTER_SECONDS):
        await tx.users.update_profile(ada.id, display_name="Ada")
        await hub.users.renew_password_hash(ada.id, "!", instead_of=cheap)
        assert await hub.authenticate("ada", "secret") is not None
    credentials = await hub.users.find_credentials("ada")
    assert credentials is not None
    assert credentials.password_hash == cheap


async def assert_refused_after(hub: Hub, lock: Lock, call: Call) -> None:
    """The call is refused at once in a transaction that has changed what it would wait for. All is rolled back."""
    with suppress(Oops), described(lock, call):
        async with hub.transaction() as tx:
            await lock(tx)
            with pytest.raises(Invalid, match="would wait for its own COMMIT"):
                async with asyncio.timeout(HANGS_AFTER_SECONDS):
                    await call()
            raise Oops


@contextmanager
def described(*lambdas: Callable[..., object]) -> Iterator[None]:
    """The source lines of a case, as the name of a failed test."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"lines {[one.__code__.co_firstlineno for one in lambdas]}")
        raise


async def test_hub_is_usable_in_transaction_where_it_does_not_wait_for_it(
    hub: Hub, room: Room, ada: User, bob: User
) -> None:
    other = await hub.rooms.create("boiler-room", created_by=ada.id)
    await hub.room_users.add(room.id, bob.id)
    async with hub.transaction() as tx:
        await hub.messages.send(room.id, ada.id, "before the transaction changes the room")
        with suppress(Oops):
            async with tx.savepoint() as savepoint:
                await savepoint.messages.send(room.id, ada.id, "undone, with its lock")
                raise Oops
        await hub.messages.send(room.id, ada.id, "after the savepoint")
        await tx.messages.send(room.id, ada.id, "locks the room")
        await hub.messages.send(other.id, ada.id, "in another room")
        await hub.messages.page(room.id)
        waiting = asyncio.create_task(hub.messages.send(room.id, bob.id, "of another task, which may wait"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    assert (await waiting).content == "of another task, which may wait"
    await hub.messages.send(room.id, ada.id, "after the block")


def test_help_shows_each_part_of_a_hub_with_its_type_and_one_line() -> None:
    shown = pydoc.plain(pydoc.render_doc(Hub))
    parts = {name: vars(owner)[name] for owner in (Hub, Repositories) for name in vars(owner)}
    parts = {name: part for name, part in parts.items() if isinstance(part, property | cached_property)}
    assert parts.keys() >= {"users", "rooms", "room_users", "messages", "receipts", *PARTS, "history", "settings"}
    for name, part in parts.items():
        getter = part.fget if isinstance(part, property) else part.func
        assert getter.__annotations__["return"], name
        assert len((part.__doc__ or "").splitlines()) == 1, name
        assert part.__doc__ in shown


def test_public_names_of_a_hub_are_documented_and_meant_for_applications(hub: Hub) -> None:
    assert not [name for name in vars(hub) if not name.startswith("_")]
    public = [name for name in dir(Hub) if not name.startswith("_")]
    assert all(inspect.getdoc(getattr(Hub, name)) for name in public)
    assert "abandon" not in public
    for part in PARTS:
        assert not {"close", "register", "abandon", "start_tasks"} & set(dir(getattr(hub, part)))
    methods = {name for name, _ in inspect.getmembers(Follower, inspect.isfunction) if not name.startswith("_")}
    assert methods == {"close", "waiting", "watch"}
    assert not [name for name, _ in inspect.getmembers(Device, inspect.ismethod) if not name.startswith("_")]
