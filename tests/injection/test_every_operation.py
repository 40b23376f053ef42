"""Hostile text in every argument of every public operation: it succeeds or raises an error of hubbub."""

from __future__ import annotations

import inspect
from functools import cached_property

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from hubbub import Hub, HubbubError, Invalid, Settings, Unavailable
from injection.hostile import texts
from injection.operations import (
    NOT_DRIVEN,
    NOT_PARTS,
    NOT_TEXT,
    PARTS,
    Operation,
    World,
    acting_operations,
    operations,
    use,
)

OUT_OF_REACH = Hub(Settings.from_urls("postgresql://nobody@192.0.2.1/none", "redis://192.0.2.1"))
OPERATIONS = [*operations(OUT_OF_REACH), *acting_operations(OUT_OF_REACH)]

IDS = {"user_id", "partner_id", "other_user_id", "created_by", "by", "room_id", "message_id"}

driven = settings(
    max_examples=20,
    deadline=None,
    # All examples of a test share one chat, which has to survive each of them.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@driven
@given(data=strategies.data())
async def test_hostile_text_is_refused_or_stored_as_plain_text(
    world: World, operation: Operation, data: strategies.DataObject
) -> None:
    hostile = data.draw(strategies.sampled_from([one for one in operation.parameters if one not in NOT_TEXT]))
    text = data.draw(texts)
    arguments = {name: world.good[name] for name in operation.parameters} | {hostile: text}
    refusal = await _refusal(operation, world.hub, arguments)
    assert refusal is not None or hostile not in IDS
    assert len(text) < 20 or text not in str(refusal)


async def _refusal(operation: Operation, hub: Hub, arguments: dict[str, object]) -> HubbubError | None:
    """The error of hubbub, if any. `Unavailable` would mean that a server has misunderstood the text."""
    try:
        await use(operation.of(hub)(**arguments))
    except Unavailable:
        raise
    except HubbubError as error:
        return error
    return None


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_text_is_refused_as_an_id(world: World, operation: Operation) -> None:
    for name in IDS.intersection(operation.parameters):
        arguments = {one: world.good[one] for one in operation.parameters} | {name: "' OR 1=1 --"}
        with pytest.raises(Invalid):
            await use(operation.of(world.hub)(**arguments))


def test_table_of_operations_is_complete() -> None:
    hub = OUT_OF_REACH
    cached = {name for name, value in vars(type(hub)).items() if isinstance(value, cached_property)}
    public = {name for name, _ in inspect.getmembers(Hub, lambda part: isinstance(part, property))} | cached
    assert public == {*PARTS, *NOT_PARTS}
    names = {operation.name for operation in operations(hub)}
    assert not names & NOT_DRIVEN.keys()
    for name in NOT_DRIVEN:
        owner, _, method = name.rpartition(".")
        assert inspect.ismethod(getattr(getattr(hub, owner) if owner else hub, method)), f"there is no {name}"


async def test_every_parameter_has_a_valid_argument(world: World) -> None:
    parameters = {name for operation in OPERATIONS for name in operation.parameters}
    assert parameters <= world.good.keys()
