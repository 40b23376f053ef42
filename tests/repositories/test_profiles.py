"""Accounts of other systems, bots and visitors; display names and metadata; the search by the start of a name."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, get_type_hints
from uuid import UUID, uuid4

import msgspec
import pytest

from commands import LOCK_IS_AWAITED
from hubbub import Conflict, Hub, Invalid, NotFound, PostgresSettings, PublicUser, Settings, User, UserKind
from hubbub.deletions import HIDE_ACCOUNT
from hubbub.postgres import Pool, Statement, connect
from hubbub.repositories import Users
from migrations.filled import fill
from plans import pages_touched
from waiting import until_it_answers

GOOGLE = "google-oauth2|1"


async def test_account_of_another_system_is_made_once_and_then_returned_as_it_is(hub: Hub) -> None:
    ada = await hub.users.upsert(external_id=GOOGLE, username="ada", display_name="Ada Lovelace")
    assert (ada.external_id, ada.email, ada.display_name, ada.kind) == (GOOGLE, None, "Ada Lovelace", "person")
    renamed = await hub.users.update_profile(ada.id, username="countess", display_name=None)
    again = await hub.users.upsert(
        external_id=GOOGLE, username="ada", display_name="Ada L.", email="a@example.org"
    )
    assert again == renamed == await hub.users.get(ada.id) == await hub.users.find_by_external_id(GOOGLE)
    assert await hub.users.find_by_external_id("GOOGLE-oauth2|1") is None  # unlike a name it is case-sensitive


@pytest.mark.parametrize(
    ("given", "text"), [(42, "42"), (UUID(int=7), str(UUID(int=7))), ("é", "é"), ("x" * 255,) * 2]
)
async def test_external_id_is_any_text_a_number_or_a_uuid(hub: Hub, given: str, text: str) -> None:
    user = await hub.users.upsert(external_id=given, username="ada")
    assert user.external_id == text
    assert await hub.users.find_by_external_id(text) == user


@pytest.mark.parametrize("given", ["", " ", "x" * 256, "a\0b", "\ud800", None, True, 1.5, b"1"])
async def test_unusable_external_id_is_refused(hub: Hub, given: str) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.users.upsert(external_id=given, username="ada")
    assert refused.value.field == "external_id"


async def test_fifty_concurrent_calls_return_one_account(hub: Hub, settings: Settings) -> None:
    """They also have one username and email. The server checks their indexes before that of the external id."""
    async with Hub(settings) as other:
        for number in range(4):
            name, email = f"ada{number}", f"ada{number}@example.org"
            calls = [
                one.users.upsert(external_id=f"{GOOGLE}{number}", username=name, email=email)
                for one in (hub, other)
                for _ in range(25)
            ]
            users = await asyncio.gather(*calls)
            assert len({user.id for user in users}) == 1
            assert {user.username for user in users} == {name}


# The server updates indexes in the order of their age. This one delays a new row between its entries in the
# indexes of usernames and external ids.
SLOW_INDEX = """
    DROP INDEX idx_users_external_id;

    CREATE FUNCTION slow(text) RETURNS text IMMUTABLE LANGUAGE sql
        AS 'SELECT $1 FROM (SELECT pg_sleep(0.3)) AS slept';

    CREATE INDEX idx_users_slow ON users (slow(username));

    CREATE UNIQUE INDEX idx_users_external_id ON users (external_id COLLATE "C") WHERE external_id IS NOT NULL;
"""


@pytest.mark.one_server("changes of accounts take turns there, and Citus refuses its index")
async def test_call_that_meets_a_new_username_before_its_external_id_returns_the_account(
    hub: Hub, postgres_settings: PostgresSettings
) -> None:
    await fill(postgres_settings, SLOW_INDEX)
    users = await asyncio.gather(*(hub.users.upsert(external_id=GOOGLE, username="ada") for _ in range(4)))
    assert len({user.id for user in users}) == 1


class _Undone(Exception):
    pass


@pytest.mark.parametrize("commits", [True, False])
async def test_call_waits_for_the_transaction_that_makes_the_account(hub: Hub, commits: bool) -> None:
    watcher = await connect(hub.settings.postgres)

    async def a_call_waits() -> bool:
        return bool(await watcher.fetchval(LOCK_IS_AWAITED))

    with suppress(_Undone):
        async with hub.transaction() as tx:
            first = await tx.users.upsert(external_id=GOOGLE, username="ada")
            call = asyncio.create_task(hub.users.upsert(external_id=GOOGLE, username="ada"))
            await until_it_answers(a_call_waits)
            if not commits:
                raise _Undone
    await watcher.close()
    second = await call
    assert (second.id == first.id) is commits
    assert await hub.users.find_by_external_id(GOOGLE) == second


async def test_name_and_email_of_another_account_are_a_conflict(hub: Hub, ada: User) -> None:
    with pytest.raises(Conflict) as refused:
        await hub.users.upsert(external_id=GOOGLE, username="ADA")
    assert refused.value.what == "username"
    with pytest.raises(Conflict) as refused:
        await hub.users.upsert(external_id=GOOGLE, username="other", email="ADA@example.org")
    assert refused.value.what == "email"
    assert await hub.users.find_by_external_id(GOOGLE) is None


async def test_existing_account_is_connected_to_one_of_another_system(hub: Hub, ada: User, bob: User) -> None:
    connected = await hub.users.update_profile(ada.id, external_id=GOOGLE)
    assert await hub.users.upsert(external_id=GOOGLE, username="someone") == connected
    assert connected.email == ada.email
    with pytest.raises(Conflict) as refused:
        await hub.users.update_profile(bob.id, external_id=GOOGLE)
    assert refused.value.what == "external_id"
    assert (await hub.users.update_profile(ada.id, external_id=None)).external_id is None


async def test_account_without_a_password_has_no_credentials_until_one_is_set(hub: Hub) -> None:
    user = await hub.users.upsert(external_id=GOOGLE, username="ada", email="ada@example.org")
    for login in ("ada", "ada@example.org"):
        assert await hub.users.find_credentials(login) is None
    await hub.users.change_password_hash(user.id, "hash")
    found = await hub.users.find_credentials("ada")
    assert found is not None
    assert found.password_hash == "hash"


async def test_deleted_account_of_another_system_is_made_anew(hub: Hub) -> None:
    first = await hub.users.upsert(external_id=GOOGLE, username="ada")
    await hub.users.delete(first.id)
    second = await hub.users.upsert(external_id=GOOGLE, username="ada")
    assert second.id != first.id


async def test_account_that_is_being_deleted_is_hidden_and_its_names_are_free(hub: Hub, pool: Pool) -> None:
    first = await hub.users.upsert(external_id=GOOGLE, username="ada", display_name="Ada", metadata={"a": 1})
    await pool.execute(HIDE_ACCOUNT, first.id)
    assert await hub.users.find_by_external_id(GOOGLE) is None
    assert (await hub.users.search("ada")).items == []
    second = await hub.users.upsert(external_id=GOOGLE, username="ada")
    assert second.id != first.id


async def test_bots_and_visitors_have_a_kind(hub: Hub) -> None:
    bot = await hub.users.create(None, "weather", None, kind="bot", metadata={"source": "sky"})
    guest = await hub.users.create_anonymous(display_name="Visitor")
    assert (bot.kind, bot.email, bot.metadata) == (UserKind.BOT, None, {"source": "sky"})
    assert (guest.kind, guest.display_name) == (UserKind.ANONYMOUS, "Visitor")
    assert guest.username.startswith("guest-")
    guests = await asyncio.gather(*(hub.users.create_anonymous() for _ in range(50)))
    assert len({one.username for one in guests}) == 50
    with pytest.raises(Invalid, match="kind"):
        await hub.users.create(None, "other", None, kind="robot")


async def test_profile_is_changed_in_parts(hub: Hub, ada: User) -> None:
    changed = await hub.users.update_profile(ada.id, display_name="Ada 🎩", metadata={"team": ["a", None]})
    assert (changed.display_name, changed.metadata) == ("Ada 🎩", {"team": ["a", None]})
    changed = await hub.users.update_profile(ada.id, metadata={"b": 1})
    assert (changed.display_name, changed.metadata) == ("Ada 🎩", {"b": 1})
    assert await hub.users.get(ada.id) == changed
    assert await hub.cache.user(ada.id) == changed == await hub.cache.user(ada.id)
    changed = await hub.users.update_profile(ada.id, display_name=None, metadata=None)
    assert (changed.display_name, changed.metadata) == (None, None)
    with pytest.raises(NotFound):
        await hub.users.update_profile(uuid4(), display_name="Ada")


@pytest.mark.parametrize("name", ["", " ", " Ada", "Ada\n", "a\u202eb", "x" * 101, "a\0", "\ud800", 7])
async def test_unusable_display_name_is_refused(hub: Hub, ada: User, name: str) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.users.update_profile(ada.id, display_name=name)
    assert refused.value.field == "display_name"


@pytest.mark.parametrize("metadata", [{"a": "x" * 8_192}, [], "{}", {"a": float("nan")}, {1: 2}, {"a": "\0"}])
async def test_unusable_metadata_is_refused(hub: Hub, ada: User, metadata: dict[str, object]) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.users.update_profile(ada.id, metadata=metadata)
    assert refused.value.field == "metadata"


# Users that other people see


def test_public_user_has_no_email_and_all_that_other_people_may_see() -> None:
    assert list(get_type_hints(PublicUser)) == [
        *("id", "username", "display_name", "avatar_url", "is_online", "last_seen", "metadata"),
    ]


async def test_public_form_of_a_user_is_that_of_a_search(hub: Hub) -> None:
    ada = await hub.users.upsert(
        external_id=GOOGLE, username="ada", email="ada@example.org", display_name="Ada", metadata={"a": 1}
    )
    page = await hub.users.search("ad")
    assert page.items == [ada.public]
    written = msgspec.json.encode(page).decode()
    assert "example.org" not in written
    assert GOOGLE not in written


async def _names(hub: Hub, prefix: str) -> list[str]:
    return [user.username for user in (await hub.users.search(prefix)).items]


async def test_search_finds_the_start_of_either_name_in_any_spelling(hub: Hub) -> None:
    await hub.users.create(None, "Νίκος", None, display_name="The ﬁrst")
    await hub.users.create(None, "ada", None, display_name="Countess  of Lovelace")
    await hub.users.create(None, "weiß", None, display_name="ADA the second")
    for prefix, found in {
        "νίκ": ["Νίκος"],
        "ΝΊΚΟΣ": ["Νίκος"],
        "the FI": ["Νίκος"],
        "countess of l": ["ada"],
        "aDa": ["ada", "weiß"],
        "ada ": ["ada", "weiß"],
        "\uff21\uff24": ["ada", "weiß"],
        "Wei": ["weiß"],
        "lovelace": [],
        "_": [],
        "%": [],
        "ada'; --": [],
    }.items():
        assert await _names(hub, prefix) == found


async def test_user_who_is_found_by_both_names_is_listed_once(hub: Hub) -> None:
    await hub.users.create(None, "ada", None, display_name="Adam")
    await hub.users.create(None, "bob", None, display_name="Adam")
    assert await _names(hub, "ad") == ["ada", "bob"]
    assert await _names(hub, "adam") == ["ada", "bob"]


async def test_pages_of_a_search_list_everyone_once(hub: Hub) -> None:
    for number in range(9):
        await hub.users.create(
            None, f"user{number}", None, display_name="User" if number % 2 else f"Usera{number}"
        )
        await hub.users.create(None, f"other{number}", None, display_name="User")
    found: list[str] = []
    after = None
    while True:
        page = await hub.users.search("user", limit=4, after=after)
        found += [user.username for user in page.items]
        after = page.next
        if after is None:
            break
    assert sorted(found) == sorted([f"user{n}" for n in range(9)] + [f"other{n}" for n in range(9)])


async def test_search_follows_a_name_that_changes_and_leaves_out_deleted_accounts(
    hub: Hub, ada: User, bob: User
) -> None:
    await hub.users.update_profile(ada.id, display_name="Zoe")
    assert await _names(hub, "zo") == ["ada"]
    await hub.users.update_profile(ada.id, display_name="Yael")
    assert await _names(hub, "zo") == []
    await hub.users.delete(ada.id)
    assert await _names(hub, "yael") == []


async def test_names_whose_keys_are_long_are_found_page_by_page(hub: Hub) -> None:
    long = "\ufdfa" * 49  # 18 letters each in a key
    for letter in "ab":
        await hub.users.create(None, long + letter, None, display_name="\ufdfa" * 99 + letter)
    first = await hub.users.search("\ufdfa", limit=1)
    second = await hub.users.search("\ufdfa", limit=1, after=first.next)
    assert [page.items[0].username[-1] for page in (first, second)] == ["a", "b"]
    assert second.next is None


@pytest.mark.parametrize("prefix", ["", " ", "\u200b", "x" * 101, "\0", None, 7, "\U0010ffff"])
async def test_unusable_prefix_is_refused(hub: Hub, prefix: str) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.users.search(prefix)
    assert refused.value.field == "prefix"


@pytest.mark.parametrize("prefix", ["\ud7ff", "a\U0010ffff", "\U0010fffe"])
async def test_prefix_at_the_end_of_the_characters_finds_its_names(hub: Hub, prefix: str) -> None:
    assert (await hub.users.search(prefix)).items == []


@pytest.mark.one_server("counts what one server reads")
@pytest.mark.counts_pages
async def test_search_touches_few_pages_however_many_users_there_are(hub: Hub) -> None:
    connection = await connect(hub.settings.postgres)
    await connection.execute("""
        INSERT INTO users (username, display_name, display_name_key)
        SELECT 'user' || n, 'Name ' || n, 'name ' || n
        FROM generate_series(1, 20000) AS n
    """)
    statement: Statement[Any] = Users._SEARCH
    viewer = await hub.users.create_anonymous()
    for prefix, end in (("user", "uses"), ("name", "namf"), ("none", "nonf")):
        assert await pages_touched(connection, statement, prefix, prefix, UUID(int=0), end, 21, viewer.id) < 100
    await connection.close()
