from __future__ import annotations

import io
import json
from collections import Counter
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest

from hubbub import Hub, inputs
from hubbub.cli.demo import recount
from hubbub.cli.demo.chat_log import CONVERSATION, ChatLog, load, read
from hubbub.cli.demo.context import Context
from hubbub.cli.demo.report import Check
from hubbub.history import JoinLine, LeaveLine, MessageLine, Refusals
from hubbub.postgres import connect
from log import log_of

# A real log of #ubuntu, ten years long. It lies beside the project and is not part of it.
REAL = Path(__file__).parents[4] / "shared" / "data" / "ubuntu-irc.jsonl.gz"

AT = datetime(2004, 11, 15, 12, 18, tzinfo=UTC)
KINDS = {"message": MessageLine, "join": JoinLine, "leave": LeaveLine}


def log(*lines: tuple[str, str, str]) -> ChatLog:
    """Lines as (kind, user, content), all in one room and in one minute."""
    return ChatLog(
        "a log",
        iter(
            [
                KINDS[kind](at=AT, room="#chat", user=user, **({"content": content} if content else {}))
                for kind, user, content in lines
            ]
        ),
    )


async def order(context: Context) -> Check:
    return (await recount.run(context)).checks["order"]


async def test_log_is_imported_in_the_order_of_its_lines(context: Context) -> None:
    sent = [("message", f"user{n % 3}", f"message {n}") for n in range(250)]
    await load(context, log(*sent))
    check = await order(context)
    assert check.ok
    assert check.count == 250
    [room] = context.rooms
    page = await context.hub.messages.page(room, limit=200)
    assert [message.content for message in page.items] == [content for _, _, content in sent[50:]]


@pytest.mark.skipif(not REAL.exists(), reason="the real chat log does not lie beside the project")
async def test_real_log_is_imported_in_the_order_of_its_lines(context: Context) -> None:
    with REAL.open("rb") as file:
        await load(context, ChatLog(REAL.name, islice(read(REAL.name, file).lines, 6_000)))
    check = await order(context)
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
    await load(context, chat)
    [room] = context.rooms.values()
    assert await log_of(context.pool, room.id) == ["joined", "sent", "joined", "sent", "left", "joined", "sent"]
    names = {(await context.hub.users.get(user_id)).username for user_id in room.members}
    assert names == {"ada", "bob"}
    assert room.entries == {"message": 3, "joined": 3, "left": 1}
    assert all(check.ok for check in (await recount.run(context)).checks.values())


async def test_nicknames_that_differ_by_case_or_composition_are_one_user(context: Context) -> None:
    names = ["Mez", "mez", "MEZ", "Zo\u00eb", "Zoe\u0308", "straße", "STRASSE"]
    await load(context, log(*[("message", name, f"I am {name}") for name in names]))
    assert all(check.ok for check in (await recount.run(context)).checks.values())
    assert len(context.users) == 3


async def test_changed_nicknames_and_refused_lines_are_noted(context: Context) -> None:
    chat = log(("message", "ada@example.org", "hello"))
    chat.refusals = Refusals()
    for number in range(5):
        chat.refusals.add(number + 1, "not JSON")
    names, lines = (await load(context, chat)).notes
    assert names.startswith("1 nickname was changed: 'ada@example.org' is 'ada_example.org-")
    assert lines == "5 lines were refused: line 1: not JSON; line 2: not JSON; line 3: not JSON; ..."


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
    chat = read("a log", io.BufferedReader(io.BytesIO("\n".join(map(json.dumps, lines)).encode())))
    assert list(chat.lines) == [
        MessageLine(at=datetime(2004, 11, 15, 12, 18, tzinfo=UTC), room="#chat", user="ada", content="a")
    ]
    assert [refusal.line for refusal in chat.refusals.first] == [2, 3]


@pytest.mark.parametrize(
    "fault",
    [
        "UPDATE messages SET content = 'something else' WHERE seq = 3",
        "UPDATE messages SET user_id = NULL WHERE seq = 3",
        "DELETE FROM messages WHERE seq = 3",
        "DELETE FROM messages WHERE seq = (SELECT max(seq) FROM messages)",
        "UPDATE messages SET seq = CASE seq WHEN 3 THEN 900 ELSE 3 END WHERE seq IN (3, 4)",
        """
        INSERT INTO messages (room_id, seq, user_id, content)
        SELECT room_id, 900, user_id, content FROM messages WHERE seq = 3
        """,
    ],
)
async def test_imported_message_that_is_changed_lost_moved_or_doubled_fails_the_check(
    context: Context, fault: str
) -> None:
    await load(context, log(*[("message", "ada", f"message {n}") for n in range(5)]))
    assert (await order(context)).ok
    connection = await connect(context.settings.postgres)
    assert await connection.execute(fault) not in {"UPDATE 0", "DELETE 0"}
    await connection.close()
    assert not (await order(context)).ok


def test_own_log_has_members_only_in_the_right_order(conversation: ChatLog) -> None:
    members: set[tuple[str, str]] = set()
    for line in conversation.lines:
        assert line.room is not None
        assert line.user is not None
        member = (line.room, line.user)
        assert (member in members) == (not isinstance(line, JoinLine))
        if isinstance(line, JoinLine):
            members.add(member)
        elif isinstance(line, LeaveLine):
            members.remove(member)
    assert conversation.refusals.count == 0


def test_own_log_is_as_awkward_as_real_ones(conversation: ChatLog) -> None:
    lines = list(conversation.lines)
    messages = [line for line in lines if isinstance(line, MessageLine)]
    text = "".join(message.content for message in messages)
    assert Counter(map(type, lines)).keys() == set(KINDS.values())
    assert len({line.room for line in lines}) == 6
    assert any(max(map(ord, message.content)) > 0xFFFF for message in messages), "no emoji"
    assert "שלום" in text
    assert "مرحبا" in text
    assert max(len(message.content) for message in messages) > 2_000
    assert max(len(line.user or "") for line in lines) == inputs.USERNAME_LENGTH
    assert "{" not in text.replace("{}", ""), "a slot was left open"
    assert len({line.at for line in lines}) < len(lines) / 2, "times do not tell the order"
    assert CONVERSATION.stat().st_size < 200_000


async def test_own_log_needs_no_other_names(context: Context, conversation: ChatLog, hub: Hub) -> None:
    section = await load(context, conversation)
    assert section.notes == []
    assert conversation.renamed == []
