from __future__ import annotations

from uuid import UUID

import pytest

from hubbub.cli._demo.checks import check
from hubbub.cli._demo.figures import Section
from hubbub.cli._demo.load import load
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.talk import talk
from hubbub.postgres import connect
from hubbub.repositories import ReadReceipts

# One that nobody's read mark names: else the mark would be astray as well.
A_MESSAGE = """(
    SELECT id FROM messages
    WHERE id NOT IN (SELECT last_read_message_id FROM room_users WHERE last_read_message_id IS NOT NULL)
    LIMIT 1
)"""


def failed(section: Section) -> set[str]:
    return {check.what for check in section.checks if not check.ok}


@pytest.fixture
async def played(stage: Stage) -> Stage:
    """After a log was loaded and people have talked."""
    await load(stage)
    assert failed(await talk(stage)) == set()
    return stage


async def test_after_a_talk_all_holds(played: Stage) -> None:
    section = await check(played)
    assert failed(section) == set()
    assert all(check.count for check in section.checks), "a check looked at nothing"


@pytest.mark.parametrize(
    ("fault", "breaks"),
    [
        (
            f"DELETE FROM messages WHERE id = {A_MESSAGE}",
            {
                "nothing is lost, nothing is twice",
                "every change is in the log, once",
                "pages turned back have all messages",
                "logs are numbered without a hole",
            },
        ),
        (
            "INSERT INTO users (email, username, password_hash) VALUES ('x@example.org', 'nobody', '!')",
            {"nothing is lost, nothing is twice"},
        ),
        (
            f"UPDATE messages SET content = 'never sent' WHERE id = {A_MESSAGE}",
            {"pages turned back have all messages"},
        ),
        (
            "UPDATE room_events SET kind = 'left' WHERE kind = 'joined' AND seq = 1",
            {"every change is in the log, once"},
        ),
        ("UPDATE rooms SET last_seq = last_seq + 1", {"logs are numbered without a hole"}),
        (
            """
            UPDATE room_users SET last_read_message_id = messages.id
            FROM messages
            WHERE messages.room_id = room_users.room_id
                AND messages.id <> room_users.last_read_message_id
            """,
            {"read marks name the right message"},
        ),
        (
            "DELETE FROM room_users WHERE ctid = (SELECT min(ctid) FROM room_users)",
            {"nothing is lost, nothing is twice", "who joined and did not leave is in"},
        ),
        (
            "UPDATE room_events SET user_id = gen_random_uuid() WHERE seq = 1",
            {"every reference leads somewhere"},
        ),
        (
            "ALTER TABLE messages ADD CONSTRAINT loud CHECK (content <> 'x') NOT VALID",
            {"every rule of the schema is in force"},
        ),
    ],
)
async def test_each_fault_is_found_and_nothing_else_is_blamed(played: Stage, fault: str, breaks: set[str]) -> None:
    connection = await connect(played.settings.postgres)
    assert await connection.execute(fault) not in {"UPDATE 0", "DELETE 0"}
    await connection.close()
    assert failed(await check(played)) == breaks


async def test_a_wrong_unread_count_is_found(played: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    true_counts = ReadReceipts.unread_counts

    async def one_more(receipts: ReadReceipts, user_id: UUID, *, cap: int = 100) -> dict[UUID, int]:
        counts = await true_counts(receipts, user_id, cap=cap)
        return {room_id: unread + 1 for room_id, unread in counts.items()}

    monkeypatch.setattr(ReadReceipts, "unread_counts", one_more)
    assert failed(await check(played)) == {"unread counts match a recount"}
