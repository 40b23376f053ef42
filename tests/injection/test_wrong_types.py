"""Values of a wrong type in every argument of every public operation, as from the JSON of a socket."""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from inspect import signature
from itertools import count
from typing import Final
from uuid import uuid4

import pytest

from hubbub import HubbubError, Invalid, NewMessage, Unavailable
from hubbub.repository import Cursor
from injection.operations import Operation, World, use
from injection.test_every_operation import OPERATIONS

WRONG: tuple[object, ...] = (
    *(None, True, 5, -1, 10**40, 10**400, 1.5, float("nan"), float("inf")),
    *("", "x", b"", b"x", object(), datetime(2026, 1, 2), len),  # noqa: DTZ001 - without a zone on purpose
    *([], [None], ["x"], [[]], set(), {}, {"x": 1}, {None: None}, {True: "x"}, range(3), ...),
)

# Whether a value has a type, by the name of the type in a signature. Items of a collection may still be refused.
FITS: dict[str, Callable[[object], bool]] = {
    "None": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "Callable": callable,
    "Mapping": lambda value: isinstance(value, Mapping),
    "Iterable": lambda value: isinstance(value, Iterable) and not isinstance(value, str | bytes),
}
FITS["PageAnchor"] = FITS["int"]
# Types that none of the values above has.
OTHERS = {"UUID", "Role", "UserKind", "MessageType", "UnsetType"}

# A malformed secret gets the same answer as a wrong secret, in the same time.
SECRETS: Final = {"token", "keep_token", "except_token", "session_id"}
ATTEMPT: Final = {"login", "password"}


def fits(value: object, annotation: str) -> bool:
    names = re.sub(r"\[.*\]", "", annotation).split(" | ")
    assert set(names) <= FITS.keys() | OTHERS, annotation
    return any(FITS[name](value) for name in names if name in FITS)


def may_be_taken(operation: Operation, name: str, value: object, annotation: str) -> bool:
    if name in SECRETS or (operation.name == "authenticate" and name in ATTEMPT):
        return True
    return fits(value, annotation)


async def error_of(call: Callable[[], object]) -> HubbubError | None:
    """The error of hubbub, if any. `Unavailable` would mean that a server has misunderstood the value."""
    try:
        await use(call())
    except Unavailable:
        raise
    except HubbubError as error:
        return error
    return None


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_value_of_a_wrong_type_is_refused_with_the_name_of_its_argument(
    world: World, operation: Operation
) -> None:
    attempts = count()
    for name, parameter in signature(operation.of(world.hub)).parameters.items():
        for value in WRONG:
            arguments = {one: world.good[one] for one in operation.parameters}
            if operation.name == "authenticate":
                arguments["login"] = f"user-{next(attempts)}"  # each login has only a few attempts
            arguments[name] = value
            error = await error_of(partial(operation.of(world.hub), **arguments))
            if isinstance(error, Invalid):
                assert re.fullmatch(rf"{name}(\[.*)?", error.field), (name, value, error)
            else:
                assert may_be_taken(operation, name, value, parameter.annotation), (name, value, error)


@pytest.mark.parametrize(
    "draft",
    [
        NewMessage(None),  # type: ignore[arg-type]
        NewMessage("x", message_type=5),  # type: ignore[arg-type]
        NewMessage("x", id="x"),  # type: ignore[arg-type]
        NewMessage("x", reply_to=b"x"),  # type: ignore[arg-type]
        NewMessage("x", metadata=[]),  # type: ignore[arg-type]
    ],
)
async def test_value_of_a_wrong_type_in_a_draft_is_refused(world: World, draft: NewMessage) -> None:
    with pytest.raises(Invalid, match=r"drafts\[0\]\."):
        await world.hub.messages.send_many(world.room.id, world.ada.id, [draft])


MOMENTS = [
    f"{day}T00:00:00{zone}" for day in ("0001-01-01", "9999-12-31") for zone in ("", "Z", "+14:00", "-14:00")
]


@pytest.mark.parametrize("moment", MOMENTS)
async def test_forged_cursor_with_any_time_is_refused_or_valid(world: World, moment: str) -> None:
    hub, user_id = world.hub, world.ada.id
    for listed, name in ((hub.messages.by_author, "messages by author"), (hub.rooms.list_for, "rooms of a user")):
        cursor = Cursor(name, tuple).encode(user_id, (moment, uuid4()))
        error = await error_of(partial(listed, user_id, after=cursor))
        assert error is None or isinstance(error, Invalid)


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 300])
async def test_forged_cursor_with_any_name_is_refused_or_valid(world: World, name: str) -> None:
    forged = json.dumps(["public rooms", None, [name, str(uuid4())]]).encode()
    error = await error_of(partial(world.hub.rooms.public, after=urlsafe_b64encode(forged).decode()))
    assert error is None or isinstance(error, Invalid)
