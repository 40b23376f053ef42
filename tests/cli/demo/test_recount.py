from __future__ import annotations

from uuid import UUID

import pytest

from hubbub.cli.demo import recount, talk
from hubbub.cli.demo.expected import Context
from hubbub.cli.demo.report import Section
from hubbub.postgres import connect
from hubbub.repositories import ReadReceipts

# A message that no read mark and no entry names. Otherwise these would be wrong as well.
A_MESSAGE = """(
    SELECT id FROM messages
    WHERE id NOT IN (SELECT last_read_message_id FROM room_users WHERE last_read_message_id IS NOT NULL)
        AND id NOT IN (SELECT message_id FROM room_events WHERE message_id IS NOT NULL)
        AND user_id = ANY (SELECT id FROM users WHERE username LIKE 'talker-%')
        AND deleted_at IS NULL  -- a tombstone cannot have content
    LIMIT 1
)"""


def failed(section: Section) -> set[str]:
    return {check.what for check in section.checks.values() if not check.ok}


@pytest.fixture
async def played(loaded: Context) -> Context:
    """A context whose log was imported and whose users have sent messages."""
    assert failed(await talk.run(loaded)) == set()
    return loaded


async def test_every_check_after_a_talk_passes(played: Context) -> None:
    section = await recount.run(played)
    assert failed(section) == set()
    assert len(section.checks) == 5


@pytest.mark.parametrize(
    ("fault", "breaks"),
    [
        (
            f"DELETE FROM messages WHERE id = {A_MESSAGE}",
            {"every row stored exactly once", recount.LOGS, recount.PAGES},
        ),
        (
            "INSERT INTO users (email, username, password_hash) VALUES ('x@example.org', 'stranger', '!')",
            {"every row stored exactly once"},
        ),
        (
            f"UPDATE messages SET content = 'never sent' WHERE id = {A_MESSAGE}",
            {recount.PAGES},
        ),
        (
            "UPDATE room_events SET kind = 'left' WHERE kind = 'joined' AND seq = 1",
            {recount.LOGS},
        ),
        ("UPDATE rooms SET last_seq = last_seq + 1", {recount.LOGS}),
        (
            """
            UPDATE room_users SET last_read_message_id = messages.id
            FROM messages
            WHERE messages.room_id = room_users.room_id
                AND messages.id <> room_users.last_read_message_id
            """,
            {recount.RULES},
        ),
        (
            "DELETE FROM room_users WHERE ctid = (SELECT min(ctid) FROM room_users)",
            {"every row stored exactly once"},
        ),
        (
            "UPDATE room_events SET user_id = gen_random_uuid() WHERE seq = 1",
            {recount.RULES},
        ),
        (
            "ALTER TABLE messages ADD CONSTRAINT loud CHECK (content <> 'x') NOT VALID",
            {recount.RULES},
        ),
    ],
)
async def test_fault_fails_its_checks_and_no_others(played: Context, fault: str, breaks: set[str]) -> None:
    connection = await connect(played.settings.postgres)
    assert await connection.execute(fault) not in {"UPDATE 0", "DELETE 0"}
    await connection.close()
    assert failed(await recount.run(played)) == breaks


async def test_wrong_unread_count_fails_the_check(played: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    true_counts = ReadReceipts.unread_counts

    async def one_more(receipts: ReadReceipts, user_id: UUID, *, cap: int = 100) -> dict[UUID, int]:
        counts = await true_counts(receipts, user_id, cap=cap)
        return {room_id: unread + 1 for room_id, unread in counts.items()}

    monkeypatch.setattr(ReadReceipts, "unread_counts", one_more)
    assert failed(await recount.run(played)) == {"unread counts match a recount"}
