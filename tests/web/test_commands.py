"""Every command on a real connection: its effect and its refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import msgspec
import pytest

from hubbub import Hub, Invalid, NewMessage, RateLimited, Role, Room, User, new_id
from hubbub.web import Call, Gateway, Limits, Refused
from hubbub.web.commands import ANSWER_BYTES, Send
from waiting import until
from web.serving import Client, serving

Connect = Callable[[User], Awaitable[Client]]


@pytest.fixture
def gateway(hub: Hub) -> Gateway:
    return Gateway(hub)


@pytest.fixture
async def connect(hub: Hub, gateway: Gateway) -> AsyncIterator[Connect]:
    """A connection of a user that has sent `hello`."""
    clients: list[Client] = []

    async with serving(gateway) as port:

        async def connected(user: User) -> Client:
            client = await Client(port, await hub.sessions.create_session(user.id)).__aenter__()
            clients.append(client)
            await client.hello()
            return client

        yield connected
        for client in clients:
            await client.socket.close()


async def test_message_is_edited_and_deleted(connect: Connect, ada: User, room: Room) -> None:
    client = await connect(ada)
    sent = await client.command("send", room_id=room.id, content="helo", metadata={"a": [1]}, id=new_id())
    edited = await client.command("edit", message_id=sent["id"], content="hello", room_id=room.id)
    assert (edited["content"], edited["is_edited"], edited["metadata"]) == ("hello", True, {"a": [1]})
    reply = await client.command("send", room_id=room.id, content="a reply", reply_to=sent["id"])
    assert reply["reply_to"] == sent["id"]
    deleted = await client.command("delete", message_id=sent["id"])
    assert deleted["deleted_at"] is not None
    for kind in ("message_sent", "message_edited", "message_sent", "message_deleted"):
        assert (await client.next("message_sent", "message_edited", "message_deleted"))["type"] == kind


async def test_repeated_command_has_the_same_result(connect: Connect, ada: User, room: Room) -> None:
    client = await connect(ada)
    id = new_id()
    first = await client.command("send", room_id=room.id, content="once", id=id)
    assert await client.command("send", room_id=room.id, content="once", id=id) == first
    refused = await client.refused("send", room_id=room.id, content="twice", id=id)
    assert (refused["error"], refused["retry"]) == ("already-in-use", False)
    id = new_id()
    made = await client.command("create", name="launch", id=id)
    assert await client.command("create", name="launch", id=id) == made
    assert (await client.refused("create", name="other", id=id))["error"] == "already-in-use"
    assert (await client.refused("create", name="launch", id=room.id))["error"] == "already-in-use"


async def test_sends_of_one_room_keep_their_order(connect: Connect, ada: User, room: Room) -> None:
    client = await connect(ada)
    for number in range(50):
        frame = {"type": "send", "ref": number, "room_id": str(room.id), "content": str(number)}
        await client.send(frame)
    assert await client.messages(50) == list(map(str, range(50)))


async def test_page_has_the_people_who_are_on_it(
    hub: Hub, connect: Connect, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    seqs = [(await hub.messages.send(room.id, user.id, user.username)).seq for user in (ada, bob, ada)]
    client = await connect(ada)
    page = await client.command("page", room_id=room.id)
    assert [message["content"] for message in page["items"]] == ["ada", "bob", "ada"]
    assert {user["username"] for user in page["users"]} == {"ada", "bob"}
    assert page["cursor"] == client.positions[str(room.id)]
    assert "email" not in json.dumps(page)
    older = await client.command("page", room_id=room.id, before=seqs[1], limit=1)
    assert [message["content"] for message in older["items"]] == ["ada"]
    around = await client.command("page", room_id=room.id, around=page["items"][1]["id"], limit=3)
    assert len(around["items"]) == 3
    assert (await client.refused("page", room_id=room.id, before=1, after=1))["field"] == "before"
    assert (await client.refused("page", room_id=room.id, limit=201))["error"] == "invalid-value"


async def test_pages_of_long_messages_have_fewer(hub: Hub, connect: Connect, ada: User, room: Room) -> None:
    long = "\N{CJK UNIFIED IDEOGRAPH-6587}" * 20_000
    seqs = [one.seq for one in await hub.messages.send_many(room.id, ada.id, [NewMessage(long)] * 12)]
    client = await connect(ada)
    newest = await client.command("page", room_id=room.id, limit=40)
    most = len(newest["items"])
    assert most == ANSWER_BYTES // len(msgspec.json.encode(newest["items"][0])) == 8
    assert len(msgspec.json.encode(newest)) <= ANSWER_BYTES
    assert [message["seq"] for message in newest["items"]] == seqs[-most:]
    assert newest["has_older"]
    older = await client.command("page", room_id=room.id, limit=40, before=seqs[-most])
    assert [message["seq"] for message in older["items"]] == seqs[:-most]
    oldest = await client.command("page", room_id=room.id, limit=40, after=0)
    assert [message["seq"] for message in oldest["items"]] == seqs[:most]
    for number in range(most + 1):
        other = await hub.rooms.create(f"room {number}", created_by=ada.id)
        await hub.messages.send(other.id, ada.id, long)
    listed: list[str] = []
    after = None
    while not listed or after:
        found = await client.command("rooms", limit=1_000, **({"after": after} if after else {}))
        assert len(found["items"]) <= most
        assert len(msgspec.json.encode(found)) <= ANSWER_BYTES
        listed += [one["room"]["id"] for one in found["items"]]
        after = found["next"]
    assert len(set(listed)) == len(listed) == most + 2


async def test_answers_with_much_metadata_have_fewer_items(
    hub: Hub, connect: Connect, ada: User, room: Room
) -> None:
    large = {"note": "x" * 8_000}
    people = [
        await hub.users.upsert(external_id=number, username=f"person{number}", metadata=large)
        for number in range(80)
    ]
    for person in people:
        await hub.room_users.add(room.id, person.id)
    for number in range(80):
        await hub.rooms.create(f"public {number}", created_by=ada.id, metadata=large)
    sent = await hub.messages.send_many(room.id, people[0].id, [NewMessage("hi", metadata=large)] * 80)
    client = await connect(ada)
    lists: dict[str, dict[str, object]] = {
        "page": {"room_id": room.id, "limit": 200},
        "rooms": {"limit": 100},
        "public_rooms": {"limit": 100},
        "members": {"room_id": room.id, "limit": 100},
        "users": {"prefix": "person", "limit": 100},
    }
    for one, fields in lists.items():
        found = await client.command(one, **fields)
        assert 1 < len(found["items"]) < 80
        assert len(msgspec.json.encode(found)) <= ANSWER_BYTES
    ids = {str(person.id) for person in people}
    listed, after = set(), None
    while after != "":
        found = await client.command("members", room_id=room.id, limit=100, after=after)
        listed |= {user["id"] for user in found["users"]}
        after = found["next"] or ""
    assert listed == ids | {str(ada.id)}
    named, rest = set(), sorted(ids)
    while rest:
        found = await client.command("users", user_ids=rest)
        assert len(msgspec.json.encode(found)) <= ANSWER_BYTES
        named |= {user["id"] for user in found["items"]}
        rest = found["rest"]
    assert named == ids
    assert len(sent) == 80


async def test_room_is_made_joined_shown_and_left(hub: Hub, connect: Connect, ada: User, bob: User) -> None:
    client, other = await connect(ada), await connect(bob)
    made = await client.command("create", name="launch", description="all about it")
    assert (await client.next("member_joined"))["user_id"] == str(ada.id)
    public = await other.command("public_rooms")
    assert [room["id"] for room in public["items"]] == [made["id"]]
    assert (await other.command("public_rooms", prefix="LAU"))["items"] == public["items"]
    assert (await other.command("public_rooms", prefix="x"))["items"] == []
    joined = await other.command("join", room_id=made["id"])
    assert joined["role"] == "member"
    assert (await other.next("member_joined"))["room_id"] == made["id"]
    assert (await client.next("member_joined"))["user_id"] == str(bob.id)
    await client.command("send", room_id=made["id"], content="welcome")
    assert await other.messages(1) == ["welcome"]
    shown = await other.command("room", room_id=made["id"])
    assert shown["room"]["name"] == "launch"
    assert shown["unread"] == 1
    assert [user["username"] for user in shown["users"]] == ["ada"]
    listed = await other.command("rooms")
    assert [summary["room"]["id"] for summary in listed["items"]] == [made["id"]]
    assert listed["next"] is None
    members = await other.command("members", room_id=made["id"])
    assert {member["user_id"] for member in members["items"]} == {str(ada.id), str(bob.id)}
    assert {user["id"] for user in members["users"]} == {str(ada.id), str(bob.id)}
    assert await other.command("leave", room_id=made["id"]) is None
    assert (await other.next("member_left"))["user_id"] == str(bob.id)
    assert other.positions == {}
    assert (await other.refused("send", room_id=made["id"], content="x"))["error"] == "not-a-member"


async def test_member_is_invited_to_a_private_room(connect: Connect, ada: User, bob: User) -> None:
    client, other = await connect(ada), await connect(bob)
    made = await client.command("create", name="secret", is_private=True)
    for name in ("join", "room", "page", "members"):
        assert (await other.refused(name, room_id=made["id"]))["error"] == "not-a-member", name
    invited = await client.command("invite", room_id=made["id"], user_id=bob.id, role="moderator")
    assert invited["role"] == Role.MODERATOR
    assert (await other.next("member_joined"))["room_id"] == made["id"]
    assert (await client.refused("invite", room_id=made["id"], user_id=new_id()))["error"] == "not-found"


async def test_direct_room_is_one_for_both(connect: Connect, ada: User, bob: User) -> None:
    client, other = await connect(ada), await connect(bob)
    direct = await client.command("direct", user_id=bob.id)
    assert (await other.command("direct", user_id=ada.id))["id"] == direct["id"]
    listed = await other.command("rooms")
    assert listed["items"][0]["partner_id"] == str(ada.id)
    assert [user["username"] for user in listed["users"]] == ["ada"]
    assert (await client.refused("direct", user_id=ada.id))["error"] == "invalid-value"


async def test_read_mark_reaches_the_other_devices(connect: Connect, ada: User, room: Room) -> None:
    client, phone = await connect(ada), await connect(ada)
    seq = (await client.command("send", room_id=room.id, content="one"))["seq"]
    assert await client.command("read", room_id=room.id, up_to=seq) == {"last_read_seq": seq}
    assert (await phone.next("read_mark_changed"))["last_read_seq"] == seq
    assert (await client.refused("read", room_id=new_id(), up_to=1))["error"] == "not-a-member"


async def test_mark_moves_back_and_readers_are_shown(
    hub: Hub, connect: Connect, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    client, other = await connect(ada), await connect(bob)
    sent = await client.command("send", room_id=room.id, content="one")
    await other.command("read", room_id=room.id, up_to=sent["seq"])
    readers = await client.command("readers", message_id=sent["id"], room_id=room.id)
    assert [user["username"] for user in readers["users"]] == ["bob"]
    assert [receipt["user_id"] for receipt in readers["items"]] == [str(bob.id)]
    back = await other.command("unread", room_id=room.id, from_seq=sent["seq"])
    assert back["last_read_seq"] < sent["seq"]


async def test_admin_changes_the_room_and_its_members(
    hub: Hub, connect: Connect, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    client, other = await connect(ada), await connect(bob)
    assert (await other.refused("update_room", room_id=room.id, name="mine"))["error"] == "forbidden"
    changed = await client.command("update_room", room_id=room.id, name="ours", metadata={"colour": "red"})
    assert (changed["name"], changed["metadata"]) == ("ours", {"colour": "red"})
    assert (await other.next("room_changed"))["name"] == "ours"
    raised = await client.command("set_role", room_id=room.id, user_id=bob.id, role="moderator")
    assert raised["role"] == "moderator"
    assert (await other.next("role_changed"))["role"] == "moderator"
    assert (await other.refused("delete_room", room_id=room.id))["error"] == "forbidden"
    assert await client.command("remove", room_id=room.id, user_id=bob.id) is None
    assert (await other.next("member_left"))["user_id"] == str(bob.id)
    assert await client.command("delete_room", room_id=room.id) is None
    assert (await client.next("room_gone"))["room_id"] == str(room.id)
    assert client.positions == {}


async def test_profile_reaches_users_who_share_a_room(
    hub: Hub, connect: Connect, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    client, other = await connect(ada), await connect(bob)
    changed = await client.command("update_profile", display_name="Ada L.", avatar_url="https://example.org/a.png")
    assert (changed["display_name"], changed["username"]) == ("Ada L.", "ada")
    assert (await other.next("profile_changed"))["display_name"] == "Ada L."
    cleared = await client.command("update_profile", avatar_url=None)
    assert (cleared["display_name"], cleared["avatar_url"]) == ("Ada L.", None)
    assert (await client.refused("update_profile", username="bob"))["error"] == "already-in-use"


async def test_typing_reaches_the_others(hub: Hub, connect: Connect, ada: User, bob: User, room: Room) -> None:
    await hub.room_users.add(room.id, bob.id)
    client, other = await connect(ada), await connect(bob)
    await other.command("watch", room_ids=[])
    for is_typing in (True, False):
        await client.command("typing", room_id=room.id, is_typing=is_typing)
        changed = await other.next("typing_changed")
        assert (changed["user_id"], changed["is_typing"]) == (str(ada.id), is_typing)
    assert (await client.refused("typing", room_id=new_id(), is_typing=True))["error"] == "not-a-member"


async def test_presence_comes_of_watched_rooms_alone(
    hub: Hub, connect: Connect, ada: User, bob: User, room: Room
) -> None:
    eve = await hub.users.create("eve@example.org", "eve", "hash")
    other = await hub.rooms.create("other", created_by=ada.id)
    await hub.room_users.add(room.id, bob.id)
    await hub.room_users.add(other.id, eve.id)
    client = await connect(ada)
    assert await client.command("watch", room_ids=[str(room.id)]) == {"online": [str(ada.id)]}
    async with hub.presence.online(eve.id), hub.presence.online(bob.id):
        changed = await client.next("presence_changed")
        assert (changed["user_id"], changed["is_online"]) == (str(bob.id), True)
        watched = await client.command("watch", room_ids=[str(other.id)])
        assert set(watched["online"]) == {str(ada.id), str(eve.id)}
    assert not [one for one in client.frames if one["type"] == "presence_changed"]
    stranger = await hub.rooms.create("strangers", created_by=bob.id)
    assert (await client.refused("watch", room_ids=[str(stranger.id)]))["error"] == "not-a-member"
    assert (await client.refused("watch", room_ids=[str(room.id)] * 11))["field"] == "room_ids"


async def test_people_are_found_without_their_email(connect: Connect, ada: User, bob: User) -> None:
    client = await connect(ada)
    found = await client.command("users", prefix="bo")
    assert [user["username"] for user in found["items"]] == ["bob"]
    assert "email" not in found["items"][0]
    by_id = await client.command("users", user_ids=[str(bob.id), str(new_id())])
    assert by_id == found
    assert (await client.command("me"))["username"] == "ada"
    assert (await client.refused("users"))["field"] == "prefix"


async def test_session_of_another_device_is_revoked(hub: Hub, connect: Connect, ada: User, bob: User) -> None:
    client, phone = await connect(ada), await connect(ada)
    listed = await client.command("sessions")
    [other] = [one for one in listed["items"] if one["id"] != listed["current"]]
    assert await client.command("revoke", session_id=other["id"]) == {"revoked": True}
    assert (await phone.next("bye"))["code"] == 4401
    foreign = await hub.sessions.create_session(bob.id)
    found = await hub.sessions.get_session(foreign)
    assert found is not None
    assert await client.command("revoke", session_id=found.id) == {"revoked": False}
    assert await hub.sessions.get_session(foreign)


async def test_bad_fields_are_answered_by_name(connect: Connect, ada: User, room: Room) -> None:
    client = await connect(ada)
    good: dict[str, Any] = {"room_id": str(room.id), "content": "x"}
    for field, value in (
        *(("room_id", 1), ("room_id", "x"), ("content", None), ("content", ["x"]), ("content", " ")),
        *(("content", "x" * 20_001), ("id", "x"), ("metadata", []), ("message_type", "song"), ("reply_to", 7)),
    ):
        refused = await client.refused("send", **{**good, field: value})
        assert (refused["error"], refused["field"]) == ("invalid-value", field), value
    assert (await client.refused("send", room_id=room.id))["field"] == "content"
    assert (await client.refused("read", room_id=room.id, up_to="7"))["field"] == "up_to"
    assert (await client.refused("poll"))["error"] == "unknown-frame"
    await client.send({"type": "me"})
    assert (await client.next("error"))["field"] == "ref"
    for ref in (-1, "a", 1.5, True, 2**53):
        await client.send({"type": "me", "ref": ref})
        assert (await client.next("error"))["ref"] is None
    assert await client.command("me")


async def test_client_over_the_rate_is_refused_and_then_closed(hub: Hub, ada: User, room: Room) -> None:
    limits = Limits(frames_per_second=0.001, burst=5)
    token = await hub.sessions.create_session(ada.id)
    async with serving(Gateway(hub, limits=limits)) as port, Client(port, token) as client:
        assert (await client.hello())["limits"]["burst"] == 5
        for _ in range(5):
            await client.command("me")
        refused = await client.refused("send", room_id=room.id, content="too much")
        assert (refused["error"], refused["retry"]) == ("too-many-attempts", True)
        assert refused["retry_after_seconds"] > 1
        for _ in range(5):
            await client.send({"type": "me", "ref": 1})
        assert (await client.next("bye"))["code"] == 4429
        assert await client.closed() == 4429
    assert (await hub.messages.page(room.id)).items == []


async def test_commands_run_side_by_side_up_to_the_limit(hub: Hub, ada: User) -> None:
    gateway = Gateway(hub, limits=Limits(commands=2))
    running, most = 0, 0
    go_on = asyncio.Event()

    class Wait(msgspec.Struct):
        pass

    async def wait(_: Call, __: Wait) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        await asyncio.sleep(0.02)  # in this time a third one would begin
        running -= 1

    wait.__annotations__ = {"call": Call, "frame": Wait}
    gateway.command("wait")(wait)
    async with serving(gateway) as port, Client(port, await hub.sessions.create_session(ada.id)) as client:
        await client.hello()
        for ref in range(6):
            await client.send({"type": "wait", "ref": ref})
        await until(lambda: running > 1)
        go_on.set()
        assert {(await client.next("ack"))["ref"] for _ in range(6)} == set(range(6))
    assert most == 2


class Vote(msgspec.Struct):
    choice: int


async def test_application_adds_commands_checks_and_hooks(
    hub: Hub, ada: User, bob: User, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    votes: list[tuple[UUID, int]] = []

    def authorize(call: Call, command: str, _: object) -> bool:
        return command != "vote" or call.user_id == ada.id

    async def moderated(_: Call, frame: Send) -> Send:
        if "spam" in frame.content:
            raise Invalid("content", "must not be spam")
        if frame.content == "again":
            raise RateLimited(7)
        return msgspec.structs.replace(frame, content=frame.content.replace("darn", "****"))

    gateway = Gateway(hub, authorize=authorize, before_send=[moderated])

    @gateway.command("vote")
    async def vote(call: Call, frame: Vote) -> dict[str, int]:
        if frame.choice == 0:
            raise ZeroDivisionError
        votes.append((call.user_id, frame.choice))
        return {"votes": len(votes)}

    for name in ("vote", "send", "hello"):
        with pytest.raises(Invalid):
            gateway.command(name)(vote)
    await hub.room_users.add(room.id, bob.id)
    async with serving(gateway) as port:
        async with Client(port, await hub.sessions.create_session(ada.id)) as client:
            await client.hello()
            assert await client.command("vote", choice=3) == {"votes": 1}
            assert (await client.refused("vote", choice="x"))["field"] == "choice"
            assert (await client.command("send", room_id=room.id, content="darn"))["content"] == "****"
            assert (await client.refused("send", room_id=room.id, content="spam"))["field"] == "content"
            assert (await client.refused("send", room_id=room.id, content="again"))["retry_after_seconds"] == 7
            assert (await client.refused("vote", choice=0))["error"] == "server-error"
            assert "ZeroDivisionError" in caplog.text
            caplog.clear()
        async with Client(port, await hub.sessions.create_session(bob.id)) as client:
            await client.hello()
            assert (await client.refused("vote", choice=3))["error"] == "forbidden"
    assert votes == [(ada.id, 3)]


async def test_hook_refuses_with_an_answer_of_its_own(hub: Hub, ada: User, room: Room) -> None:
    def refuse(_: Call, __: Send) -> Send:
        raise Refused(402, "Pay first.")

    gateway = Gateway(hub, before_send=[refuse])
    token = await hub.sessions.create_session(ada.id)
    async with serving(gateway) as port, Client(port, token) as client:
        await client.hello()
        refused = await client.refused("send", room_id=room.id, content="hi")
        assert (refused["error"], refused["detail"], refused["retry"]) == ("refused", "Pay first.", False)


@pytest.mark.parametrize("most", [2, 12])
async def test_application_limits_the_rooms_that_are_watched(hub: Hub, ada: User, most: int) -> None:
    rooms = [await hub.rooms.create(f"room {number}", created_by=ada.id) for number in range(most + 1)]
    gateway = Gateway(hub, limits=Limits(watched_rooms=most))
    token = await hub.sessions.create_session(ada.id)
    async with serving(gateway) as port, Client(port, token) as client:
        await client.hello()
        watched = await client.command("watch", room_ids=[str(room.id) for room in rooms[:most]])
        assert watched["online"] == [str(ada.id)]
        refused = await client.refused("watch", room_ids=[str(room.id) for room in rooms])
        assert refused["field"] == "room_ids"


async def test_presence_that_is_unknown_is_an_error(
    hub: Hub, connect: Connect, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(user_ids: set[UUID]) -> dict[UUID, bool | None]:
        return dict.fromkeys(user_ids)  # as if Redis were unavailable

    client = await connect(ada)
    monkeypatch.setattr(hub.presence, "is_online", unknown)
    refused = await client.refused("watch", room_ids=[str(room.id)])
    assert (refused["error"], refused["retry"]) == ("temporarily-unavailable", True)
