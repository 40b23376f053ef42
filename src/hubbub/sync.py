"""A hub for programs without an event loop: Django, Flask, Celery, scripts.

    a thread of the caller --call--> the loop, in a thread of its own --result--> the thread of the caller

Each operation of `hubbub.Hub`, as a call that blocks. `async with` becomes `with`, and `async for` becomes `for`.
Any number of threads may share a hub, and their calls are batched like those of tasks.

A call runs in a task. All calls of a thread inside a `with` run in the same task, as they would in a coroutine. So
the rules for the task of a transaction apply to the thread as well.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Final, Self

import msgspec

import hubbub.hub
from hubbub.acting_user import ActingUser
from hubbub.errors import Unavailable
from hubbub.forks import abandon_in_child, forked
from hubbub.hub import Options, Repositories, find_settings
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.passwords import Passwords
from hubbub.settings import Settings

__all__ = ["Hub", "open"]

IN_A_LOOP: Final = "called in a thread that runs an event loop: use hubbub.open() there, and await its operations"
NOT_OPEN: Final = "the hub is not open"
END: Final = object()

Job = Callable[[], Any]


class _Block:
    """A task that runs the calls of one thread in turn, from the beginning of its outermost block to the end."""

    def __init__(self) -> None:
        self.is_ended = False
        self._jobs = asyncio.Queue[tuple[Job, Future[Any]] | None]()
        self.task = asyncio.create_task(self._run(), name="hubbub: block of a thread")
        self.task.add_done_callback(self._refuse_rest)

    def submit(self, job: Job, future: Future[Any]) -> None:
        if self.task.done():
            future.cancel()
        else:
            self._jobs.put_nowait((job, future))

    def end(self) -> None:
        self._jobs.put_nowait(None)

    async def _run(self) -> None:
        while (submitted := await self._jobs.get()) is not None:
            await _do(*submitted)

    def _refuse_rest(self, _: object) -> None:
        while not self._jobs.empty():
            if (submitted := self._jobs.get_nowait()) is not None:
                submitted[1].cancel()


async def _do(job: Job, future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job()
        result = await result if inspect.isawaitable(result) else result
    except asyncio.CancelledError as error:  # the caller was interrupted, and has yet to leave its block
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        future.set_exception(error)
    except BaseException as error:  # noqa: BLE001 - the caller gets it
        future.set_exception(error)
    else:
        future.set_result(result)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.is_started = False
        self._lock = threading.Lock()  # all calls are submitted before the loop is stopped, or refused
        self._of_thread = threading.local()
        self.is_abandoned = False
        abandon_in_child(self._abandon)

    def _abandon(self) -> None:
        self.is_abandoned = self._thread is not None

    def start(self) -> None:
        with self._lock:
            if self.is_started:
                raise Unavailable("hub", "it was already started", retryable=False)
            self.is_started = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="hubbub", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    @property
    def block(self) -> _Block | None:
        """The block that this thread is in."""
        block: _Block | None = getattr(self._of_thread, "block", None)
        return None if block is None or block.is_ended else block

    @block.setter
    def block(self, block: _Block) -> None:
        self._of_thread.block = block

    def call(self, job: Job, *, block: _Block | None = None) -> Any:  # noqa: ANN401 - the result of the job
        """Run it in the loop, in the task of the block or in one of its own, and wait for its result."""
        if self.is_abandoned:
            raise forked()
        if asyncio._get_running_loop() is not None:
            raise Unavailable("hub", IN_A_LOOP, retryable=False)
        future = Future[Any]()
        block = block or self.block
        tasks: list[asyncio.Task[None]] = []

        def submit() -> None:
            if block is not None:
                tasks.append(block.task)
                block.submit(job, future)
            else:
                tasks.append(asyncio.create_task(_do(job, future)))
                tasks[0].add_done_callback(lambda _: future.cancel())  # if it was cancelled before its first step

        def cancel() -> None:
            if not future.done() and not future.cancel():
                tasks[0].cancel()

        with self._lock:
            if (loop := self._loop) is None:
                raise Unavailable("hub", NOT_OPEN, retryable=False)
            loop.call_soon_threadsafe(submit)
        try:
            return future.result()
        except (asyncio.CancelledError, CancelledError):
            raise Unavailable("hub", NOT_OPEN, retryable=False) from None  # it was closed meanwhile
        except BaseException:
            if not future.done():  # the thread was interrupted, as by Ctrl-C
                loop.call_soon_threadsafe(cancel)
            raise


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    while tasks := asyncio.all_tasks(loop):  # the calls of other threads while the hub was closed
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks, timeout=0.1))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


class Synchronous:
    """An object of hubbub whose operations block. `help` of an operation is that of the asynchronous one."""

    def __init__(self, loop: _Loop, target: Any) -> None:  # noqa: ANN401 - any object with operations
        self._loop = loop
        self._target = target
        self._block: _Block | None = None
        self._has_begun_block = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - an operation, a part or a value
        if name.startswith("_"):
            raise AttributeError(name)
        loop, target = self._loop, self._target
        if isinstance(target, Repositories | ActingUser) and isinstance(
            getattr(type(target), name, None), property
        ):
            return self._wrapped(getattr(target, name))  # a part, which is the same for as long as the hub is
        if callable(inspect.getattr_static(target, name, None)):
            method = getattr(target, name)
        else:
            method = loop.call(lambda: getattr(target, name))
            if not inspect.ismethod(method):  # else an operation by its former name
                return self._wrapped(method)

        @functools.wraps(method)
        def operation(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return self._wrapped(loop.call(lambda: method(*args, **kwargs)))

        return operation

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._target) if not name.startswith("_")]

    def __repr__(self) -> str:
        return f"<synchronous {self._target!r}>"

    def _wrapped(self, value: Any) -> Any:  # noqa: ANN401
        """A value as it is. An object with operations, a block or an iteration as one that blocks."""
        is_asynchronous = hasattr(value, "__aenter__") or hasattr(value, "__anext__")
        is_value = isinstance(value, msgspec.Struct | Enum) or is_dataclass(value)
        is_part = type(value).__module__.startswith("hubbub.") and not is_value
        return Synchronous(self._loop, value) if is_asynchronous or is_part else value

    def __enter__(self) -> Any:  # noqa: ANN401 - what the block is entered with
        self._block = self._loop.block
        if self._block is None:
            self._block = self._loop.block = self._loop.call(_Block)
            self._has_begun_block = True
        try:
            entered = self._loop.call(self._target.__aenter__, block=self._block)
        except BaseException:
            self._leave()
            raise
        return self if entered is self._target else self._wrapped(entered)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._loop.is_abandoned:
            return None
        try:
            is_handled: bool | None = self._loop.call(
                lambda: self._target.__aexit__(kind, error, traceback), block=self._block
            )
        finally:
            self._leave()
        return is_handled

    def _leave(self) -> None:
        block, self._block = self._block, None
        if self._has_begun_block and block is not None:
            self._has_begun_block, block.is_ended = False, True
            with suppress(Unavailable):  # a loop that has ended has ended its blocks
                self._loop.call(block.end)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - what the iteration yields
        # `END` marks the end, because a task cannot raise StopAsyncIteration to a thread.
        value = self._loop.call(lambda: anext(self._target, END), block=self._block)
        if value is END:
            raise StopIteration
        return self._wrapped(value)


class Hub(Synchronous):
    """`hubbub.Hub` for programs without an event loop. Every operation blocks until it is done.

    It starts a thread with an event loop. Callbacks are called in that thread and must not call the hub.

    A hub belongs to the process that started it, so open it after a fork. In a child process every call raises
    `Unavailable`, which is not retryable, and `close` does nothing. A call in a thread that runs an event loop
    raises it as well, because that loop would stop.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        options: Options | None = None,
        passwords: Passwords | None = None,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        """The arguments are those of `hubbub.open`.

        Raises: Unavailable (without settings and servers), Invalid.
        """
        hub = hubbub.hub.Hub(
            settings or find_settings(), options=options, passwords=passwords, instrumentation=instrumentation
        )
        super().__init__(_Loop(), hub)

    def start(self) -> Self:
        """Start the thread, and connect. A hub can be started once.

        Raises: Unavailable (also where the hub was started before), SchemaMismatch.
        """
        self._loop.start()
        try:
            self._loop.call(self._target.start)
        except BaseException:
            self._loop.stop()
            raise
        return self

    def close(self) -> None:
        """Close the hub and end the thread. Idempotent, and nothing in a child process."""
        if self._loop.is_abandoned:
            return
        try:
            with suppress(Unavailable):  # it is closed
                self._loop.call(self._target.close)
        finally:
            self._loop.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def open(
    settings: Settings | None = None,
    *,
    options: Options | None = None,
    passwords: Passwords | None = None,
    instrumentation: Instrumentation = SILENT,
) -> Iterator[Hub]:
    """A started hub whose operations block, closed at the end of the block, with the arguments of `hubbub.open`.

    Raises: Unavailable (also without settings and servers), Invalid (also for a variable), SchemaMismatch.
    """
    with Hub(settings, options=options, passwords=passwords, instrumentation=instrumentation) as hub:
        yield hub
