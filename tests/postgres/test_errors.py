"""The error of hubbub for each class of database error, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
import pytest

from hubbub import Conflict, HubbubError, Invalid, NotFound, Unavailable, User
from hubbub.postgres import OpenTransaction, Statement
from hubbub.postgres.connection import Connection, now, run
from hubbub.postgres.errors import (
    CHECK_CONSTRAINTS,
    FOREIGN_KEYS,
    MISCONFIGURED,
    OTHER_SCHEMA,
    UNIQUE_CONSTRAINTS,
    to_error,
)

SECRET = "what Ada wrote to Bob"


def raised(kind: type[asyncpg.PostgresError], **fields: str) -> asyncpg.PostgresError:
    """An error as the server sends it, with chat content in every text."""
    error = kind(f"server says {SECRET}")
    for name, value in {"detail": f"Failing row contains ({SECRET}).", **fields}.items():
        setattr(error, name, value)
    return error


# Constraints


@pytest.mark.parametrize("name", sorted(UNIQUE_CONSTRAINTS))
def test_violated_unique_constraint_is_a_conflict(name: str) -> None:
    error = to_error(raised(asyncpg.UniqueViolationError, constraint_name=name), writes=True)
    assert isinstance(error, Conflict)
    assert error.what == UNIQUE_CONSTRAINTS[name]


@pytest.mark.parametrize("name", sorted(FOREIGN_KEYS))
def test_violated_foreign_key_is_not_found(name: str) -> None:
    detail = 'Key (some_id)=(0192f0c1-0000-7000-8000-000000000000) is not present in table "some".'
    error = to_error(raised(asyncpg.ForeignKeyViolationError, constraint_name=name, detail=detail), writes=True)
    assert isinstance(error, NotFound)
    assert (error.kind, error.key) == (FOREIGN_KEYS[name], "0192f0c1-0000-7000-8000-000000000000")


@pytest.mark.parametrize("name", sorted(CHECK_CONSTRAINTS))
def test_violated_check_is_invalid(name: str) -> None:
    error = to_error(raised(asyncpg.CheckViolationError, constraint_name=name), writes=True)
    assert isinstance(error, Invalid)
    assert (error.field, error.reason) == CHECK_CONSTRAINTS[name]


def test_missing_value_is_invalid() -> None:
    error = to_error(raised(asyncpg.NotNullViolationError, column_name="email"), writes=True)
    assert isinstance(error, Invalid)
    assert (error.field, error.reason) == ("email", "is required")


def test_violated_constraint_of_another_schema_is_invalid_and_named() -> None:
    for kind in (asyncpg.UniqueViolationError, asyncpg.ExclusionViolationError, asyncpg.RestrictViolationError):
        error = to_error(raised(kind, constraint_name="the_application_s_own"), writes=True)
        assert isinstance(error, Invalid)
        assert error.field == "the_application_s_own"
        assert SECRET not in str(error)


# Errors of another node, recorded from Citus 14.0.1. Their fields are missing.


def of_a_node(kind: type[asyncpg.PostgresError], text: str, detail: str) -> HubbubError | None:
    error = kind(text)
    for name, value in {"detail": detail, "constraint_name": None, "column_name": None}.items():
        setattr(error, name, value)
    return to_error(error, writes=True)


ID = "fcb456d1-9d93-43e8-bb8d-ce861c7d3526"


@pytest.mark.parametrize("kind", [asyncpg.UniqueViolationError, asyncpg.InternalServerError])
@pytest.mark.parametrize("name", sorted(UNIQUE_CONSTRAINTS))
def test_conflict_on_another_node_is_found_in_the_message(kind: type[asyncpg.PostgresError], name: str) -> None:
    text = f'duplicate key value violates unique constraint "{name}_102030"'
    error = of_a_node(kind, text, f"Key (room_id, id)=({ID}, {ID}) already exists.")
    assert isinstance(error, Conflict)
    assert error.what == UNIQUE_CONSTRAINTS[name]


@pytest.mark.parametrize("kind", [asyncpg.ForeignKeyViolationError, asyncpg.InternalServerError])
@pytest.mark.parametrize("name", sorted(FOREIGN_KEYS))
def test_missing_row_on_another_node_is_found_in_the_message(kind: type[asyncpg.PostgresError], name: str) -> None:
    text = f'insert or update on table "messages_102030" violates foreign key constraint "{name}_102030"'
    error = of_a_node(kind, text, f'Key (user_id)=({ID}) is not present in table "users_102008".')
    assert isinstance(error, NotFound)
    assert (error.kind, error.key) == (FOREIGN_KEYS[name], ID)


def test_row_that_another_node_still_refers_to_is_found_in_the_message() -> None:
    name = "room_users_user_id_fkey"
    text = (
        'update or delete on table "users_102008" violates foreign key constraint '
        f'"{name}_102019" on table "room_users_102019"'
    )
    detail = f'Key (id)=({ID}) is still referenced from table "room_users_102019".'
    error = of_a_node(asyncpg.ForeignKeyViolationError, text, detail)
    assert isinstance(error, NotFound)
    assert error.kind == FOREIGN_KEYS[name]


@pytest.mark.parametrize("name", sorted(CHECK_CONSTRAINTS))
def test_violated_check_on_another_node_is_found_in_the_message(name: str) -> None:
    text = f'new row for relation "rooms_102014" violates check constraint "{name}"'
    error = of_a_node(asyncpg.CheckViolationError, text, f"Failing row contains ({SECRET}).")
    assert isinstance(error, Invalid)
    assert (error.field, error.reason) == CHECK_CONSTRAINTS[name]


def test_missing_value_on_another_node_is_found_in_the_message() -> None:
    text = 'null value in column "content" of relation "messages_102030" violates not-null constraint'
    error = of_a_node(asyncpg.NotNullViolationError, text, f"Failing row contains ({SECRET}).")
    assert isinstance(error, Invalid)
    assert (error.field, error.reason) == ("content", "is required")


def test_other_internal_errors_are_unavailable() -> None:
    for text in ('cannot open relation "messages"', "out of cheese"):
        error = of_a_node(asyncpg.InternalServerError, text, "")
        assert isinstance(error, Unavailable)
        assert error.retryable


# Values


@pytest.mark.parametrize("kind", [asyncpg.DataError, *asyncpg.DataError.__subclasses__()])
def test_value_that_a_column_cannot_hold_is_invalid(kind: type[asyncpg.PostgresError]) -> None:
    error = to_error(raised(kind), writes=True)
    assert isinstance(error, Invalid)


# The server and the connection to it: (error, connection lost) -> (retryable, outcome of a write unknown)

DID_NOT_RUN = (True, False)
UNKNOWN = (True, True)
PERMANENT = (False, False)

UNAVAILABLE: list[tuple[Exception, bool, tuple[bool, bool]]] = [
    (raised(asyncpg.DeadlockDetectedError), False, DID_NOT_RUN),
    (raised(asyncpg.SerializationError), False, DID_NOT_RUN),
    (raised(asyncpg.LockNotAvailableError), False, DID_NOT_RUN),
    (raised(asyncpg.QueryCanceledError), False, DID_NOT_RUN),
    (raised(asyncpg.CannotConnectNowError), True, DID_NOT_RUN),
    (raised(asyncpg.TooManyConnectionsError), True, DID_NOT_RUN),
    (raised(asyncpg.ConnectionRejectionError), True, DID_NOT_RUN),
    (raised(asyncpg.DiskFullError), False, DID_NOT_RUN),
    (raised(asyncpg.OutOfMemoryError), False, DID_NOT_RUN),
    (raised(asyncpg.ReadOnlySQLTransactionError), False, DID_NOT_RUN),
    (raised(asyncpg.InvalidCachedStatementError), False, DID_NOT_RUN),
    (raised(asyncpg.PostgresIOError), False, DID_NOT_RUN),
    (raised(asyncpg.InternalServerError), False, DID_NOT_RUN),
    (raised(asyncpg.DataCorruptedError), False, DID_NOT_RUN),
    (raised(asyncpg.ConnectionDoesNotExistError), True, UNKNOWN),
    (raised(asyncpg.ConnectionFailureError), True, UNKNOWN),
    (raised(asyncpg.AdminShutdownError), True, UNKNOWN),
    (raised(asyncpg.CrashShutdownError), True, UNKNOWN),
    (raised(asyncpg.IdleInTransactionSessionTimeoutError), True, UNKNOWN),
    (raised(asyncpg.IdleSessionTimeoutError), True, UNKNOWN),
    (raised(asyncpg.TransactionTimeoutError), True, UNKNOWN),
    (raised(asyncpg.DatabaseDroppedError), True, UNKNOWN),
    (asyncpg.InterfaceError("connection is closed"), True, UNKNOWN),
    (asyncpg.InternalClientError("got result for unknown protocol state"), True, UNKNOWN),
    (ConnectionResetError("reset"), True, UNKNOWN),
    (BrokenPipeError("broken"), True, UNKNOWN),
    (TimeoutError(), True, UNKNOWN),
    (asyncpg.InvalidPasswordError("password authentication failed"), True, PERMANENT),
    (asyncpg.InvalidAuthorizationSpecificationError("no pg_hba.conf entry"), True, PERMANENT),
    (asyncpg.InvalidCatalogNameError("no such database"), True, PERMANENT),
    (asyncpg.InsufficientPrivilegeError("permission denied for table users"), False, PERMANENT),
    (raised(asyncpg.InFailedSQLTransactionError), False, PERMANENT),
]


@pytest.mark.parametrize(
    ("error", "lost", "expected"), UNAVAILABLE, ids=[type(error).__name__ for error, _, _ in UNAVAILABLE]
)
def test_failure_of_the_server_is_unavailable(error: Exception, lost: bool, expected: tuple[bool, bool]) -> None:
    write, read = (to_error(error, writes=writes, lost=lost) for writes in (True, False))
    assert isinstance(write, Unavailable)
    assert isinstance(read, Unavailable)
    assert (write.retryable, write.outcome_unknown) == expected
    assert (read.retryable, read.outcome_unknown) == (expected[0], False)
    assert write.service == "postgresql"
    assert SECRET not in str(write)


def test_mistake_in_the_code_is_not_translated() -> None:
    for error in (
        asyncpg.InterfaceError("another operation is in progress"),
        AttributeError("no such attribute"),
    ):
        assert to_error(error, writes=True) is None


def _kinds(root: type[asyncpg.PostgresError]) -> set[type[asyncpg.PostgresError]]:
    return {root}.union(*map(_kinds, root.__subclasses__()))


def test_every_error_of_the_server_is_a_hubbub_error() -> None:
    """Every error class of asyncpg, also with the connection lost. Chat content stays in the cause."""
    for kind in _kinds(asyncpg.PostgresError):
        for lost in (False, True):
            error = to_error(raised(kind, constraint_name="x", column_name="x"), writes=True, lost=lost)
            assert isinstance(error, HubbubError), kind
            if not issubclass(kind, MISCONFIGURED + OTHER_SCHEMA):  # these name a role, a table or a column
                assert SECRET not in str(error), kind


# On a stub connection, for behaviour that a real one cannot be made to show


class Stub:
    """A connection that returns the next of its answers for each call, or raises it if it is an error."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[object, ...]] = []
        self.closed = self.is_abandoned = self.is_wrong_server = False
        self.quiet_since, self.schema, self.layout = 0.0, "public", "public"

    async def _answer(self, *asked: object) -> object:
        self.asked.append(asked)
        if self.closed:
            raise asyncpg.InterfaceError("connection is closed")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return await answer if isinstance(answer, asyncio.Future) else answer

    fetch = fetchrow = execute = _answer

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True
        for answer in self.answers:
            if isinstance(answer, asyncio.Future) and not answer.done():
                answer.set_exception(asyncpg.ConnectionDoesNotExistError("closed in the middle"))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[OpenTransaction]:
        async with OpenTransaction.begin(cast("Connection", self), 5) as tx:
            yield tx

    async def run(self, *, writes: bool, seconds: float = 5) -> object:
        call: Callable[[Connection], Any] = lambda connection: connection.fetch("SELECT 1")  # noqa: E731 - with its type
        return await run(
            cast("Connection", self),
            call,
            deadline=now() + seconds,
            seconds=seconds,
            writes=writes,
            name="test",
        )


NAME = Statement("test.name", lambda id, name: {id: name}, "SELECT id, name FROM users WHERE id = $1")


async def test_columns_are_passed_to_the_model_in_their_order() -> None:
    stub = Stub("BEGIN", [(1, "ada"), (2, "bob")], (1, "ada"), None, "UPDATE 2", "COMMIT")
    async with stub.transaction() as tx:
        assert await tx.fetch_all(NAME, 1) == [{1: "ada"}, {2: "bob"}]
        assert await tx.fetch_one(NAME, 1) == {1: "ada"}
        assert await tx.fetch_one(NAME, 1) is None
        assert await tx.execute(NAME, 1) == 2
    assert stub.asked == [("BEGIN",), *[(NAME.in_layout["public"], 1)] * 4, ("COMMIT",)]


async def test_message_of_the_server_is_in_the_cause_and_not_in_the_text() -> None:
    said = raised(asyncpg.UniqueViolationError, constraint_name="idx_users_email")
    with pytest.raises(Conflict) as caught:
        await Stub(said).run(writes=True)
    assert caught.value.__cause__ is said
    assert SECRET not in str(caught.value)


async def test_statement_that_the_server_refuses_is_invalid_with_its_sqlstate() -> None:
    for kind, sqlstate in ((asyncpg.PostgresSyntaxError, "42601"), (asyncpg.RaiseError, "P0001")):
        with pytest.raises(Invalid, match=f"SQLSTATE {sqlstate}") as caught:
            await Stub(raised(kind)).run(writes=True)
        assert SECRET not in str(caught.value)
        assert SECRET in str(caught.value.__cause__)


@pytest.mark.parametrize("kind", [asyncpg.InternalClientError, asyncpg.ProtocolError])
async def test_connection_that_the_driver_does_not_understand_is_closed(
    kind: type[asyncpg.InternalClientError],
) -> None:
    stub = Stub(kind("unexpected message"))
    with pytest.raises(Unavailable, match="DB_PREPARED_STATEMENTS=false") as caught:
        await stub.run(writes=True)
    assert (caught.value.retryable, caught.value.outcome_unknown) == (True, True)
    assert stub.closed


async def test_connection_lost_while_preparing_is_unavailable() -> None:
    """In this case asyncpg calls a method of None."""

    class PreparedAndLost(Stub):
        async def fetch(self, *_: object) -> object:
            self.terminate()
            nothing: Any = None
            return await nothing.bind_execute()

    with pytest.raises(Unavailable, match="the connection was lost") as caught:
        await PreparedAndLost().run(writes=True)
    assert caught.value.retryable


@pytest.mark.parametrize("writes", [True, False])
async def test_call_without_an_answer_ends_at_the_deadline(writes: bool) -> None:
    never: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    class Frozen(Stub):
        def terminate(self) -> None:
            super().terminate()
            never.set_exception(asyncpg.ConnectionDoesNotExistError("closed in the middle"))

    with pytest.raises(Unavailable, match=r"no answer within 0\.01 s") as caught:
        await Frozen(never).run(writes=writes, seconds=0.01)
    assert caught.value.outcome_unknown == writes


async def test_answer_in_time_keeps_the_connection() -> None:
    stub = Stub([(1,)])
    assert await stub.run(writes=False, seconds=0.01) == [(1,)]
    await asyncio.sleep(0.02)  # past the deadline
    assert not stub.closed


async def test_failed_rollback_terminates_the_connection_and_raises_the_first_error() -> None:
    for failure in (
        asyncpg.InternalClientError("waiter is done"),
        raised(asyncpg.InternalServerError),
        asyncpg.InvalidSavepointSpecificationError("no such savepoint"),
    ):
        stub = Stub("BEGIN", raised(asyncpg.UniqueViolationError, constraint_name="users_pkey"), failure)
        with pytest.raises(Conflict):
            async with stub.transaction() as tx:
                await tx.execute(NAME)
        assert stub.closed


async def test_failed_begin_raises_its_error() -> None:
    with pytest.raises(Unavailable, match="starting or stopping"):
        async with Stub(raised(asyncpg.CannotConnectNowError), "ROLLBACK").transaction():
            raise AssertionError


async def test_commit_answered_with_a_rollback_raises_unavailable() -> None:
    with pytest.raises(Unavailable, match="a statement in it had failed"):
        async with Stub("BEGIN", "ROLLBACK", "ROLLBACK").transaction():
            pass


async def test_serialization_conflict_at_the_commit_is_retryable() -> None:
    with pytest.raises(Unavailable) as caught:
        async with Stub("BEGIN", raised(asyncpg.SerializationError), "ROLLBACK").transaction():
            pass
    assert (caught.value.retryable, caught.value.outcome_unknown) == (True, False)


def test_every_error_is_a_hubbub_error() -> None:
    assert all(issubclass(kind, HubbubError) for kind in (Conflict, Invalid, NotFound, Unavailable))
    assert not issubclass(User, HubbubError)
