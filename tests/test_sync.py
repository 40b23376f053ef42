"""The hub for programs without an event loop. Each test runs in a thread, which has no loop."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress

import pytest

from hubbub import Conflict, Invalid, Message, MessageSent, Settings, Unavailable, User, sync
from injection.operations import PARTS
from waiting import HANGS_AFTER_SECONDS


@pytest.fixture
def chat(settings: Settings) -> Iterator[sync.Hub]:
    with sync.open(settings) as chat:
        yield chat


@pytest.fixture
def ada(chat: sync.Hub) -> User:
    user: User = chat.users.create("ada@example.org", "ada", "hash")
    return user


def test_operations_return_values_and_raise_their_errors(chat: sync.Hub, ada: User) -> None:
    assert chat.users.get(ada.id) == ada
    with pytest.raises(Conflict):
        chat.users.create("ada@example.org", "ada", "hash")
    room = chat.rooms.create("engine-room", created_by=ada.id)
    sent = chat.messages.send(room.id, ada.id, "hello")
    assert chat.messages.page(room.id).items == [sent]
    assert chat.health(deadline_seconds=20).ready
    token = chat.sessions.create_session(ada.id)
    assert chat.sessions.get_session(token).user_id == ada.id


def test_every_part_and_operation_has_the_documentation_of_the_asynchronous_one(chat: sync.Hub) -> None:
    for part in PARTS:
        assert set(dir(getattr(chat, part))) == {
            name for name in dir(getattr(chat._target, part)) if name[0] != "_"
        }
    assert inspect.getdoc(chat.messages.send) == inspect.getdoc(chat._target.messages.send)
    assert inspect.signature(chat.messages.send) == inspect.signature(chat._target.messages.send)
    with pytest.raises(AttributeError):
        chat.users._executor  # noqa: B018


class Oops(Exception):
    pass


def oops() -> None:
    raise Oops


def test_transaction_is_committed_together_or_not_at_all(chat: sync.Hub, ada: User) -> None:
    committed: list[str] = []
    with chat.transaction() as tx:
        room = tx.rooms.create("launch", created_by=ada.id)
        tx.after_commit(lambda: committed.append(threading.current_thread().name))
        with suppress(Oops), tx.savepoint() as part:
            part.messages.send(room.id, ada.id, "undone")
            oops()
        tx.messages.send(room.id, ada.id, "first")
    assert [message.content for message in chat.messages.page(room.id).items] == ["first"]
    assert committed == ["hubbub"]
    with suppress(Oops), chat.transaction() as tx:
        tx.messages.send(room.id, ada.id, "undone")
        oops()
    assert len(chat.messages.page(room.id).items) == 1


def test_transaction_runs_sql_of_the_application(chat: sync.Hub, ada: User) -> None:
    with chat.transaction() as tx:
        assert tx.execute("SET LOCAL work_mem = '5MB'") == 0
        assert tx.fetch("SELECT current_setting('work_mem'), $1::int", 5)[0][1] == 5
        assert dict(tx.fetch_one("SELECT username FROM users WHERE id = $1", ada.id)) == {"username": "ada"}


def test_change_past_the_transaction_of_the_same_thread_is_refused(chat: sync.Hub, ada: User) -> None:
    room = chat.rooms.create("launch", created_by=ada.id)
    with chat.transaction() as tx:
        tx.messages.send(room.id, ada.id, "first")
        with pytest.raises(Invalid):
            chat.messages.send(room.id, ada.id, "second")


def test_feed_is_an_iteration(chat: sync.Hub, ada: User) -> None:
    room = chat.rooms.create("engine-room", created_by=ada.id)
    with chat.presence.online(ada.id), chat.follow(ada.id) as feed:
        assert room.id in feed.cursors
        sent = chat.messages.send(room.id, ada.id, "hello")
        event = next(feed)
        assert isinstance(event, MessageSent)
        assert event.message == sent
        assert chat.presence.is_online([ada.id]) == {ada.id: True}
    assert chat._loop.block is None


def test_feed_of_changes_is_an_iteration(chat: sync.Hub, ada: User) -> None:
    chat.rooms.create("engine-room", created_by=ada.id)
    with chat.changes.follow(consumer="search") as changes:
        assert next(changes).type == "member_joined"
    with chat.changes.follow() as changes:
        assert next(changes).type == "member_joined"
        assert isinstance(changes.position, str)


def test_feed_ends_with_its_session(chat: sync.Hub, ada: User) -> None:
    token = chat.sessions.create_session(ada.id)
    with chat.follow(ada.id, token=token) as feed:
        chat.sessions.delete_session(token)
        assert list(feed) == []


def test_threads_share_a_hub(chat: sync.Hub, ada: User) -> None:
    room = chat.rooms.create("engine-room", created_by=ada.id)

    def send(number: int) -> Message:
        with chat.transaction() if number % 2 else chat.presence.online(ada.id):
            message: Message = chat.messages.send(room.id, ada.id, str(number))
        return message

    with ThreadPoolExecutor(16) as threads:
        sent = list(threads.map(send, range(100)))
    seqs = sorted(message.seq for message in sent)
    assert seqs == list(range(seqs[0], seqs[0] + 100))


def test_call_in_an_event_loop_is_refused(chat: sync.Hub, ada: User) -> None:
    async def call() -> None:
        chat.users.get(ada.id)

    with pytest.raises(Unavailable, match="event loop") as refused:
        asyncio.run(call())
    assert not refused.value.retryable


def test_hub_is_closed_once_and_then_refuses(settings: Settings) -> None:
    chat = sync.Hub(settings)
    with pytest.raises(Unavailable, match="not open"):
        chat.rooms.public()
    with chat:
        chat.rooms.public()
    chat.close()
    with pytest.raises(Unavailable, match="not open"):
        chat.rooms.public()
    assert "hubbub" not in {thread.name for thread in threading.enumerate()}


def test_second_start_is_refused_and_leaves_the_hub_open(settings: Settings) -> None:
    with sync.Hub(settings) as chat:
        with pytest.raises(Unavailable, match="already started"):
            chat.start()
        assert chat.health(deadline_seconds=20).ready
    assert [thread for thread in threading.enumerate() if thread.name == "hubbub"] == []


def test_start_that_fails_leaves_no_thread(settings: Settings) -> None:
    wrong = Settings.from_urls("postgresql://nobody@127.0.0.1:1/none", "redis://127.0.0.1:1")
    with pytest.raises(Unavailable), sync.open(wrong):
        pass
    assert "hubbub" not in {thread.name for thread in threading.enumerate()}


def test_interrupted_call_leaves_its_blocks(chat: sync.Hub, ada: User) -> None:
    def interrupt(*_: object) -> None:
        raise Oops

    room = chat.rooms.create("engine-room", created_by=ada.id)
    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        with chat.presence.online(ada.id), chat.follow(ada.id) as feed:
            with pytest.raises(Oops):  # noqa: PT012 - the signal may come before the call
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                next(feed)
            sent = chat.messages.send(room.id, ada.id, "after the interruption")
            assert next(feed).message == sent
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert chat._loop.block is None
    assert chat.users.get(ada.id).id == ada.id


def test_close_ends_the_calls_of_other_threads(settings: Settings) -> None:
    entered = threading.Event()
    outcome: list[object] = []

    def follow(chat: sync.Hub, user: User) -> None:
        try:
            with chat.follow(user.id) as feed:
                entered.set()
                events = list(feed)
        except Unavailable as error:  # the end of the block is a call, too
            outcome.append(error.reason)
        else:
            outcome.append(events)

    with sync.open(settings) as chat:
        ada = chat.users.create("ada@example.org", "ada", "hash")
        thread = threading.Thread(target=follow, args=(chat, ada))
        thread.start()
        assert entered.wait(HANGS_AFTER_SECONDS)
    thread.join(HANGS_AFTER_SECONDS)
    assert not thread.is_alive()
    assert len(outcome) == 1


def test_no_call_hangs_when_the_hub_is_closed(settings: Settings) -> None:
    """Threads call it before it is closed, while calls and blocks are cancelled, and afterwards."""
    refused = []

    def call(chat: sync.Hub, user: User, *, in_blocks: bool) -> None:
        while True:
            try:
                with chat.presence.online(user.id) if in_blocks else nullcontext():
                    chat.users.get(user.id)
            except Unavailable as error:
                refused.append(error)
                return

    chat = sync.Hub(settings).start()
    ada = chat.users.create("ada@example.org", "ada", "hash")
    threads = [
        threading.Thread(target=call, args=(chat, ada), kwargs={"in_blocks": n % 2 == 0}) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    chat.close()
    for thread in threads:
        thread.join(HANGS_AFTER_SECONDS)
    assert len(refused) == len(threads)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 warns of forks
def test_child_process_is_refused_and_opens_a_hub_of_its_own(
    chat: sync.Hub, ada: User, settings: Settings
) -> None:
    reader, writer = os.pipe()
    with chat.presence.online(ada.id):
        child = os.fork()
        if child == 0:
            answers = []
            try:
                for call in (lambda: chat.users.get(ada.id), chat.health, lambda: chat.follow(ada.id).__enter__()):
                    try:
                        call()
                    except Unavailable as error:
                        answers.append(f"{error.reason[:27]} {error.retryable}")
                chat.close()
                with sync.open(settings) as own:
                    answers.append(own.users.get(ada.id).username)
            except BaseException:  # noqa: BLE001 - the parent shows it
                answers.append(traceback.format_exc())
            finally:
                os.write(writer, json.dumps(answers).encode())
                os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        assert json.load(answer) == ["it was opened before a fork False"] * 3 + ["ada"]
    os.waitpid(child, 0)
    assert chat.users.get(ada.id).id == ada.id
