from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest

from hubbub.cli._demo.chatlog import ChatLog, Event, Refusals, read
from hubbub.cli._demo.load import load, read_back
from hubbub.cli._demo.stage import Stage
from hubbub.postgres import connect
from log import log_of

# A real log of #ubuntu, ten years long. It lies beside the project and is not part of it.
REAL = Path(__file__).parents[4] / "shared" / "data" / "ubuntu-irc.jsonl.gz"

AT = datetime(2004, 11, 15, 12, 18, tzinfo=UTC)


def log(*events: tuple[str, str, str]) -> ChatLog:
    """Events as (kind, user, content), all in one room and in one minute."""
    return ChatLog("a log", iter([Event(kind, "#chat", user, AT, content) for kind, user, content in events]))


async def test_a_log_comes_back_in_the_order_of_its_lines(stage: Stage) -> None:
    said = [("message", f"user{n % 3}", f"message {n}") for n in range(250)]
    stage.log = log(*said)
    section = await load(stage)
    assert [check.ok for check in section.checks] == [True]
    assert section.checks[0].count == 250
    [room] = stage.ledger.rooms
    page = await stage.hub.messages.page(room, limit=200)
    assert [message.content for message in page.items] == [content for _, _, content in said[50:]]


@pytest.mark.skipif(not REAL.exists(), reason="the real chat log does not lie beside the project")
async def test_a_real_log_comes_back_in_the_order_of_its_lines(stage: Stage) -> None:
    with REAL.open("rb") as file:
        stage.log = ChatLog(REAL.name, islice(read(REAL.name, file).events, 6_000))
        section = await load(stage)
    assert [check.ok for check in section.checks] == [True]
    assert section.checks[0].count > 5_000
    for room in stage.ledger.rooms:
        await log_of(stage.pool, room)


async def test_who_speaks_without_having_joined_was_there_before(stage: Stage) -> None:
    stage.log = log(
        ("message", "ada", "first"),  # she opens the room
        ("message", "bob", "he was there before the log begins"),
        ("join", "bob", ""),
        ("leave", "carol", ""),  # who was never seen
        ("leave", "bob", ""),
        ("message", "bob", "he comes back to say this"),
    )
    await load(stage)
    [room] = stage.ledger.rooms.values()
    assert await log_of(stage.pool, room.id) == ["joined", "sent", "joined", "sent", "left", "joined", "sent"]
    assert room.members == {stage.people["ada"], stage.people["bob"]}
    assert room.entries == {"message": 3, "joined": 3, "left": 1}


async def test_what_was_odd_about_a_log_is_noted(stage: Stage) -> None:
    refusals = Refusals()
    for number in range(5):
        refusals.add(number + 1, "not JSON")
    stage.log = log(("message", "ada@example.org", "hello"))
    stage.log.refusals = refusals
    names, lines = (await load(stage)).notes
    assert names.startswith("1 nickname that hubbub does not take")
    assert "'ada@example.org' is 'ada_example.org'" in names
    assert lines == "5 lines could not be used: line 1: not JSON; line 2: not JSON; line 3: not JSON; ..."


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
async def test_a_message_that_is_changed_lost_moved_or_doubled_is_found(stage: Stage, fault: str) -> None:
    stage.log = log(*[("message", "ada", f"message {n}") for n in range(5)])
    [before] = (await load(stage)).checks
    assert before.ok
    connection = await connect(stage.settings.postgres)
    assert await connection.execute(fault) not in {"UPDATE 0", "DELETE 0"}
    await connection.close()
    assert not (await read_back(stage)).ok
