"""Uses only the public names of hubbub. It is type-checked and never run. An error here is an error for users."""

from __future__ import annotations

from datetime import datetime
from typing import assert_type
from uuid import UUID

from asyncpg import Connection, Record, create_pool
from sqlalchemy.ext.asyncio import AsyncSession

import hubbub
from hubbub import (
    Hub,
    Message,
    MessagePage,
    MessageType,
    Page,
    PublicUser,
    Role,
    Room,
    RoomSummary,
    RoomUser,
    User,
    UserKind,
)


async def accounts(hub: Hub) -> None:
    ada = await hub.users.create("ada@example.org", "ada", "hash", avatar_url=None)
    assert_type(ada, User)
    assert_type(ada.id, UUID)
    assert_type(ada.last_seen, datetime | None)
    assert_type(await hub.users.get(ada.id), User)
    assert_type(await hub.users.get_many([ada.id]), dict[UUID, User])
    assert_type(await hub.users.find_by_email("ada@example.org"), User | None)
    assert_type(await hub.users.find_by_username("ada"), User | None)
    assert_type(await hub.users.find_credentials("ada"), hubbub.Credentials | None)
    assert_type(await hub.users.update_profile(ada.id, username="countess", avatar_url=None), User)
    assert_type(await hub.users.update_profile(ada.id, display_name="Ada", metadata={"team": "a"}), User)
    assert_type(await hub.users.upsert(external_id=42, username="ada", display_name="Ada"), User)
    assert_type(await hub.users.find_by_external_id("42"), User | None)
    assert_type(await hub.users.create_anonymous(display_name="Visitor"), User)
    assert_type(await hub.users.search("ad", limit=5), Page[PublicUser])
    assert_type(ada.public, PublicUser)
    assert_type(ada.kind, UserKind)
    await hub.users.change_password_hash(ada.id, "hash")
    await hub.users.update_online_status(ada.id, True)
    await hub.users.delete(ada.id)


async def rooms(hub: Hub, ada: User, bob: User) -> None:
    room = await hub.rooms.create("engine-room", created_by=ada.id, is_private=True)
    assert_type(room, Room)
    assert_type(room.keeps_receipts, bool | None)
    assert_type(await hub.rooms.update(room.id, name="boiler room", by=ada.id), Room)
    assert_type(await hub.rooms.update(room.id, keeps_receipts=True), Room)
    assert_type(await hub.rooms.update(room.id, keeps_receipts=None), Room)
    await hub.rooms.create("quiet", created_by=ada.id, keeps_receipts=False)
    assert_type(await hub.rooms.direct(ada.id, bob.id), Room)
    assert_type(await hub.rooms.public(limit=10), Page[Room])
    assert_type(await hub.rooms.search("engine"), Page[Room])
    assert_type(await hub.rooms.summary(room.id, ada.id), RoomSummary)
    assert_type(await hub.room_users.member_counts([room.id]), dict[UUID, int])
    listed = await hub.rooms.list_for(ada.id)
    assert_type(listed, Page[RoomSummary])
    assert_type(listed.items[0].last_message, Message | None)
    assert_type(listed.next, str | None)
    assert_type(await hub.room_users.add(room.id, bob.id, Role.MODERATOR), RoomUser)
    assert_type(await hub.room_users.add_many(room.id, [bob.id]), list[RoomUser])
    assert_type(await hub.room_users.set_role(room.id, bob.id, "admin"), RoomUser)
    assert_type(await hub.room_users.members(room.id), Page[RoomUser])
    assert_type(await hub.room_users.rooms_of(bob.id), Page[RoomUser])
    assert_type(await hub.room_users.is_member(room.id, bob.id), bool)
    assert_type(await hub.room_users.remove(room.id, bob.id), bool)
    await hub.rooms.delete(room.id)


async def messages(hub: Hub, room: Room, ada: User) -> None:
    message = await hub.messages.send(room.id, ada.id, "hello", message_type="image", id=UUID(int=1))
    assert_type(message, Message)
    assert_type(message.seq, int)
    assert_type(message.user_id, UUID | None)
    assert_type(message.message_type, MessageType)
    assert_type(await hub.messages.edit(message.id, "hello!", by=ada.id), Message)
    assert_type(await hub.messages.delete(message.id, by=ada.id), Message)
    assert_type(await hub.messages.page(room.id, before=message, limit=10), MessagePage)
    assert_type(await hub.messages.page(room.id, after=message.seq), MessagePage)
    assert_type(await hub.messages.page(room.id, around=message.id), MessagePage)
    assert_type(await hub.messages.by_author(ada.id), Page[Message])
    assert_type(await hub.receipts.mark_read(room.id, ada.id, up_to=message.seq), int)
    assert_type(await hub.receipts.mark_unread(room.id, ada.id, from_seq=message.seq), int)
    assert_type(await hub.receipts.unread_counts(ada.id), dict[UUID, int])
    assert_type(await hub.receipts.unread_count(room.id, ada.id), int)
    assert_type(await hub.receipts.readers(message.id), Page[hubbub.ReadReceipt])


async def logins(hub: Hub) -> None:
    ada = await hub.register("ada@example.org", "ada", "correct horse")
    assert_type(ada, User)
    assert_type(await hub.authenticate("ada", "correct horse", address="127.0.0.1"), User | None)
    token = await hub.sessions.create_session(ada.id, {"device": "phone"})
    assert_type(token, str)
    assert_type(await hub.sessions.get_session(token), hubbub.Session | None)
    assert_type(await hub.sessions.list(ada.id), list[hubbub.Session])
    assert_type(await hub.sessions.rotate(token), str | None)
    assert_type(await hub.sessions.update_data(token, {"device": "tablet"}), bool)
    assert_type(await hub.sessions.revoke(ada.id, "id"), bool)
    assert_type(await hub.sessions.revoke_all(ada.id, except_token=token), int)
    await hub.sessions.delete_session(token)
    await hub.change_password(ada.id, "battery staple", keep_token=token)
    await hub.delete_account(ada.id)
    verdict = await hub.limits.take("invite", str(ada.id), capacity=5, refill_per_second=0.1)
    assert_type(verdict, hubbub.RateLimitResult)
    assert_type(verdict.retry_after_seconds, float)


async def presence_and_typing(hub: Hub, room: Room, ada: User) -> None:
    async with hub.presence.online(ada.id, device="phone"):
        assert_type(await hub.presence.is_online([ada.id]), dict[UUID, bool | None])
        assert_type(await hub.presence.devices(ada.id), list[hubbub.Device])
    async for change in hub.presence.watch():
        assert_type(change, hubbub.PresenceChanged | hubbub.Gap)
    assert_type(await hub.typing.start(room.id, ada.id), bool)
    assert_type(await hub.typing.typing_users(room.id), list[UUID])
    assert_type(await hub.typing.stop(room.id, ada.id), bool)
    async for typing in hub.typing.watch(room.id):
        assert_type(typing, hubbub.TypingChanged | hubbub.Gap)
    await hub.realtime.publish_typing_indicator(room.id, ada.id, True)
    await hub.realtime.publish_user_presence(ada.id, True)
    handle = await hub.realtime.subscribe_to_channel("news", print)
    handle.unsubscribe()
    async for said in await hub.realtime.listen("news"):
        assert_type(said, str | hubbub.Gap)
    assert_type(await hub.cache.user(ada.id), User)
    assert_type(await hub.cache.room(room.id), Room)
    assert_type(await hub.cache.is_member(room.id, ada.id), bool)
    assert_type(await hub.cache.newest_page(room.id), bytes)


async def transactions(hub: Hub, ada: User) -> None:
    async with hub.transaction() as tx:
        assert_type(tx, hubbub.Transaction)
        room = await tx.rooms.create("launch", created_by=ada.id)
        async with tx.savepoint() as part:
            await part.messages.send(room.id, ada.id, "first")
        assert_type(await tx.execute("UPDATE orders SET paid = $1", True), int)
        for row in await tx.fetch("SELECT number FROM orders"):
            assert_type(row, Record)
        if (first := await tx.fetch_one("SELECT number FROM orders")) is not None:
            assert_type(first, Record)
        tx.after_commit(lambda: None)


async def connections(hub: Hub, ada: User, connection: Connection[Record], session: AsyncSession) -> None:
    async with hub.on(connection) as chat, connection.transaction():
        assert_type(chat, hubbub.ConnectionRepositories)
        assert_type(await chat.users.get(ada.id), User)
    await chat.announce()
    hub.on(session).after_commit(lambda: None)
    async with create_pool() as pool, pool.acquire() as lent:
        hub.on(lent)


async def changes(hub: Hub) -> None:
    async with hub.changes.follow(consumer="push", after=await hub.changes.end()) as feed:
        assert_type(feed, hubbub.ChangeFeed)
        async for event in feed:
            assert_type(event, hubbub.LogEvent)
    assert_type(feed.position, str)


async def opening() -> None:
    settings = hubbub.Settings.from_urls("postgresql://ada@localhost/chat", "redis://localhost")
    async with hubbub.open(settings) as hub:
        assert_type(hub, Hub)
    try:
        async with hubbub.open():
            pass
    except hubbub.Unavailable as error:
        assert_type(error.outcome_unknown, bool)
    except (hubbub.NotFound, hubbub.Conflict, hubbub.Invalid, hubbub.NotAMember, hubbub.SchemaMismatch) as error:
        root: hubbub.HubbubError = error
        raise SystemExit(str(root)) from error


async def operations(hub: Hub, settings: hubbub.Settings) -> None:
    health = await hub.health(deadline_seconds=0.5)
    assert_type(health.ready, bool)
    assert_type(health.redis, hubbub.ServerHealth)
    assert_type(health.redis.reason, str | None)
    assert_type(health.pool, hubbub.PoolUse)

    class Counting(hubbub.Instrumentation):
        def delivered(self) -> None: ...

    assert_type(Hub(settings, instrumentation=Counting()), Hub)
