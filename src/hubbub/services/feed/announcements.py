"""Announcements: messages on Redis that notify other processes of a log's growth. They may be lost.

On `room:` with the id of a room: `{"from": ..., "messages": [...], "seal": ...}`, the new messages in their order.
The list is empty when something else has happened, or when the messages are too large: the receiver then reads the
log. `marks` are how far members have read. With marks alone nothing is to be read, unless `grew` is true.

On `memberships`: `{"from": ..., "users": [...], "profiles": [...], "disconnected": [...], "seal": ...}`, users who
joined a room, changed profiles, and users whose followers end.

Any program that reaches Redis can publish on these channels. So everything except `users` is accepted only with a
valid MAC, `seal`, whose key processes read from PostgreSQL. Without it the receiver reads the log, as for any
other change. The users of `memberships` need no MAC, because their rooms are read from PostgreSQL.

A console asks all processes for their figures there, by `"asks": true`, and each answers with its `"figures"`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from hashlib import blake2b
from hmac import compare_digest
from math import inf
from secrets import token_bytes
from typing import Final, TypeAlias
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid4

from hubbub.commits import Commits, MembersJoined, MessagesSent, ProfileUpdated, ReadMarkMoved, RoomTouched
from hubbub.events import DECODING_ERRORS, MEMBERSHIPS_CHANNEL, room_channel
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.models import Message
from hubbub.postgres import Executor, Statement
from hubbub.redis import Connection, ReplyOrError
from hubbub.scheduling import EarliestTimer, OncePerTurn

logger = logging.getLogger("hubbub.feed")

MAX_BYTES: Final = 64 * 1024
"""The largest payload. Redis keeps a copy per subscribed process until it is sent, and cuts off a process that is
slow to take them. Three messages of the greatest length in ASCII fit, or a few hundred usual ones."""
MAX_MESSAGES: Final = 100
"""The most messages in one payload. It bounds what one announcement costs a receiver in one step of its loop."""
MARKS_DELAY_SECONDS: Final = 0.05
"""How long read marks wait for others, and for messages that go out anyway. A client that scrolls moves its mark
many times a second. A PUBLISH for each would make the call a third slower."""
MAX_MARKS: Final = 200
"""The most read marks in one payload, of 200 bytes each. Further ones are not announced."""
MAX_PROFILES: Final = 100
"""The most profiles in one payload, of up to 2 kB each without metadata, and 10 kB with the largest. Further ones
are not announced."""
MAX_PUBLISHING: Final = 8
"""Batches of PUBLISH that wait for an answer of one server at a time. Beyond them the announcements of a room
become one, which bounds what waits while Redis is slow."""
SIGNATURE_BYTES: Final = 16
"""The length of the MAC. 2 to the power of 128 guesses are out of reach."""
PUBLISH_DEADLINE_SECONDS: Final = 1.0
"""As long as the default heartbeat, which finds the change in each process that follows up to 100 rooms."""


class RoomAnnouncement(msgspec.Struct, frozen=True, omit_defaults=True, rename={"origin": "from"}):
    """New messages of a room, another change of its log, or how far members have read it, or several of these."""

    origin: str
    messages: list[Message]
    marks: list[ReadMarkMoved] = []
    grew: bool = False
    """Whether the log has also changed in a way that this announcement does not carry."""

    @property
    def must_be_read(self) -> bool:
        return self.grew or not (self.messages or self.marks)


class ProcessFigures(msgspec.Struct, frozen=True):
    """The figures of a process: its followers, and its sends in each bucket of `LatencyHistogram`."""

    followers: int
    sends: dict[int, int]


class UserAnnouncement(msgspec.Struct, frozen=True, omit_defaults=True, rename={"origin": "from"}):
    """Users who joined, changed profiles, users whose followers end, a console's question and the answer to it."""

    origin: str
    users: list[UUID]
    profiles: list[ProfileUpdated] = []
    disconnected: list[UUID] = []
    asks: bool = False
    figures: ProcessFigures | None = None


class PendingAnnouncements(msgspec.Struct):
    """The announcements that wait for one server."""

    rooms: dict[UUID, list[Message] | None] = {}
    """The new messages of each room. None: its log has to be read."""
    marks: dict[UUID, dict[UUID, ReadMarkMoved]] = {}
    """By room and user."""
    users: dict[UUID, None] = {}
    profiles: dict[UUID, ProfileUpdated] = {}
    disconnected: dict[UUID, None] = {}


Command: TypeAlias = "tuple[str, str, bytes]"

_READ_THE_LOG: Final = RoomAnnouncement("", [])
_NO_USERS: Final = UserAnnouncement("", [])
_decode_room = msgspec.json.Decoder(RoomAnnouncement).decode
_decode_users = msgspec.json.Decoder(UserAnnouncement).decode


class Announcements:
    """Announces what this process committed, and decodes what other processes announced.

    Each server of a cluster has batches of its own, so that one that hangs delays no room of another. The methods
    that announce or publish neither wait nor raise.
    """

    def __init__(self, connection: Connection, instrumentation: Instrumentation = SILENT) -> None:
        self._connection = connection
        self._instrumentation = instrumentation
        self._origin = uuid4().hex[:12]
        # Own announcements are dropped by this prefix, without a check of the MAC. So are forged ones, harmlessly.
        self._own_prefix = f'{{"from":"{self._origin}"'.encode()
        self._key = token_bytes(32)  # until `load_key`, announcements of no other process are believed
        self._pending: defaultdict[str, PendingAnnouncements] = defaultdict(PendingAnnouncements)  # by server
        self._publish = OncePerTurn(self._publish_all)
        self._publish_marks = EarliestTimer(lambda _: self._publish.request())
        self._publishing: Counter[str] = Counter()  # by server

    _KEY = Statement(
        "announcements.key",
        lambda announcement_key: announcement_key,
        """
        SELECT announcement_key
        FROM hubbub_schema_version
        """,
    )

    async def load_key(self, executor: Executor) -> None:
        """Read the key that the processes of this database share. Raises: Unavailable."""
        self._key = await executor.fetch_one(self._KEY) or self._key

    def close(self) -> None:
        """Announce the read marks that wait."""
        self._publish_marks.cancel()
        if any(pending.marks for pending in self._pending.values()):
            self._publish_all(inf)

    def register(self, commits: Commits) -> None:
        """Announce what this process commits from now on."""
        commits.on(MessagesSent, self._messages_sent)
        commits.on(RoomTouched, lambda change: self.room_touched(change.room_id))
        commits.on(MembersJoined, lambda change: self.users_joined(change.user_ids))
        commits.on(ReadMarkMoved, self.read_mark_moved)
        commits.on(ProfileUpdated, self.profile_updated)

    def _messages_sent(self, change: MessagesSent) -> None:
        for message in change.messages:
            self.message_sent(message)

    def message_sent(self, message: Message) -> None:
        """Announce the message."""
        server = self._server_of(message.room_id)
        rooms = self._pending[server].rooms
        messages = rooms.setdefault(message.room_id, [])
        if messages is not None and len(messages) < MAX_MESSAGES:
            messages.append(message)
        else:
            rooms[message.room_id] = None
        self._request_publish(server)

    def room_touched(self, room_id: UUID) -> None:
        """Announce that the log of the room has to be read."""
        server = self._server_of(room_id)
        self._pending[server].rooms[room_id] = None
        self._request_publish(server)

    def users_joined(self, user_ids: Iterable[UUID]) -> None:
        """Announce that these users joined a room."""
        self._pending[""].users |= dict.fromkeys(user_ids)
        self._request_publish()

    def read_mark_moved(self, change: ReadMarkMoved) -> None:
        """Announce how far a member has read."""
        marks = self._pending[self._server_of(change.room_id)].marks.setdefault(change.room_id, {})
        if len(marks) < MAX_MARKS or change.user_id in marks:
            marks[change.user_id] = change
        now = asyncio.get_running_loop().time()
        self._publish_marks.request(now + MARKS_DELAY_SECONDS, now)

    def profile_updated(self, change: ProfileUpdated) -> None:
        """Announce a profile."""
        profiles = self._pending[""].profiles
        if len(profiles) < MAX_PROFILES or change.user_id in profiles:
            profiles[change.user_id] = change
        self._request_publish()

    def user_disconnected(self, user_id: UUID) -> None:
        """Announce that the followers of the user end."""
        self._pending[""].disconnected[user_id] = None
        self._request_publish()

    def ask_for_figures(self) -> None:
        """Ask the other processes for their figures."""
        self._publish_users(UserAnnouncement(self._origin, [], asks=True))

    def publish_figures(self, figures: ProcessFigures) -> None:
        """Answer a process that asked."""
        self._publish_users(UserAnnouncement(self._origin, [], figures=figures))

    def _publish_users(self, announcement: UserAnnouncement) -> None:
        if self._publishing[""] < MAX_PUBLISHING:
            self._send("", [self._command(announcement)])

    def decode_room(self, payload: bytes) -> RoomAnnouncement | None:
        """The announcement of another process about a room. None for one of this process."""
        if payload.startswith(self._own_prefix):
            return None
        body = verify(self._key, payload)
        try:
            return _READ_THE_LOG if body is None else _decode_room(body)
        except DECODING_ERRORS:  # of another version
            return _READ_THE_LOG

    def decode_users(self, payload: bytes) -> UserAnnouncement:
        """The announcement of another process about users."""
        if payload.startswith(self._own_prefix):
            return _NO_USERS
        try:
            received = _decode_users(payload)
        except DECODING_ERRORS:
            return _NO_USERS
        needs_signature = received.profiles or received.disconnected or received.asks or received.figures
        if needs_signature and verify(self._key, payload) is None:
            return UserAnnouncement(received.origin, received.users)
        return received

    def _server_of(self, room_id: UUID) -> str:
        connection = self._connection
        return connection.server_of(room_channel(room_id)) if connection.is_cluster else ""

    def _request_publish(self, server: str = "") -> None:
        """Publish in the next turn of the event loop, with all else that is announced in this one.

        While too many batches have no answer, the next answer publishes.
        """
        if self._publishing[server] < MAX_PUBLISHING:
            self._publish.request()

    def _publish_all(self, most: float = MAX_PUBLISHING) -> None:
        """Announce what waits for the servers that have fewer than `most` batches to answer."""
        for server in [server for server in self._pending if self._publishing[server] < most]:
            self._send(server, self._commands(self._pending.pop(server)))

    def _commands(self, pending: PendingAnnouncements) -> list[Command]:
        rooms, marks = pending.rooms, pending.marks
        for room_id in marks:
            rooms.setdefault(room_id, [])
        commands = [
            ("PUBLISH", room_channel(room_id), self._encode(messages, marks.get(room_id, {})))
            for room_id, messages in rooms.items()
        ]
        if pending.users or pending.profiles or pending.disconnected:
            users, profiles = list(pending.users), list(pending.profiles.values())
            announcement = UserAnnouncement(self._origin, users, profiles, list(pending.disconnected))
            commands.append(self._command(announcement))
        return commands

    def _command(self, announcement: UserAnnouncement) -> Command:
        return "PUBLISH", MEMBERSHIPS_CHANNEL, sign(self._key, msgspec.json.encode(announcement))

    def _send(self, server: str, commands: list[Command]) -> None:
        self._publishing[server] += 1
        answers = self._connection.execute_many(commands, deadline_seconds=PUBLISH_DEADLINE_SECONDS)
        answers.add_done_callback(partial(self._published, server, len(commands)))

    def _encode(self, messages: list[Message] | None, moved: Mapping[UUID, ReadMarkMoved]) -> bytes:
        if messages and sum(len(message.content) for message in messages) > MAX_BYTES:
            messages = None
        marks = list(moved.values())
        must_read = messages is None
        announcement = RoomAnnouncement(self._origin, messages or [], marks, grew=must_read and bool(marks))
        payload = msgspec.json.encode(announcement)
        if len(payload) > MAX_BYTES:
            payload = msgspec.json.encode(RoomAnnouncement(self._origin, [], marks, grew=bool(marks)))
        return sign(self._key, payload)

    def _published(self, server: str, number: int, answers: asyncio.Future[list[ReplyOrError]]) -> None:
        self._publishing[server] -= 1
        if not self._publishing[server]:
            del self._publishing[server]
        failure = asyncio.CancelledError() if answers.cancelled() else answers.exception()
        lost = [failure] * number if failure else [one for one in answers.result() if isinstance(one, Exception)]
        if lost:
            logger.info("announcements of grown logs were lost: %s", lost[0])
            self._instrumentation.published(len(lost), is_lost=True)
        if number > len(lost):
            self._instrumentation.published(number - len(lost))
        if server in self._pending:
            self._publish.request()


def sign(key: bytes, body: bytes) -> bytes:
    """The body, a JSON object, with the MAC of it as a last member. Readers that know none skip it."""
    return b'%b,"seal":"%b"}' % (body[:-1], _mac(key, body))


def verify(key: bytes, payload: bytes) -> bytes | None:
    """The body of a payload, or None if it was not signed with this key."""
    body = payload[:_SIGNATURE] + b"}"
    return body if compare_digest(payload, sign(key, body)) else None


def _mac(key: bytes, body: bytes) -> bytes:
    return blake2b(body, digest_size=SIGNATURE_BYTES, key=key).hexdigest().encode()


_SIGNATURE: Final = 1 - len(sign(b"", b"{}"))
"""Where the signature begins in a payload, counted from its end."""
