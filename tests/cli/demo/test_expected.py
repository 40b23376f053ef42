from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from uuid import UUID

import pytest

from hubbub import inputs
from hubbub.cli.demo import expected, talk
from hubbub.cli.demo.expected import CONVERSATION, Context, load, read
from hubbub.cli.demo.report import Check, Section
from hubbub.history import JoinLine, LeaveLine, MessageLine, Refusals
from hubbub.history.lines import PlainLine
from hubbub.postgres import connect
from hubbub.repositories import ReadReceipts
from log import log_of

# A real log of #ubuntu over ten years. It is beside the project and not part of it.
REAL = Path(__file__).parents[4] / "shared" / "data" / "ubuntu-irc.jsonl.gz"

AT = datetime(2004, 11, 15, 12, 18, tzinfo=UTC)
KINDS = {"message": MessageLine, "join": JoinLine, "leave": LeaveLine}

# A message that no read mark and no entry names. Otherwise these would be wrong as well.
A_MESSAGE = """(
    SELECT id FROM messages
    WHERE id NOT IN (SELECT last_read_message_id FROM room_users WHERE last_read_message_id IS NOT NULL)
        AND id NOT IN (SELECT message_id FROM room_events WHERE message_id IS NOT NULL)
        AND user_id = ANY (SELECT id FROM users WHERE username LIKE 'talker-%')
        AND deleted_at IS NULL  -- a tombstone cannot have content
    LIMIT 1
)"""


def log(*lines: tuple[str, str, str]) -> Iterator[PlainLine]:
    """Lines as (kind, user, content), all in one room and in one minute."""
    for kind, user, content in lines:
        yield KINDS[kind](at=AT, room="#chat", user=user, **({"content": content} if content else {}))


async def import_lines(context: Context, lines: Iterator[PlainLine], refusals: Refusals | None = None) -> Section:
    return await load(context, "a log", lines, refusals or Refusals())


async def pages(context: Context) -> Check:
    return (await expected.compare(context)).checks[expected.PAGES]


async def test_log_is_imported_in_the_order_of_its_lines(context: Context) -> None:
    sent = [("message", f"user{n % 3}", f"message {n}") for n in range(250)]
    await import_lines(context, log(*sent))
    check = await pages(context)
    assert check.ok
    assert check.count == 252
    [room] = context.rooms
    page = await context.hub.messages.page(room, limit=200)
    assert [message.content for message in page.items] == [content for _, _, content in sent[50:]]


@pytest.mark.skipif(not REAL.exists(), reason="the real chat log does not lie beside the project")
async def test_real_log_is_imported_in_the_order_of_its_lines(context: Context) -> None:
    with REAL.open("rb") as file:
        await import_lines(context, islice(read(file, Refusals()), 6_000))
    check = await pages(context)
    assert check.ok
    assert check.count > 5_000
    for room in context.rooms:
        await log_of(context.pool, room)


async def test_author_who_is_not_a_member_is_expected_to_join_first(context: Context) -> None:
    chat = log(
        ("message", "ada", "first"),
        ("message", "bob", "they were there before the log begins"),
        ("join", "bob", ""),
        ("leave", "carol", ""),  # not seen before
        ("leave", "bob", ""),
        ("message", "bob", "they come back to write this"),
    )
    await import_lines(context, chat)
    [room] = context.rooms.values()
    assert await log_of(context.pool, room.id) == ["joined", "sent", "joined", "sent", "left", "joined", "sent"]
    names = {(await context.hub.users.get(user_id)).username for user_id in room.members}
    assert names == {"ada", "bob"}
    assert room.entries == {"sent": 3, "joined": 3, "left": 1}
    assert all(check.ok for check in (await expected.compare(context)).checks.values())


async def test_nicknames_that_differ_by_case_or_composition_are_one_user(context: Context) -> None:
    names = ["Mez", "mez", "MEZ", "Zo\u00eb", "Zoe\u0308", "straße", "STRASSE"]
    await import_lines(context, log(*[("message", name, f"I am {name}") for name in names]))
    assert all(check.ok for check in (await expected.compare(context)).checks.values())
    assert len(context.users) == 4  # ß is not the lower case of SS


async def test_changed_nicknames_and_refused_lines_are_noted(context: Context) -> None:
    refusals = Refusals()
    for number in range(5):
        refusals.add(number + 1, "not JSON")
    names, lines = (await import_lines(context, log(("message", "ada@example.org", "hello")), refusals)).notes
    assert names.startswith("changed nicknames (1): ada@example.org, ada_example.org-")
    assert lines == "refused lines (5): 1, not JSON; 2, not JSON; 3, not JSON"


def test_lines_of_the_richer_form_are_refused_or_read_as_plain_ones() -> None:
    lines = [
        {
            "kind": "message",
            "room": "#chat",
            "user": "ada",
            "at": "2004-11-15T12:18:00Z",
            "content": "a",
            "seq": 9,
        },
        {"kind": "delete", "room": "#chat", "user": "ada", "at": "2004-11-15T12:18:00Z", "message_id": "0" * 32},
        {"kind": "join", "room_id": "0" * 32, "user": "ada", "at": "2004-11-15T12:18:00Z"},
    ]
    refusals = Refusals()
    file: io.BufferedReader = io.BufferedReader(io.BytesIO("\n".join(map(json.dumps, lines)).encode()))
    assert list(read(file, refusals)) == [
        MessageLine(at=datetime(2004, 11, 15, 12, 18, tzinfo=UTC), room="#chat", user="ada", content="a")
    ]
    assert [refusal.line for refusal in refusals.first] == [2, 3]


@pytest.mark.parametrize(
    "fault",
    [
        "UPDATE messages SET content = 'something else' WHERE seq = 3",
        "UPDATE messages SET user_id = NULL WHERE seq = 3",
        "DELETE FROM messages WHERE seq = 3",
        "DELETE FROM messages WHERE seq = (SELECT max(seq) FROM messages)",
        "UPDATE messages SET seq = 900 WHERE seq = 3; UPDATE messages SET seq = 3 WHERE seq = 4",
        """
        INSERT INTO messages (room_id, seq, user_id, content)
        SELECT room_id, 900, user_id, content FROM messages WHERE seq = 3
        """,
    ],
)
async def test_imported_message_that_is_changed_lost_moved_or_doubled_fails_the_check(
    context: Context, fault: str
) -> None:
    await import_lines(context, log(*[("message", "ada", f"message {n}") for n in range(5)]))
    assert (await pages(context)).ok
    connection = await connect(context.settings.postgres)
    assert await connection.execute(fault) not in {"UPDATE 0", "DELETE 0"}
    await connection.close()
    assert not (await pages(context)).ok


def test_own_log_has_members_only_in_the_right_order(conversation: list[PlainLine]) -> None:
    members: set[tuple[str, str]] = set()
    for line in conversation:
        assert line.room is not None
        assert line.user is not None
        member = (line.room, line.user)
        assert (member in members) == (not isinstance(line, JoinLine))
        if isinstance(line, JoinLine):
            members.add(member)
        elif isinstance(line, LeaveLine):
            members.remove(member)


def test_own_log_has_the_oddities_of_real_ones(conversation: list[PlainLine]) -> None:
    messages = [line for line in conversation if isinstance(line, MessageLine)]
    text = "".join(message.content for message in messages)
    assert Counter(map(type, conversation)).keys() == set(KINDS.values())
    assert len({line.room for line in conversation}) == 6
    assert any(max(map(ord, message.content)) > 0xFFFF for message in messages), "no emoji"
    assert "שלום" in text
    assert "مرحبا" in text
    assert max(len(message.content) for message in messages) > 2_000
    assert max(len(line.user or "") for line in conversation) == inputs.USERNAME_LENGTH
    assert len({line.at for line in conversation}) < len(conversation) / 2, "times do not tell the order"
    assert CONVERSATION.stat().st_size < 40_000


async def test_own_log_needs_no_other_names(context: Context, conversation: list[PlainLine]) -> None:
    section = await import_lines(context, iter(conversation))
    assert section.notes == []
    assert context.log_findings["renamed"] == []


async def test_message_is_expected_once_however_often_it_is_sent_and_changed(context: Context) -> None:
    author, reader = await context.create_users("user", 2)
    room = await context.create_room("room", [author, reader])
    message = await context.hub.messages.send(room.id, author, "hello")
    for _ in range(2):
        context.expect_message(message)
    for content in ("hello there", "hello there"):
        context.expect_message(await context.hub.messages.edit(message.id, content, by=author))
    for _ in range(2):
        context.expect_message(await context.hub.messages.delete(message.id, by=author))
    assert room.entries == {"joined": 2, "sent": 1, "edited": 1, "deleted": 1}
    assert context.messages[message.id].deleted_at is not None


async def test_members_are_counted_only_when_they_change(context: Context) -> None:
    author, reader = await context.create_users("user", 2)
    room = await context.create_room("room", [author])
    for _ in range(2):
        room.join(reader)
    for _ in range(2):
        room.leave(author)
    assert room.members == {reader}
    assert room.entries == {"joined": 2, "left": 1}


def failed(section: Section) -> set[str]:
    return {check.what for check in section.checks.values() if not check.ok}


@pytest.fixture
async def played(loaded: Context) -> Context:
    """A context whose log was imported and whose users have sent messages."""
    assert failed(await talk.run(loaded)) == set()
    return loaded


async def test_every_check_after_a_talk_passes(played: Context) -> None:
    section = await expected.compare(played)
    assert failed(section) == set()
    assert len(section.checks) == 5


@pytest.mark.parametrize(
    ("fault", "breaks"),
    [
        (
            f"DELETE FROM messages WHERE id = {A_MESSAGE}",
            {"every row stored exactly once", expected.LOGS, expected.PAGES},
        ),
        (
            "INSERT INTO users (email, username, password_hash) VALUES ('x@example.org', 'stranger', '!')",
            {"every row stored exactly once"},
        ),
        (
            f"UPDATE messages SET content = 'never sent' WHERE id = {A_MESSAGE}",
            {expected.PAGES},
        ),
        (
            "UPDATE room_events SET kind = 'left' WHERE kind = 'joined' AND seq = 1",
            {expected.LOGS},
        ),
        ("UPDATE rooms SET last_seq = last_seq + 1", {expected.LOGS}),
        (
            """
            UPDATE room_users SET last_read_message_id = messages.id
            FROM messages
            WHERE messages.room_id = room_users.room_id
                AND messages.id <> room_users.last_read_message_id
            """,
            {expected.RULES},
        ),
        (
            "DELETE FROM room_users WHERE ctid = (SELECT min(ctid) FROM room_users)",
            {"every row stored exactly once"},
        ),
        (
            "UPDATE room_events SET user_id = gen_random_uuid() WHERE seq = 1",
            {expected.RULES},
        ),
        (
            "ALTER TABLE messages ADD CONSTRAINT loud CHECK (content <> 'x') NOT VALID",
            {expected.RULES},
        ),
    ],
)
async def test_fault_fails_its_checks_and_no_others(played: Context, fault: str, breaks: set[str]) -> None:
    connection = await connect(played.settings.postgres)
    assert await connection.execute(fault) not in {"UPDATE 0", "DELETE 0"}
    await connection.close()
    assert failed(await expected.compare(played)) == breaks


async def test_wrong_unread_count_fails_the_check(played: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    true_counts = ReadReceipts.unread_counts

    async def one_more(receipts: ReadReceipts, user_id: UUID, *, cap: int = 100) -> dict[UUID, int]:
        counts = await true_counts(receipts, user_id, cap=cap)
        return {room_id: unread + 1 for room_id, unread in counts.items()}

    monkeypatch.setattr(ReadReceipts, "unread_counts", one_more)
    assert failed(await expected.compare(played)) == {"unread counts match a recount"}
