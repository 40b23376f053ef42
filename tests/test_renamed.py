"""Former names work with a warning."""

from __future__ import annotations

import pytest

import hubbub
from hubbub import Hub, Room, User, sync
from hubbub.settings import Settings


@pytest.mark.parametrize(
    ("former", "now"), [("Verdict", hubbub.RateLimitResult), ("Maintained", hubbub.MaintenanceResult)]
)
def test_former_name_of_a_class_is_the_class(former: str, now: type) -> None:
    with pytest.warns(DeprecationWarning, match=f"hubbub.{former} is now called {now.__name__}"):
        assert getattr(hubbub, former) is now


def test_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="verdicts"):
        getattr(hubbub, "verdicts")  # noqa: B009 - a type checker would refuse it


async def test_former_name_of_an_operation_runs_it(hub: Hub, ada: User, room: Room) -> None:
    sent = await hub.messages.send(room.id, ada.id, "hello")
    me = hub.as_user(ada.id)
    for owner, former, args, result in [
        (hub.sessions, "list_sessions", (ada.id,), []),
        (hub.typing, "who_types", (room.id,), [ada.id]),
        (me.typing, "who_types", (room.id,), [ada.id]),
        (hub.receipts, "who_read", (sent.id,), hubbub.Page([], None)),
        (me.receipts, "who_read", (sent.id,), hubbub.Page([], None)),
    ]:
        await hub.typing.start(room.id, ada.id)  # each time, because it ends after some seconds
        with pytest.warns(DeprecationWarning, match=f"{former} is now called"):
            assert await getattr(owner, former)(*args) == result
    with pytest.raises(AttributeError, match="who_writes"):
        getattr(hub.typing, "who_writes")  # noqa: B009


def test_former_name_of_an_operation_blocks_where_the_others_do(settings: Settings) -> None:
    with sync.open(settings) as chat, pytest.warns(DeprecationWarning, match="is now called list"):
        assert chat.sessions.list_sessions(hubbub.new_id()) == []
