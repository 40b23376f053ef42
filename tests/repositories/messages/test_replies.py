"""Replies and metadata: the replies that are accepted, and metadata that are returned as given."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubbub import Conflict, Hub, Invalid, Message, NewMessage, NotAMember, Room, User, inputs
from hubbub.postgres import Pool, Statement
from log import log_of


async def test_reply_names_an_earlier_message_of_its_room(hub: Hub, ada: User, room: Room) -> None:
    question = await hub.messages.send(room.id, ada.id, "tea?")
    answer = await hub.messages.send(room.id, ada.id, "tea!", reply_to=question.id)
    assert (question.reply_to, answer.reply_to) == (None, question.id)
    assert (await hub.messages.page(room.id)).items == [question, answer]
    assert await hub.messages.get(answer.id) == answer


async def test_deleted_message_can_be_replied_to(hub: Hub, ada: User, room: Room) -> None:
    question = await hub.messages.send(room.id, ada.id, "tea?")
    await hub.messages.delete(question.id, by=ada.id)
    assert (await hub.messages.send(room.id, ada.id, "what?", reply_to=question.id)).reply_to == question.id


async def elsewhere(hub: Hub, ada: User) -> UUID:
    """A message of another room."""
    other = await hub.rooms.create("other", created_by=ada.id)
    return (await hub.messages.send(other.id, ada.id, "over here")).id


async def test_reply_to_a_message_outside_the_room_is_refused_and_takes_no_seq(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    own = uuid4()
    for nothing in (uuid4(), await elsewhere(hub, ada), own):
        with pytest.raises(Invalid) as refused:
            await hub.messages.send(room.id, ada.id, "to nothing", id=own, reply_to=nothing)
        assert refused.value.field == "reply_to"
        async with hub.transaction() as tx:
            with pytest.raises(Invalid):
                await tx.messages.send(room.id, ada.id, "to nothing", id=own, reply_to=nothing)
    assert await log_of(pool, room.id) == ["joined"]


async def test_non_member_gets_one_error_for_any_reply(hub: Hub, ada: User, bob: User, room: Room) -> None:
    question = await hub.messages.send(room.id, ada.id, "tea?")
    for reply_to in (question.id, uuid4()):
        with pytest.raises(NotAMember):
            await hub.messages.send(room.id, bob.id, "tea!", reply_to=reply_to)


async def test_replies_to_unknown_messages_are_refused_within_a_batch(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    """Some drafts reply to messages of the same batch, and some of these are refused themselves."""
    good, refused, sent_before, foreign = uuid4(), uuid4(), uuid4(), await elsewhere(hub, ada)
    await hub.messages.send(room.id, ada.id, "before", id=sent_before)

    async def outcome(user: User, content: str, id: UUID | None = None, reply_to: UUID | None = None) -> object:
        try:
            return await hub.messages.send(room.id, user.id, content, id=id, reply_to=reply_to)
        except (Invalid, NotAMember) as refusal:
            return type(refusal)

    outcomes = await asyncio.gather(
        *(outcome(ada, f"message {n}") for n in range(10)),
        outcome(ada, "a question", id=good),
        outcome(ada, "an answer", reply_to=good),
        outcome(bob, "an intrusion", id=refused),
        outcome(ada, "an answer to it", reply_to=refused),
        outcome(ada, "before", id=sent_before),
        outcome(ada, "an answer to it", reply_to=sent_before),
        outcome(ada, "an answer across rooms", reply_to=foreign),
        outcome(ada, "too early", reply_to=(late := uuid4())),
        outcome(ada, "late", id=late),
    )
    kinds = [outcome if isinstance(outcome, type) else Message for outcome in outcomes[10:]]
    assert kinds == [Message, Message, NotAMember, Invalid, Message, Message, Invalid, Invalid, Message]
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * 15


async def test_retry_with_another_reply_is_a_conflict_and_one_with_other_metadata_is_not(
    hub: Hub, ada: User, room: Room
) -> None:
    question = await hub.messages.send(room.id, ada.id, "tea?")
    id = uuid4()
    first = await hub.messages.send(
        room.id, ada.id, "tea!", id=id, reply_to=question.id, metadata={"client": "phone"}
    )
    again = await hub.messages.send(
        room.id, ada.id, "tea!", id=id, reply_to=question.id, metadata={"client": "laptop"}
    )
    assert again == first
    with pytest.raises(Conflict):
        await hub.messages.send(room.id, ada.id, "tea!", id=id)


async def test_retry_of_a_former_member_returns_the_sent_message(
    hub: Hub, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    id = uuid4()
    first = await hub.messages.send(room.id, bob.id, "bye", id=id)
    await hub.room_users.remove(room.id, bob.id)
    assert await hub.messages.send(room.id, bob.id, "bye", id=id) == first
    [*_, again] = await asyncio.gather(
        *(hub.messages.send(room.id, ada.id, f"{n}") for n in range(5)),
        hub.messages.send(room.id, bob.id, "bye", id=id),
    )
    assert again == first
    with pytest.raises(NotAMember):
        await hub.messages.send(room.id, bob.id, "one more thing")


async def test_edit_keeps_reply_and_metadata_and_a_deletion_only_the_reply(
    hub: Hub, ada: User, room: Room
) -> None:
    question = await hub.messages.send(room.id, ada.id, "tea?")
    answer = await hub.messages.send(room.id, ada.id, "tae!", reply_to=question.id, metadata={"mood": "thirsty"})
    edited = await hub.messages.edit(answer.id, "tea!", by=ada.id)
    assert (edited.reply_to, edited.metadata) == (question.id, {"mood": "thirsty"})
    deleted = await hub.messages.delete(answer.id, by=ada.id)
    assert (deleted.reply_to, deleted.metadata) == (question.id, None)
    assert await hub.messages.get(answer.id) == deleted


METADATA: list[dict[str, Any]] = [
    {},
    {"": ""},
    {"text": "\\u0000 \\ \" ' ; -- $1 %s \u2028 \u202e \U0001f980 ]}"},
    {"numbers": [0, -1, 1.5, 2**63, -(2**64), 10**100, 0.1, -0.0, 1e15, -1e-30, 1e-7]},
    {"nested": {"list": [[], {}, [None, True, False]], "1": 1}},
    {"x": "y" * 8_184},
]


@pytest.mark.parametrize("metadata", METADATA, ids=range(len(METADATA)))
async def test_metadata_are_returned_as_given(hub: Hub, ada: User, room: Room, metadata: dict[str, Any]) -> None:
    """Returned by a direct send, returned by a shared statement, and read from the table."""
    alone = await hub.messages.send(room.id, ada.id, "alone", metadata=MappingProxyType(metadata))
    together = await asyncio.gather(
        *(hub.messages.send(room.id, ada.id, "together", metadata=metadata) for _ in range(3))
    )
    many = await hub.messages.send_many(room.id, ada.id, [NewMessage("many", metadata=metadata)] * 2)
    sent = [alone, *together, *many]
    assert [message.metadata for message in sent] == [metadata] * 6
    assert (await hub.messages.page(room.id)).items == sent


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
AS_JSONB = Statement("test.as_jsonb", lambda value: value, "SELECT $1::jsonb AS value")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(metadata=st.dictionaries(st.text(max_size=5), anything, max_size=5))
async def test_metadata_are_either_refused_or_the_same_in_the_table(pool: Pool, metadata: dict[str, Any]) -> None:
    try:
        taken = inputs.metadata(metadata)
    except Invalid:
        return
    assert msgspec.json.decode(await pool.fetch_one(AS_JSONB, taken) or "") == metadata


def deep(levels: int) -> dict[str, Any]:
    value: Any = {}
    for level in range(levels - 1):
        value = [value] if level % 2 else {"x": value}
    return value if isinstance(value, dict) else {"x": value}


REFUSED: dict[str, object] = {
    "no mapping": ["a"],
    "text": '{"a": 1}',
    "a key that is no text": {1: "a"},
    "a tuple": {"a": (1, 2)},
    "a set": {"a": {1}},
    "a time": {"a": datetime.now(UTC)},
    "an id": {"a": uuid4()},
    "bytes": {"a": b"a"},
    "not a number": {"a": math.nan},
    "infinity": {"a": [-math.inf]},
    "a NUL": {"a": ["b", {"c": "d\0"}]},
    "a NUL in a key": {"a": {"b\0": 1}},
    "half of a surrogate pair": {"a": "\ud83d"},
    "half of one in a key": {"\udc00": 1},
    "a number that jsonb would change": {"a": 1e23},
    "a number that jsonb would write out": {"a": 5e-324},
    "too much": {"x": "y" * 8_185},
    "too deep": deep(33),
    "far too deep": deep(100_000),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_metadata_that_would_change_in_the_table_are_refused(
    hub: Hub, pool: Pool, ada: User, room: Room, name: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.messages.send(room.id, ada.id, "hello", metadata=REFUSED[name])  # type: ignore[arg-type]
    assert refused.value.field == "metadata"
    assert await log_of(pool, room.id) == ["joined"]
