from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from commands import LOCK_IS_AWAITED
from hubbub import Conflict, Hub, Invalid, NotFound, PostgresSettings, Role, Room, Settings, User
from hubbub.postgres import Pool, Statement, connect
from hubbub.repositories import Users
from instrumentation.recording import Recording
from log import log_of
from plans import pages_touched
from waiting import until_it_answers


async def test_new_user_is_found_by_id_email_and_username(hub: Hub) -> None:
    ada = await hub.users.create("ada@example.org", "Ada", "hash", "https://example.org/ada.png")

    assert (ada.email, ada.username, ada.avatar_url) == ("ada@example.org", "Ada", "https://example.org/ada.png")
    assert (ada.is_online, ada.last_seen) == (False, None)
    assert await hub.users.get(ada.id) == ada
    assert await hub.users.find_by_email("ADA@Example.org") == ada
    assert await hub.users.find_by_username("aDA") == ada


async def test_user_has_no_password_hash(ada: User) -> None:
    assert not hasattr(ada, "password_hash")
    assert "not a hash" not in repr(ada)


async def test_credentials_are_found_by_either_login_and_do_not_show_the_hash(hub: Hub, ada: User) -> None:
    by_email = await hub.users.find_credentials("Ada@example.org")
    assert by_email is not None
    assert (by_email.user_id, by_email.password_hash) == (ada.id, "not a hash")
    assert by_email == await hub.users.find_credentials("ADA")
    assert "not a hash" not in repr(by_email)
    assert await hub.users.find_credentials("unknown") is None


@pytest.mark.parametrize("login", [None, 7, b"ada", "", "x" * 256, "ada\0", "\ud800", "ada@"])
async def test_unusable_login_is_refused(hub: Hub, login: str) -> None:
    with pytest.raises(Invalid):
        await hub.users.find_credentials(login)


@pytest.mark.parametrize(
    ("email", "username", "taken"),
    [("ADA@example.org", "other", "email"), ("other@example.org", "ADA", "username")],
)
async def test_email_or_username_is_taken_in_any_case(
    hub: Hub, ada: User, email: str, username: str, taken: str
) -> None:
    with pytest.raises(Conflict) as refused:
        await hub.users.create(email, username, "hash")
    assert refused.value.what == taken
    assert await hub.users.find_by_username("other") is None


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("Νίκος", "ΝΊΚΟΣ"),
        ("ﬁn", "FIN"),
        ("ada  lovelace", "Ada Lovelace"),
        ("ශ්\u200dරී", "ශ්රී"),
        ("❤\ufe0f", "❤"),
        ("weiß", "WEIẞ"),
    ],
)
async def test_username_is_found_and_taken_in_each_of_its_spellings(hub: Hub, name: str, spelling: str) -> None:
    user = await hub.users.create("first@example.org", name, "hash")
    other = await hub.users.create("second@example.org", "other", "hash")
    assert user.username == name
    for one in (name, spelling):
        assert await hub.users.find_by_username(one) == user
        credentials = await hub.users.find_credentials(one)
        assert credentials is not None
        assert credentials.user_id == user.id
        for taken in (
            hub.users.create("third@example.org", one, "hash"),
            hub.users.update_profile(other.id, username=one),
        ):
            with pytest.raises(Conflict, match="username"):
                await taken
    assert (await hub.users.update_profile(user.id, username=spelling)).username == spelling
    assert await hub.users.find_by_username(name) == await hub.users.get(user.id)
    await hub.users.update_profile(user.id, username="plain")
    await hub.users.update_profile(other.id, username=name)


async def test_names_that_differ_in_a_letter_are_two_accounts(hub: Hub) -> None:
    for number, name in enumerate(("Weiß", "Weiss", "Iвan", "İvan", "Ivan")):
        user = await hub.users.create(f"{number}@example.org", name, "hash")
        assert await hub.users.find_by_username(name.lower() if name.isascii() else name) == user


@pytest.mark.parametrize(
    "mark", ["\u3164", "\u115f", "\uffa0", "\u2800", "\u034f", "\u17b4", "\ufe0f", "\u180b", "\U000e0100"]
)
async def test_name_that_differs_only_in_an_invisible_mark_is_refused(hub: Hub, ada: User, mark: str) -> None:
    for twin in (f"ad{mark}a", f"ada{mark}", f"{mark}ada", mark, mark * 3):
        with pytest.raises((Conflict, Invalid)):
            await hub.users.create("twin@example.org", twin, "hash")


async def test_email_is_found_by_an_address_that_differs_only_in_case(hub: Hub) -> None:
    info = await hub.users.create("info@example.org", "info", "hash")
    elodie = await hub.users.create("Élodie@example.org", "Élodie", "hash")
    assert await hub.users.find_by_email("INFO@Example.ORG") == info
    assert await hub.users.find_by_email("éLODIE@example.org") == elodie
    for other in (
        "İnfo@example.org",
        "ınfo@example.org",
        "ﬁnfo@example.org",
        "elodie@example.org",
        "inf\u03bf@example.org",
    ):
        assert await hub.users.find_by_email(other) is None
        assert await hub.users.find_credentials(other) is None
    with pytest.raises(Conflict, match="email"):
        await hub.users.create("élodie@example.org", "other", "hash")


LOOKUPS = [
    (Users._FIND_BY_EMAIL, "user-700@example.org"),
    (Users._FIND_BY_USERNAME, "user-700"),
    (Users._CREDENTIALS_BY_EMAIL, "user-700@example.org"),
    (Users._CREDENTIALS_BY_USERNAME, "user-700"),
]


@pytest.mark.one_server("counts what one server reads")
@pytest.mark.parametrize(("statement", "key"), LOOKUPS, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.counts_pages
async def test_lookup_by_name_touches_the_pages_of_one_row(
    postgres_settings: PostgresSettings, statement: Statement[object], key: str
) -> None:
    connection = await connect(postgres_settings)
    rows = "SELECT 'User-' || n || '@Example.org', 'User-' || n, '!' FROM generate_series(1, 5000) AS n"
    await connection.execute(f"INSERT INTO users (email, username, password_hash) {rows}")
    await connection.execute("ANALYZE users")
    assert await pages_touched(connection, statement, key) <= 4
    await connection.close()


async def test_concurrent_creates_with_one_username_make_one_account(hub: Hub) -> None:
    results = await asyncio.gather(
        *(hub.users.create(f"ada{n}@example.org", "ada", "hash") for n in range(8)), return_exceptions=True
    )
    assert sum(isinstance(result, User) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 7


@pytest.mark.parametrize(
    ("email", "username", "password_hash", "avatar_url", "field"),
    [
        ("no-at-sign", "ada", "hash", None, "email"),
        (f"{'a' * 250}@example.org", "ada", "hash", None, "email"),
        ("a\0da@example.org", "ada", "hash", None, "email"),
        ("ada@example.org", "", "hash", None, "username"),
        ("ada@example.org", "a" * 51, "hash", None, "username"),
        ("ada@example.org", "ada@home", "hash", None, "username"),
        ("ada@example.org", "ada\0", "hash", None, "username"),
        ("ada@example.org", "ada\ud800", "hash", None, "username"),
        ("ada@example.org", "ada", "", None, "password_hash"),
        ("ada@example.org", "ada", "h" * 256, None, "password_hash"),
        ("ada@example.org", "ada", "hash", "x" * 501, "avatar_url"),
        ("ada@example.org", "ada", "hash", "javascript:alert(1)", "avatar_url"),
    ],
)
async def test_malformed_fields_are_refused(
    hub: Hub, email: str, username: str, password_hash: str, avatar_url: str | None, field: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.users.create(email, username, password_hash, avatar_url)
    assert refused.value.field == field


async def test_unknown_user_is_not_found(hub: Hub) -> None:
    unknown = uuid4()
    with pytest.raises(NotFound) as missing:
        await hub.users.get(unknown)
    assert (missing.value.kind, missing.value.key) == ("user", unknown)
    assert await hub.users.find_by_email("unknown@example.org") is None
    for change in (
        hub.users.update_profile(unknown, username="x"),
        hub.users.change_password_hash(unknown, "x"),
        hub.users.update_online_status(unknown, True),
        hub.users.delete(unknown),
    ):
        with pytest.raises(NotFound):
            await change


async def test_get_many_returns_known_users_in_one_query(hub: Hub, ada: User, bob: User) -> None:
    assert await hub.users.get_many([ada.id, bob.id, uuid4(), ada.id]) == {ada.id: ada, bob.id: bob}
    assert await hub.users.get_many([]) == {}


async def test_profile_update_changes_only_given_properties(hub: Hub, ada: User) -> None:
    changed = await hub.users.update_profile(ada.id, username="countess", avatar_url="/ada.png")
    assert (changed.email, changed.username, changed.avatar_url) == (ada.email, "countess", "/ada.png")
    assert changed.updated_at > ada.updated_at

    kept = await hub.users.update_profile(ada.id, email="countess@example.org")
    assert (kept.email, kept.avatar_url) == ("countess@example.org", "/ada.png")

    assert (await hub.users.update_profile(ada.id, avatar_url=None)).avatar_url is None


async def test_profile_update_with_a_taken_name_is_a_conflict(hub: Hub, ada: User, bob: User) -> None:
    with pytest.raises(Conflict):
        await hub.users.update_profile(bob.id, username="ADA")
    assert await hub.users.get(bob.id) == bob


async def test_password_hash_is_replaced(hub: Hub, ada: User) -> None:
    await hub.users.change_password_hash(ada.id, "another hash")
    found = await hub.users.find_credentials("ada")
    assert found is not None
    assert found.password_hash == "another hash"


async def test_hash_is_renewed_unless_the_password_was_changed_meanwhile(hub: Hub, ada: User) -> None:
    await hub.users.renew_password_hash(ada.id, "a dearer hash", instead_of="not a hash")
    await hub.users.renew_password_hash(ada.id, "too late", instead_of="not a hash")
    found = await hub.users.find_credentials("ada")
    assert found is not None
    assert found.password_hash == "a dearer hash"


async def test_online_status_is_stored_with_its_time(hub: Hub, ada: User) -> None:
    await hub.users.update_online_status(ada.id, True)
    online = await hub.users.get(ada.id)
    assert online.is_online
    assert online.last_seen is not None
    await hub.users.update_online_status(ada.id, False)
    offline = await hub.users.get(ada.id)
    assert not offline.is_online
    assert offline.last_seen is not None
    assert offline.last_seen > online.last_seen


async def test_deleted_account_leaves_its_messages_and_a_log_entry(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    message = await hub.messages.send(room.id, bob.id, "bye")
    await hub.receipts.mark_read(room.id, ada.id, up_to=message.seq)

    await hub.users.delete(bob.id)

    left = await hub.messages.get(message.id)
    assert (left.content, left.user_id) == ("bye", None)
    assert [member.user_id for member in (await hub.room_users.members(room.id)).items] == [ada.id]
    assert await log_of(pool, room.id) == ["joined", "joined", "sent", "left"]


async def test_two_accounts_with_rooms_in_common_are_deleted_at_the_same_time(
    hub: Hub, pool: Pool, ada: User
) -> None:
    users = [await hub.users.create(f"p{n}@example.org", f"p{n}", "hash") for n in range(6)]
    rooms = [await hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(6)]
    for room in rooms:
        await hub.room_users.add_many(room.id, [one.id for one in users], Role.MEMBER)

    await asyncio.gather(*(hub.users.delete(one.id) for one in users))

    for room in rooms:
        assert await log_of(pool, room.id) == ["joined"] * 7 + ["left"] * 6


async def test_account_that_joins_a_room_during_its_deletion_leaves_it(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    other = await hub.rooms.create("other", created_by=ada.id)
    async with hub.transaction() as tx:
        await tx.room_users.add(other.id, bob.id)
        deletion = asyncio.create_task(hub.users.delete(bob.id))
        waiting = Statement("test.waits", bool, LOCK_IS_AWAITED)

        async def the_deletion_waits() -> bool:
            return bool(await pool.fetch_one(waiting))

        await until_it_answers(the_deletion_waits)
    await deletion
    for one in (room, other):
        assert await log_of(pool, one.id) == ["joined", "joined", "left"]
    with pytest.raises(NotFound):
        await hub.users.get(bob.id)


@pytest.mark.one_server("an account is deleted in steps there, and not in a transaction")
async def test_account_is_deleted_in_the_transaction_of_its_last_message(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    async with hub.transaction() as tx:
        farewell = await tx.messages.send(room.id, ada.id, "bye")
        await tx.users.delete(ada.id)
    assert (await hub.rooms.get(room.id)).created_by is None
    assert (await hub.messages.get(farewell.id)).user_id is None
    assert await log_of(pool, room.id) == ["joined", "sent", "left"]


@pytest.mark.one_server("an account is deleted in steps there, and not in a transaction")
async def test_account_is_deleted_while_it_sends(hub: Hub, ada: User, bob: User, room: Room) -> None:
    """Both lock the room and then the user. In different orders each would wait a second for the other."""

    async def delete() -> None:
        async with hub.transaction() as tx:  # unlike the pool it does not repeat a deadlocked statement
            await tx.users.delete(bob.id)

    await hub.room_users.add(room.id, bob.id)
    sender = await connect(hub.settings.postgres)
    async with sender.transaction():
        await sender.execute("UPDATE rooms SET last_seq = last_seq + 1 WHERE id = $1", room.id)
        deletion = asyncio.create_task(delete())

        async def the_deletion_waits() -> bool:
            waiting = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND transactionid IS NOT NULL)"
            return bool(await sender.fetchval(waiting))

        await until_it_answers(the_deletion_waits)
        await sender.execute(
            "INSERT INTO messages (room_id, seq, user_id, content) SELECT id, last_seq, $2, 'bye' FROM rooms"
            " WHERE id = $1",
            room.id,
            bob.id,
        )
    await sender.close()
    await deletion
    assert (await hub.messages.page(room.id)).items[-1].user_id is None


async def test_lookup_of_many_users_is_split_into_statements(settings: Settings, ada: User) -> None:
    recording = Recording()
    async with Hub(settings, instrumentation=recording) as hub:
        found = await hub.users.get_many([*(uuid4() for _ in range(2_500)), ada.id])
    assert found == {ada.id: ada}
    assert len(recording.outcomes("users.get_many")) == 3
