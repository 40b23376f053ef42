from __future__ import annotations

import inspect
from uuid import UUID

import pytest

import hubbub
from hubbub import (
    Conflict,
    Forbidden,
    HubbubError,
    Invalid,
    NotAMember,
    NotFound,
    SchemaMismatch,
    Unavailable,
    errors,
)

ONE, OTHER = UUID(int=1), UUID(int=2)


def test_tree_in_the_module_docstring_is_complete() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}
    for kind in kinds - {HubbubError}:
        assert kind.__bases__ == (HubbubError,)
        assert f" {kind.__name__}(" in (errors.__doc__ or "")
        assert getattr(hubbub, kind.__name__) is kind


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotFound("user", ONE), f"there is no user {ONE}"),
        (Conflict("email"), "this email is already in use"),
        (Invalid("content", "must not be blank"), "content: must not be blank"),
        (NotAMember(ONE, OTHER), f"user {OTHER} is not a member of room {ONE}"),
        (
            Forbidden("change this room", "it needs the role admin"),
            "not allowed to change this room: it needs the role admin",
        ),
        (
            SchemaMismatch("0003", "0012", "run `hubbub migrate up`"),
            "the database is at revision 0003, and this hubbub needs revision 0012: run `hubbub migrate up`",
        ),
        (
            SchemaMismatch(None, "0012", "run `hubbub migrate up`"),
            "the database has no tables of hubbub, and this hubbub needs revision 0012: run `hubbub migrate up`",
        ),
        (Unavailable("redis", "no answer"), "redis: no answer"),
        (
            Unavailable("postgresql", "the connection was lost", outcome_unknown=True),
            "postgresql: the connection was lost; whether the change was made is unknown",
        ),
    ],
)
def test_text_of_an_error(error: HubbubError, text: str) -> None:
    assert str(error) == text


def test_attributes_of_an_error() -> None:
    assert (NotFound("user", ONE).kind, NotFound("user", ONE).key) == ("user", ONE)
    assert Conflict("email").what == "email"
    assert (Invalid("limit", "is too big").field, Invalid("limit", "is too big").reason) == ("limit", "is too big")
    assert (NotAMember(ONE, OTHER).room_id, NotAMember(ONE, OTHER).user_id) == (ONE, OTHER)
    assert (Forbidden("edit", "no").action, Forbidden("edit", "no").reason) == ("edit", "no")
    mismatch = SchemaMismatch(None, "0012", "hint")
    assert (mismatch.found, mismatch.wanted, mismatch.hint) == (None, "0012", "hint")
    unavailable = Unavailable("hub", "it is closed", retryable=False)
    assert (unavailable.service, unavailable.reason) == ("hub", "it is closed")
    assert (unavailable.retryable, unavailable.outcome_unknown) == (False, False)
    assert Unavailable("redis", "gone").retryable


def test_for_another_copies_an_error_with_its_cause() -> None:
    error = Unavailable("postgresql", "the connection was lost", outcome_unknown=True, retryable=False)
    error.__cause__ = OSError("reset")
    own = error.for_another()
    assert own is not error
    assert (own.service, own.reason, own.outcome_unknown, own.retryable) == (
        error.service,
        error.reason,
        error.outcome_unknown,
        error.retryable,
    )
    assert own.__cause__ is error.__cause__
