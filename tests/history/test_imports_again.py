"""Changed files are imported again. The result is compared with a model of one room.

A line that was imported before counts at its own position in the log. It leaves memberships as they were after it,
and later changes stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from history.histories import as_file, check_logs, line, load, message_lines
from hubbub import Hub, PostgresSettings
from hubbub.history import History, Imported, derive_room_id, existing, rooms, source
from hubbub.history.existing import EVENTS_AT, LATEST_OF_USERS
from hubbub.history.rooms import Members, MemberSnapshot, Span
from hubbub.postgres import OpenTransaction, Pool, Statement, connect
from plans import pages_touched

USERS = ("ann", "bob", "eve")


class Said(NamedTuple):
    """A line of a plain file. A `bad` line is refused, and stands for a line before its correction."""

    kind: str
    user: str
    content: str
    minute: int
    bad: bool = False

    def raw(self, room: str) -> bytes:
        if self.bad:
            return b"{bad\n"
        content = self.content if self.kind == "message" else None
        at = f"2004-12-25T09:{self.minute:02}:00Z"
        return line(self.kind, room=room, user=self.user, at=at, content=content)


LINES = st.builds(
    lambda kind, user, content, same_minute: (kind, user, content, same_minute),
    st.sampled_from(["join", "leave", "message"]),
    st.sampled_from(USERS),
    st.sampled_from(["x", "y"]),
    st.booleans(),
)


@st.composite
def changed_files(draw: st.DrawFn, *, removes: bool) -> tuple[list[Said], list[Said]]:
    """A file, and the same file with lines corrected, added and, if `removes`, removed."""
    first, then = [], []
    minute = 0
    for kind, user, content, same_minute in draw(st.lists(LINES, min_size=1, max_size=12)):
        minute += not same_minute
        said = Said(kind, user, content, minute)
        match draw(st.sampled_from(["kept", "kept", "kept", "corrected", "added", "removed", "bad"])):
            case "corrected":
                first.append(said._replace(bad=True))
                then.append(said)
            case "added":
                then.append(said)
            case "removed" if removes:
                first.append(said)
            case "bad":
                first.append(said._replace(bad=True))
                if not removes:
                    then.append(said._replace(bad=True))
            case _:
                first.append(said)
                then.append(said)
    return first, then


def file_of(room: str, lines: Iterable[Said]) -> bytes:
    return b"".join(said.raw(room) for said in lines)


def members_of(lines: Iterable[Said]) -> dict[str, bool]:
    """The users of the lines, and whether each is a member after them."""
    return {said.user: said.kind != "leave" for said in lines if not said.bad}


def messages_of(*files: Iterable[Said]) -> Counter[tuple[str, str, int]]:
    """The number of messages in all files by author, content and minute."""
    together: Counter[tuple[str, str, int]] = Counter()
    for file in files:
        together |= Counter(
            (said.user, said.content, said.minute) for said in file if said.kind == "message" and not said.bad
        )
    return together


class RoomState(NamedTuple):
    entries: list[tuple[int, str, str, str, str]]
    members: list[str]

    @property
    def messages(self) -> Counter[tuple[str, str, int]]:
        return Counter((user, text, int(at)) for _, kind, user, text, at in self.entries if kind == "message")


async def state_of(settings: PostgresSettings, room_id: UUID) -> RoomState:
    """The log and the members of a room, after checks that every log has to pass."""
    connection = await connect(settings)
    try:
        entries = await connection.fetch(
            """
            SELECT seq, entries.kind, username, text, minute
            FROM (
                SELECT seq, 'message' AS kind, user_id, content AS text, to_char(created_at, 'MI') AS minute
                FROM messages
                WHERE room_id = $1
                UNION ALL
                SELECT seq, kind, user_id, '', to_char(created_at, 'MI')
                FROM room_events
                WHERE room_id = $1
            ) AS entries
            JOIN users ON users.id = entries.user_id
            ORDER BY seq
            """,
            room_id,
        )
        members = await connection.fetch(
            "SELECT username FROM room_users JOIN users ON users.id = user_id WHERE room_id = $1 ORDER BY 1",
            room_id,
        )
        last_seq = await connection.fetchval("SELECT last_seq FROM rooms WHERE id = $1", room_id)
    finally:
        await connection.close()
    state = RoomState([tuple(entry) for entry in entries], [member["username"] for member in members])
    assert [entry[0] for entry in entries] == list(range(1, (last_seq or 0) + 1))
    for user in USERS:
        changes = [kind for _, kind, who, *_ in state.entries if who == user and kind != "message"]
        assert changes == ["joined", "left"] * (len(changes) // 2) + ["joined"] * (len(changes) % 2), state
        assert (user in state.members) == (len(changes) % 2 == 1), state
    return state


def check_numbers(imported: Imported, lines: int) -> None:
    known = imported.messages + imported.events + imported.described + imported.known
    assert known + imported.refusals.count == imported.lines == lines


async def load_without_checkpoint(pool: Pool, content: bytes) -> Imported:
    """Import a file without a matching checkpoint."""
    return await History(pool).load(as_file(b'{"is": "%s"}\n' % uuid4().hex.encode() + content))


EXAMPLES = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=12,
    print_blob=True,
)


@pytest.fixture(params=[2, 10_000])
def batch_lines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    lines: int = request.param
    monkeypatch.setattr(source, "BATCH_LINES", lines)
    if lines == 2:  # with few entries at a time, and forgotten after each batch
        monkeypatch.setattr(rooms, "REMEMBERED_MEMBERSHIPS", 1)
        monkeypatch.setattr(existing, "REMEMBERED_MEMBERSHIPS", 1)
        monkeypatch.setattr(existing, "SEQS_PER_BLOCK", 2)
        monkeypatch.setattr(existing, "SEQS_PER_PAGE", 5)
    return lines


@EXAMPLES
@given(files=changed_files(removes=False))
async def test_corrected_and_added_lines_decide_memberships_only_after_the_last_known_line_of_a_user(
    postgres_settings: PostgresSettings, pool: Pool, batch_lines: int, files: tuple[list[Said], list[Said]]
) -> None:
    first, then = files
    room = f"#{uuid4().hex}"
    check_numbers(await load(pool, file_of(room, first)), len(first))
    before = await state_of(postgres_settings, derive_room_id(room))
    assert before.members == sorted(user for user, is_in in members_of(first).items() if is_in)
    check_numbers(await load(pool, file_of(room, then)), len(then))
    after = await state_of(postgres_settings, derive_room_id(room))
    assert after.members == sorted(user for user, is_in in members_of(then).items() if is_in)
    assert after.entries[: len(before.entries)] == before.entries
    assert after.messages == messages_of(first, then)
    again = await load_without_checkpoint(pool, file_of(room, then))
    assert (again.messages, again.events, again.unlisted, again.users) == (0, 0, 0, 0)
    assert await state_of(postgres_settings, derive_room_id(room)) == after


async def test_line_of_a_join_that_changed_nothing_is_not_the_joining_that_came_with_a_later_message(
    postgres_settings: PostgresSettings, pool: Pool, batch_lines: int
) -> None:
    room = f"#{uuid4().hex}"
    hello, join, leave = Said("message", "bob", "x", 0), Said("join", "bob", "", 1), Said("leave", "bob", "", 1)
    lines = [hello, Said("join", "eve", "", 1), join, Said("leave", "eve", "", 1), leave, leave]
    lines.append(Said("message", "bob", "y", 1))
    await load(pool, file_of(room, lines))
    before = await state_of(postgres_settings, derive_room_id(room))
    again = await load_without_checkpoint(pool, file_of(room, lines))
    assert (again.messages, again.events, again.unlisted) == (0, 0, 0)
    assert await state_of(postgres_settings, derive_room_id(room)) == before


@EXAMPLES
@given(files=changed_files(removes=True))
async def test_removed_and_overlapping_lines_repeat_nothing(
    postgres_settings: PostgresSettings, pool: Pool, batch_lines: int, files: tuple[list[Said], list[Said]]
) -> None:
    first, then = files
    room = f"#{uuid4().hex}"
    await load(pool, file_of(room, first))
    check_numbers(await load_without_checkpoint(pool, file_of(room, then)), len(then) + 1)
    after = await state_of(postgres_settings, derive_room_id(room))
    assert after.messages == messages_of(first, then)
    for file in (then, then[len(then) // 2 :]):
        again = await load_without_checkpoint(pool, file_of(room, file))
        assert again.messages == 0
        assert (await state_of(postgres_settings, derive_room_id(room))).members == after.members
    assert (await load_without_checkpoint(pool, file_of(room, first))).messages == 0


@EXAMPLES
@given(files=changed_files(removes=True), moved=st.sets(st.sampled_from(USERS), min_size=1))
async def test_users_who_joined_or_left_since_stay_in_or_out(
    postgres_settings: PostgresSettings,
    pool: Pool,
    hub: Hub,
    batch_lines: int,
    files: tuple[list[Said], list[Said]],
    moved: set[str],
) -> None:
    first, then = files
    room = f"#{uuid4().hex}"
    await load(pool, file_of(room, [Said("message", "ann", "first", 0), *first]))
    room_id = derive_room_id(room)
    before = (await state_of(postgres_settings, room_id)).members
    for username in moved:
        user = await hub.users.find_by_username(username)
        if user is None:
            user = await hub.users.create(f"{username}@example.org", username, "!")
        if username in before:
            await hub.room_users.remove(room_id, user.id)
        else:
            await hub.room_users.add(room_id, user.id)
    expected = (await state_of(postgres_settings, room_id)).members
    await load_without_checkpoint(pool, file_of(room, then))
    after = await state_of(postgres_settings, room_id)
    assert {user for user in after.members if user in moved} == {user for user in expected if user in moved}
    assert sum(after.messages.values()) == sum(messages_of(first, then).values()) + 1


@pytest.mark.parametrize(
    "lines",
    [
        ["join", "message", "join", "leave"],
        ["join", "leave", "leave", "join", "message"],
        ["message", "join", "leave"],
        ["join", "join", "leave", "leave"],
        ["leave", "leave"],
    ],
)
async def test_file_whose_first_line_was_corrected_repeats_no_join_and_no_leave(
    postgres_settings: PostgresSettings, pool: Pool, lines: list[str]
) -> None:
    said = [Said(kind, "bob", "hi", minute) for minute, kind in enumerate(lines, 1)]
    said.append(Said("message", "ann", "goodbye", 30))
    await load(pool, file_of("#chat", [Said("message", "ann", "corrected", 0, bad=True), *said]))
    before = await state_of(postgres_settings, derive_room_id("#chat"))
    await load(pool, file_of("#chat", [Said("message", "ann", "corrected", 0), *said]))
    after = await state_of(postgres_settings, derive_room_id("#chat"))
    assert after.members == before.members
    last_seq = len(before.entries)
    assert after.entries == [*before.entries, (last_seq + 1, "message", "ann", "corrected", "00")]


async def test_member_whose_corrected_leave_precedes_known_lines_stays_in_however_little_is_remembered(
    postgres_settings: PostgresSettings, pool: Pool, batch_lines: int
) -> None:
    joins = [Said("join", "ann", "", minute) for minute in (1, 2, 3, 4, 5)]
    lines = [*joins, Said("leave", "bob", "", 6), Said("join", "bob", "", 7)]
    lines[2] = Said("leave", "ann", "", 3)
    await load(pool, file_of("#chat", [*lines[:2], lines[2]._replace(bad=True), *lines[3:]]))
    await load(pool, file_of("#chat", lines))
    assert (await state_of(postgres_settings, derive_room_id("#chat"))).members == ["ann", "bob"]


async def test_corrected_change_of_a_room_leaves_the_later_membership_of_its_author(pool: Pool, hub: Hub) -> None:
    room_id, leave = derive_room_id("#chat"), line("leave", at="2004-12-25T09:03:00Z")
    await load(pool, b"{bad\n" + leave)
    ada = await hub.users.find_by_username("ada")
    assert ada is not None
    await hub.room_users.add(room_id, ada.id)
    change = line("change", at="2004-12-25T09:02:00Z", name="renamed", description="", is_private=False)
    again = await load(pool, change + leave)
    assert (again.events, again.known) == (1, 1)
    assert await hub.room_users.get(room_id, ada.id) is not None


async def test_equal_messages_are_told_apart_by_their_number_among_their_equals(
    postgres_settings: PostgresSettings, pool: Pool
) -> None:
    first = await load(pool, message_lines("a", "a", "b", "a", "b"))
    again = await load(pool, message_lines("b", "a", "a", "a", "a", "b"))
    assert (first.messages, again.messages, again.known) == (5, 1, 5)
    await check_logs(postgres_settings)


async def test_messages_that_differ_in_a_microsecond_are_two(pool: Pool) -> None:
    times = ["0100-01-01T00:00:00.000001Z", "0100-01-01T00:00:00.000002Z", "9998-01-01T00:00:00.000001Z"]
    file = b"".join(line(at=at) for at in [*times, "9998-01-01T00:00:00.000002Z"])
    assert (await load(pool, file)).messages == 4
    assert (await load_without_checkpoint(pool, file)).messages == 0


async def test_nicknames_that_the_database_keeps_apart_are_two_users(pool: Pool, hub: Hub) -> None:
    imported = await load(pool, message_lines("hello", user="Weiß") + message_lines("hello", user="WEISS"))
    assert (imported.users, imported.renamed_count) == (2, 0)
    page = await hub.messages.page(derive_room_id("#chat"))
    users = [await hub.users.find_by_username(name) for name in ("weiß", "weiss")]
    assert [message.user_id for message in page.items] == [user and user.id for user in users]


@pytest.mark.counts_pages
async def test_import_looks_for_known_lines_among_the_entries_of_others_alone(
    pool: Pool, hub: Hub, postgres_settings: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each batch would read all entries that earlier batches have appended to the room."""
    monkeypatch.setattr(source, "BATCH_LINES", 50)
    room_id = derive_room_id("#chat")
    await load(pool, line("join") + line("message", user="eve"))
    ada = await hub.users.find_by_username("ada")
    assert ada is not None
    await hub.messages.send(room_id, ada.id, "hello")
    looked: list[list[Span]] = []
    others = Members.others

    def recorded(members: Members, room_id: UUID, last_seq: int) -> list[Span]:
        looked.append(others(members, room_id, last_seq))
        return looked[-1]

    monkeypatch.setattr(Members, "others", recorded)
    at = "2005-01-01T00:{:02}:00Z".format
    imported = await load(pool, b"".join(line("message", user=f"u{n}", at=at(n % 60)) for n in range(300)))
    assert (imported.messages, imported.unlisted) == (300, 300)
    assert {tuple(spans) for spans in looked} == {(Span(1, 4),)}

    members, room = Members(), uuid4()
    for start, end, expected in (
        (3, 3, [(1, 3)]),
        (5, 9, [(1, 5)]),
        (9, 9, [(1, 5)]),
        (12, 20, [(1, 5), (10, 12)]),
    ):
        members._snapshots[room] = MemberSnapshot(start)
        assert members.others(room, start) == expected
        members.stored(room, start, end, {})
    assert members.others(room, 20) == [(1, 5), (10, 12)]

    await pool.execute(FILL_EVENTS, room_id, 20_000)
    connection = await connect(postgres_settings)
    try:
        await connection.execute("ANALYZE room_events")
        spans = (f"{{{room_id}}}", "{1}", "{4}")
        for statement, wanted in ((EVENTS_AT, "{2004-12-25}"), (LATEST_OF_USERS, f"{{{ada.id}}}")):
            assert await pages_touched(connection, statement, *spans, wanted) < 20
    finally:
        await connection.close()


async def test_import_reads_the_entries_of_others_once_and_then_those_at_the_times_of_its_lines(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each batch read all of them, the reads would take longer than the import itself."""
    monkeypatch.setattr(source, "BATCH_LINES", 50)
    monkeypatch.setattr(existing, "SEQS_PER_BLOCK", 500)
    monkeypatch.setattr(existing, "SEQS_PER_PAGE", 3_000)
    read: Counter[str] = Counter()
    fetch_all = OpenTransaction.fetch_all

    async def counted(transaction: OpenTransaction, statement: Statement[Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401
        if "span.first AND span.last" in statement.sql:
            read[statement.name] += sum(args[2]) - sum(args[1]) + len(args[1])
        return await fetch_all(transaction, statement, *args, **options)

    room_id = derive_room_id("#chat")
    await load(pool, line("message", user="eve"))
    await pool.execute(FILL_EVENTS, room_id, 20_000)
    monkeypatch.setattr(OpenTransaction, "fetch_all", counted)
    kinds = ("join", "message", "leave")
    lines = [
        line(kinds[n % 3], user=f"u{n // 3}", at=f"2004-01-01T00:{n // 60:02}:{n % 60:02}Z") for n in range(600)
    ]
    imported = await load(pool, b"".join(lines))
    assert (imported.messages, imported.events) == (200, 400)
    # With the join and the message. A repeated batch reads a page again.
    once = range(20_002, 2 * 20_002)
    assert read.pop("history.blocks") in once
    assert read.pop("history.latest_entries") in once
    assert not read
    # The lines cover an hour of the entries, which are a second apart.
    lines = [line("join", user=f"v{n}", at=f"2010-01-01T01:{n // 60:02}:{n % 60:02}Z") for n in range(600)]
    assert (await load(pool, b"".join(lines))).events == 600
    assert read.pop("history.blocks") in once
    assert read.pop("history.latest_entries") in once
    assert 600 <= read.pop("history.events_at") <= 12 * 3 * 500
    assert not read


FILL_EVENTS = Statement(
    "test.fill_events",
    int,
    """
    WITH head AS (
        UPDATE rooms
        SET last_seq = last_seq + $2
        WHERE id = $1
        RETURNING last_seq - $2 AS seq
    )
    INSERT INTO room_events (room_id, seq, kind, user_id, created_at)
    SELECT $1, head.seq + n, 'joined', gen_random_uuid(), timestamptz '2010-01-01 00:00:00Z' + n * interval '1 s'
    FROM head, generate_series(1, $2) AS n
    """,
)
