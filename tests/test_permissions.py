"""Every cell of the tables in docs/permissions.md, and races between a check and a change."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import pytest

from hubbub import (
    ActingUser,
    Forbidden,
    Hub,
    HubbubError,
    Message,
    NewMessage,
    NotAMember,
    Role,
    Room,
    RoomUser,
    User,
    new_id,
)
from hubbub.postgres import Pool, Statement
from waiting import until_it_answers

PAGE: Final = Path(__file__).parents[1] / "docs" / "permissions.md"

ROLES: Final = {"admin": Role.ADMIN, "moderator": Role.MODERATOR, "member": Role.MEMBER}

HIDE: Final = Statement("tests.hide", int, "INSERT INTO hubbub_deletions (id, is_room) VALUES ($1, false)")
"""The first step of the deletion of a large account."""


class Row(NamedTuple):
    """A row of a table: an operation and its outcome for each kind of user."""

    section: str
    operation: str
    case: str
    expected: dict[str, str]

    def __str__(self) -> str:
        return " ".join(part for part in (self.section, self.operation, self.case) if part)


def rows() -> Iterator[Row]:
    section, columns = "", list[str]()
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("### "):
            section = line.removeprefix("### ")
        elif line.startswith("| operation"):
            columns = cells[2:]
        elif section and line.startswith("| `"):
            yield Row(section, cells[0].strip("`"), cells[1], dict(zip(columns, cells[2:], strict=True)))


ROWS: Final = list(rows())


@dataclass
class Scene:
    """A room with two admins, a moderator and a member, or a direct room, and the acting user."""

    hub: Hub
    actor: User
    room: Room
    people: dict[str, User]
    own: Message | None
    others: Message
    token: str
    token_of_other: str
    before: object = None

    @property
    def me(self) -> ActingUser:
        return self.hub.as_user(self.actor.id)

    @property
    def own_id(self) -> UUID:
        return self.own.id if self.own else self.others.id

    async def state(self) -> object:
        """The room as the application sees it. A refused operation changes nothing of it."""
        members = await self.hub.room_users.members(self.room.id)
        roles = {member.user_id: member.role for member in members.items}
        return await self.hub.rooms.get(self.room.id), roles, await self.hub.messages.page(self.room.id)

    async def session_id(self, token: str) -> str:
        session = await self.hub.sessions.get_session(token)
        return session.id if session else "0" * 64


async def make_scene(hub: Hub, pool: Pool, kind: str, actor_is: str) -> Scene:
    names = ("actor", "admin", "moderator", "member", "stranger")
    people = {
        name: await hub.users.create(f"{new_id()}@example.org", f"{name}-{new_id().hex}", "!") for name in names
    }
    actor = people["actor"]
    if kind == "Direct rooms":
        pair = (people["member"], people["stranger"] if actor_is == "other user" else actor)
        room = await hub.rooms.direct(pair[0].id, pair[1].id)
    else:
        creator = people["admin"]
        room = await hub.rooms.create("room", created_by=creator.id, is_private=kind != "Public rooms")
        await hub.room_users.add(room.id, people["moderator"].id, Role.MODERATOR)
        await hub.room_users.add(room.id, people["member"].id)
        await hub.room_users.add(room.id, actor.id, ROLES.get(actor_is, Role.MEMBER))
    own = None
    if await hub.room_users.is_member(room.id, actor.id):
        own = await hub.messages.send(room.id, actor.id, "of the actor")
    others = await hub.messages.send(room.id, people["member"].id, "of a member")  # unread by the actor
    token = await hub.sessions.create_session(actor.id)
    token_of_other = await hub.sessions.create_session(people["member"].id)
    if actor_is == "other user" and own is not None:
        await hub.room_users.remove(room.id, actor.id)
    elif actor_is == "deleted account":
        await hub.delete_account(actor.id)
    elif actor_is == "account being deleted":
        await hub.sessions.revoke_all(actor.id)
        await pool.execute(HIDE, actor.id)
    return Scene(hub, actor, room, people, own, others, token, token_of_other)


NOTHING: Final = "nothing"
Driver = Callable[[Scene], Awaitable[object]]
DRIVERS: dict[tuple[str, str], Driver] = {}


def drives(operation: str, case: str = "") -> Callable[[Driver], Driver]:
    def register(driver: Driver) -> Driver:
        DRIVERS[operation, case] = driver
        return driver

    return register


def simple(operation: str, case: str, call: Driver) -> None:
    DRIVERS[operation, case] = call


simple("messages.send", "", lambda s: s.me.messages.send(s.room.id, "hello"))
simple("messages.send_many", "", lambda s: s.me.messages.send_many(s.room.id, [NewMessage("hello")]))
simple("messages.get", "", lambda s: s.me.messages.get(s.others.id))
simple("messages.page", "", lambda s: s.me.messages.page(s.room.id))
simple("messages.page", "around the id of a message", lambda s: s.me.messages.page(s.room.id, around=s.others.id))
simple("messages.page_json", "", lambda s: s.me.messages.page_json(s.room.id))
simple("messages.since", "", lambda s: s.me.messages.since(s.room.id, None))
simple("messages.edit", "own message", lambda s: s.me.messages.edit(s.own_id, "changed"))
simple("messages.edit", "message of another member", lambda s: s.me.messages.edit(s.others.id, "changed"))
simple("messages.delete", "own message", lambda s: s.me.messages.delete(s.own_id))
simple("messages.delete", "message of another member", lambda s: s.me.messages.delete(s.others.id))
simple("rooms.get", "", lambda s: s.me.rooms.get(s.room.id))
simple("rooms.update", "", lambda s: s.me.rooms.update(s.room.id, name="changed"))
simple("rooms.delete", "", lambda s: s.me.rooms.delete(s.room.id))
simple("rooms.create", "", lambda s: s.me.rooms.create("new"))
simple("rooms.list", "", lambda s: s.me.rooms.list())
simple("rooms.list_json", "", lambda s: s.me.rooms.list_json())
simple("rooms.list_public", "", lambda s: s.me.rooms.list_public())
simple("rooms.search", "", lambda s: s.me.rooms.search("public"))
simple("rooms.summary", "", lambda s: s.me.rooms.summary(s.room.id))
simple("room_users.member_counts", "", lambda s: s.me.room_users.member_counts([s.room.id]))
simple("rooms.direct", "with a new partner", lambda s: s.me.rooms.direct(s.people["stranger"].id))
simple("room_users.join", "", lambda s: s.me.room_users.join(s.room.id))
simple("room_users.leave", "", lambda s: s.me.room_users.leave(s.room.id))
simple("room_users.get", "", lambda s: s.me.room_users.get(s.room.id))
simple("room_users.update", "", lambda s: s.me.room_users.update(s.room.id, metadata={"nickname": "ace"}))
simple("room_users.members", "", lambda s: s.me.room_users.members(s.room.id))
simple("receipts.mark_read", "", lambda s: s.me.receipts.mark_read(s.room.id, up_to=s.others.seq))
simple("receipts.mark_unread", "", lambda s: s.me.receipts.mark_unread(s.room.id, from_seq=2))
simple("receipts.unread_count", "", lambda s: s.me.receipts.unread_count(s.room.id))
simple("receipts.unread_counts", "", lambda s: s.me.receipts.unread_counts())
simple("receipts.readers", "", lambda s: s.me.receipts.readers(s.others.id))
simple("users.me", "", lambda s: s.me.users.me())
simple("users.update", "", lambda s: s.me.users.update(avatar_url="/new.png"))
simple("users.get", "another user", lambda s: s.me.users.get(s.people["member"].id))
simple("users.get_many", "other users", lambda s: s.me.users.get_many([s.people["member"].id]))
simple("users.search", "", lambda s: s.me.users.search("member"))
simple("typing.start", "", lambda s: s.me.typing.start(s.room.id))
simple("typing.stop", "", lambda s: s.me.typing.stop(s.room.id))
simple("typing.typing_users", "", lambda s: s.me.typing.typing_users(s.room.id))
simple("sessions.revoke_all", "", lambda s: s.me.sessions.revoke_all())
simple("presence.devices", "", lambda s: s.me.presence.devices())
simple("presence.is_online", "another user", lambda s: s.me.presence.is_online([s.people["member"].id]))


def drive_each_role() -> None:
    def add(role: Role) -> Driver:
        return lambda s: s.me.room_users.add(s.room.id, s.people["stranger"].id, role)

    def remove(name: str) -> Driver:
        return lambda s: s.me.room_users.remove(s.room.id, s.people[name].id)

    def set_role(name: str) -> Driver:
        return lambda s: s.me.room_users.set_role(s.room.id, s.people[name].id, Role.MODERATOR)

    for role, of_role in (
        (Role.MEMBER, "a member"),
        (Role.MODERATOR, "a moderator"),
        (Role.ADMIN, "another admin"),
    ):
        simple("room_users.add", f"with the role {role}", add(role))
        simple("room_users.remove", of_role, remove(role))
        if role is not Role.MODERATOR:
            simple("room_users.set_role", f"of {of_role}", set_role(role))


drive_each_role()


@drives("messages.page", "of an empty room")
async def page_of_empty_room(scene: Scene) -> object:
    room = await scene.hub.rooms.create("empty", created_by=scene.people["admin"].id, is_private=True)
    if await scene.hub.room_users.is_member(scene.room.id, scene.actor.id):
        await scene.hub.room_users.add(room.id, scene.actor.id)
    return await scene.me.messages.page(room.id)


@drives("messages.since", "the end of the log")
async def since_the_end(scene: Scene) -> object:
    page = await scene.hub.messages.since(scene.room.id, None)
    return await scene.me.messages.since(scene.room.id, page.cursor)


@drives("room_users.add", "a user who is a member already")
async def add_member_again(scene: Scene) -> object:
    return await scene.me.room_users.add(scene.room.id, scene.people["member"].id)


@drives("room_users.add", "the user, as admin")
async def add_oneself_as_admin(scene: Scene) -> object:
    return await scene.me.room_users.add(scene.room.id, scene.actor.id, Role.ADMIN)


@drives("room_users.remove", "a user who is not a member")
async def remove_stranger(scene: Scene) -> object:
    return await scene.me.room_users.remove(scene.room.id, scene.people["stranger"].id)


@drives("room_users.leave", "the last admin")
async def leave_as_last_admin(scene: Scene) -> object:
    await scene.hub.room_users.remove(scene.room.id, scene.people["admin"].id)
    scene.before = await scene.state()
    return await scene.me.room_users.leave(scene.room.id)


@drives("room_users.set_role", "own role, to member")
async def step_down(scene: Scene) -> object:
    return await scene.me.room_users.set_role(scene.room.id, scene.actor.id, Role.MEMBER)


@drives("room_users.set_role", "own role, to admin")
async def promote_oneself(scene: Scene) -> object:
    return await scene.me.room_users.set_role(scene.room.id, scene.actor.id, Role.ADMIN)


@drives("room_users.set_role", "own role, of the last admin")
async def step_down_as_last_admin(scene: Scene) -> object:
    await scene.hub.room_users.remove(scene.room.id, scene.people["admin"].id)
    scene.before = await scene.state()
    return await step_down(scene)


@drives("room_users.set_role", "of a user who is not a member")
async def set_role_of_stranger(scene: Scene) -> object:
    return await scene.me.room_users.set_role(scene.room.id, scene.people["stranger"].id, Role.MODERATOR)


@drives("rooms.direct", "that exists")
async def direct_room_again(scene: Scene) -> object:
    partner = scene.people["stranger"].id
    if await scene.hub.users.get_many([scene.actor.id]):
        await scene.hub.rooms.direct(scene.actor.id, partner)
    return await scene.me.rooms.direct(partner)


@drives("sessions.list")
async def list_sessions(scene: Scene) -> object:
    sessions = await scene.me.sessions.list()
    assert {session.user_id for session in sessions} <= {scene.actor.id}
    return bool(sessions)


@drives("sessions.revoke", "own session")
async def revoke_own_session(scene: Scene) -> object:
    return await scene.me.sessions.revoke(await scene.session_id(scene.token))


@drives("sessions.revoke", "session of another user")
async def revoke_session_of_other(scene: Scene) -> object:
    revoked = await scene.me.sessions.revoke(await scene.session_id(scene.token_of_other))
    assert await scene.hub.sessions.get_session(scene.token_of_other)
    return revoked


@drives("presence.online")
async def be_online(scene: Scene) -> object:
    async with scene.me.presence.online("phone"):
        return (await scene.hub.presence.is_online([scene.actor.id]))[scene.actor.id]


@drives("follow", "the room")
async def follow_room(scene: Scene) -> object:
    async with scene.me.follow(rooms=[scene.room.id]) as feed:
        return feed.cursors


@drives("follow", "all rooms")
async def follow_all_rooms(scene: Scene) -> object:
    if await scene.hub.users.get_many([scene.actor.id]):
        await scene.hub.rooms.create("followed", created_by=scene.actor.id)
    async with scene.me.follow() as feed:
        return bool(feed.cursors)


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_each_kind_of_user_may_do_what_the_page_says(hub: Hub, pool: Pool, row: Row) -> None:
    kinds = dict(row.expected)
    if "deleted account" in kinds:
        kinds["account being deleted"] = kinds["deleted account"]
    found = {
        actor_is: await _outcome(DRIVERS[row.operation, row.case], hub, pool, row.section, actor_is)
        for actor_is, expected in kinds.items()
        if expected != "-"
    }
    assert found == {actor_is: expected for actor_is, expected in kinds.items() if expected != "-"}


async def _outcome(driver: Driver, hub: Hub, pool: Pool, section: str, actor_is: str) -> str:
    scene = await make_scene(hub, pool, section, actor_is)
    scene.before = await scene.state()
    try:
        result = await driver(scene)
    except HubbubError as error:
        assert await scene.state() == scene.before
        return type(error).__name__
    return NOTHING if result is False or result in (0, {}) else "yes"


def test_page_has_a_row_for_every_operation_of_an_acting_user() -> None:
    public = set()
    for name, part in inspect.getmembers(ActingUser, lambda member: isinstance(member, property)):
        returns = inspect.get_annotations(part.fget, eval_str=True)["return"]
        if returns is not UUID:
            public |= {f"{name}.{one}" for one in vars(returns) if not one.startswith("_")}
    public |= {name for name, _ in inspect.getmembers(ActingUser, callable) if not name.startswith("_")}
    assert {row.operation for row in ROWS} == public
    assert {(row.operation, row.case) for row in ROWS} == DRIVERS.keys()


OF_THE_HUB: Final = {
    "rooms.list": "rooms.list_for",
    "rooms.list_public": "rooms.public",
    "users.update": "users.update_profile",
    "room_users.join": "room_users.add",
    "room_users.leave": "room_users.remove",
}
"""Operations with a different name."""

LEFT_OUT: Final = {"user_id", "created_by", "by", "as_user"}
"""The arguments for the acting user."""

NEVER: Final = {
    ("users.update", "email"),  # the application verifies it
    ("users.update", "external_id"),
    ("room_users.join", "role"),
    ("room_users.leave", "force"),
    ("room_users.remove", "force"),
    ("rooms.direct", "partner_id"),  # other_user_id
}


@pytest.mark.parametrize("operation", sorted({row.operation for row in ROWS}))
def test_operation_takes_the_arguments_that_it_has_in_the_hub(hub: Hub, operation: str) -> None:
    me: Any = hub.as_user(new_id())
    original: Any = hub
    for name in operation.split("."):
        me = getattr(me, name)
    for name in OF_THE_HUB.get(operation, operation).split("."):
        original = getattr(original, name, None)
    if original is None:
        assert operation in {"users.me", "rooms.list_json"}
        return
    own, of_hub = inspect.signature(me), inspect.signature(original)
    missing = of_hub.parameters.keys() - own.parameters.keys() - LEFT_OUT
    assert {(operation, name) for name in missing} <= NEVER
    for name in own.parameters.keys() & of_hub.parameters.keys():
        assert own.parameters[name].replace(annotation=None) == of_hub.parameters[name].replace(annotation=None)


async def test_email_of_another_user_is_nowhere_in_what_a_user_gets(
    hub: Hub, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    sent = await hub.messages.send(room.id, ada.id, "hello")
    me = hub.as_user(bob.id)
    await me.receipts.mark_read(room.id, up_to=sent.seq)
    got = [
        await me.users.get(ada.id),
        await me.users.get_many([ada.id]),
        await me.users.search("a"),
        await me.rooms.list(),
        await me.rooms.list_public(),
        await me.room_users.members(room.id),
        await me.messages.page(room.id),
        await me.messages.since(room.id, None),
        await hub.as_user(ada.id).receipts.readers(sent.id),
    ]
    shown = msgspec.json.encode(got) + await me.messages.page_json(room.id) + await me.rooms.list_json()
    assert b"ada" in shown
    assert b"@example.org" not in shown


def test_page_names_only_outcomes_that_it_explains() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)) | {"yes", NOTHING, "-"}
    assert {outcome for row in ROWS for outcome in row.expected.values()} <= explained


@pytest.mark.parametrize("end", ["removed", "demoted"])
@pytest.mark.parametrize(
    "operation",
    [
        lambda me, room, other: me.rooms.update(room.id, name="changed"),
        lambda me, room, other: me.rooms.delete(room.id),
        lambda me, room, other: me.room_users.add(room.id, other.id, Role.ADMIN),
        lambda me, room, other: me.room_users.remove(room.id, other.id),
        lambda me, room, other: me.room_users.set_role(room.id, other.id, Role.ADMIN),
        lambda me, room, other: me.room_users.set_role(room.id, me.user_id, Role.MEMBER),
    ],
    ids=["update", "delete", "add", "remove", "set_role", "step_down"],
)
async def test_admin_whose_rights_end_while_the_operation_runs_is_refused(
    hub: Hub,
    pool: Pool,
    ada: User,
    bob: User,
    room: Room,
    operation: Callable[[ActingUser, Room, User], Coroutine[object, object, object]],
    end: str,
) -> None:
    other = await hub.users.create("carol@example.org", "carol", "!")
    await hub.room_users.add(room.id, bob.id, Role.ADMIN)
    await hub.room_users.add(room.id, other.id)
    async with hub.transaction() as tx:
        if end == "removed":
            await tx.room_users.remove(room.id, bob.id)
        else:
            await tx.room_users.set_role(room.id, bob.id, Role.MEMBER)
        acting = asyncio.create_task(operation(hub.as_user(bob.id), room, other))
        await until_it_answers(lambda: _waits_for_a_lock(pool))
        assert not acting.done()
    with pytest.raises(NotAMember if end == "removed" else Forbidden):
        await acting
    assert (await hub.rooms.get(room.id)).name == room.name
    assert (await hub.room_users.get(room.id, other.id)).role is Role.MEMBER


WAITING: Final = Statement(
    "tests.waiting",
    int,
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
)


async def _waits_for_a_lock(pool: Pool) -> bool:
    return bool(await pool.fetch_one(WAITING))


async def test_members_and_strangers_who_open_a_room_at_once_get_what_each_may_see(
    hub: Hub, ada: User, room: Room
) -> None:
    sent = await hub.messages.send(room.id, ada.id, "hello")
    empty = await hub.rooms.create("empty", created_by=ada.id)
    users = [await hub.users.create(f"u{n}@example.org", f"u{n}", "!") for n in range(30)]
    for user in users[::2]:
        await hub.room_users.add(room.id, user.id)
        await hub.room_users.add(empty.id, user.id)
    for _ in range(3):
        pages = [hub.as_user(user.id).messages.page(one.id) for one in (room, empty) for user in users]
        as_json = [hub.as_user(user.id).messages.page_json(one.id) for one in (room, empty) for user in users]
        outcomes: list[Any] = [*await asyncio.gather(*pages, *as_json, return_exceptions=True)]
        assert all(isinstance(outcome, NotAMember) for outcome in outcomes[1::2])
        assert [outcome.items for outcome in outcomes[:60:2]] == [[sent]] * 15 + [[]] * 15
        assert [len(msgspec.json.decode(outcome)["items"]) for outcome in outcomes[60::2]] == [1] * 15 + [0] * 15
        assert [refused.user_id for refused in outcomes[1:60:2]] == [user.id for user in users[1::2]] * 2


async def test_page_of_a_viewer_is_that_of_the_application(hub: Hub, ada: User, room: Room) -> None:
    sent = [await hub.messages.send(room.id, ada.id, f"message {number}") for number in range(7)]
    me = hub.as_user(ada.id).messages
    for anchor in ({}, {"before": sent[4]}, {"after": sent[4]}, {"around": sent[4]}, {"before": 1}, {"after": 99}):
        assert await me.page(room.id, limit=3, **anchor) == await hub.messages.page(room.id, limit=3, **anchor)
        of_all = await hub.messages.page_json(room.id, limit=3, **anchor)
        assert await me.page_json(room.id, limit=3, **anchor) == of_all
    assert await me.since(room.id, sent[2].cursor) == await hub.messages.since(room.id, sent[2].cursor)


async def test_message_of_a_room_without_the_viewer_is_no_anchor(
    hub: Hub, ada: User, bob: User, room: Room
) -> None:
    secret = await hub.messages.send(room.id, ada.id, "secret")
    own = await hub.rooms.create("of bob", created_by=bob.id)
    with pytest.raises(NotAMember):
        await hub.as_user(bob.id).messages.page(own.id, around=secret.id)


async def test_change_of_a_room_is_logged_as_that_of_the_acting_user(hub: Hub, ada: User, room: Room) -> None:
    await hub.as_user(ada.id).rooms.update(room.id, name="changed")
    [*_, changed] = (await hub.messages.since(room.id, None)).items
    assert getattr(changed, "by", None) == ada.id


async def test_repositories_take_the_acting_user_in_a_transaction(hub: Hub, bob: User, room: Room) -> None:
    async with hub.transaction() as tx:
        async with tx.savepoint() as savepoint:
            with pytest.raises(NotAMember):
                await savepoint.rooms.update(room.id, name="changed", as_user=bob.id)
        await tx.room_users.add(room.id, bob.id, as_user=bob.id)
    assert await hub.room_users.is_member(room.id, bob.id)


async def test_users_who_join_at_once_as_admins_are_refused(hub: Hub, ada: User, bob: User, room: Room) -> None:
    users = [await hub.users.create(f"u{n}@example.org", f"u{n}", "!") for n in range(20)]
    joins = [hub.as_user(user.id).room_users.add(room.id, user.id, Role.ADMIN) for user in users]
    plain = [hub.as_user(user.id).room_users.join(room.id) for user in users]
    outcomes = await asyncio.gather(*joins, *plain, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes[:20]} <= {NotAMember, Forbidden}
    members = {member.user_id: member.role for member in (await hub.room_users.members(room.id)).items}
    assert members == {ada.id: Role.ADMIN} | {user.id: Role.MEMBER for user in users}


async def test_users_who_join_private_and_public_rooms_at_once_get_into_the_public_ones(
    hub: Hub, ada: User
) -> None:
    rooms = [await hub.rooms.create(f"room {n}", created_by=ada.id, is_private=n % 2 == 0) for n in range(10)]
    users = [await hub.users.create(f"u{n}@example.org", f"u{n}", "!") for n in range(5)]
    joins = [hub.as_user(user.id).room_users.join(room.id) for room in rooms for user in users]
    outcomes = await asyncio.gather(*joins, return_exceptions=True)
    for room, found in zip(rooms, (outcomes[start : start + 5] for start in range(0, 50, 5)), strict=True):
        assert all(isinstance(outcome, NotAMember if room.is_private else RoomUser) for outcome in found)
