"""From what a caller gives to drafts that can be sent. What is refused here costs no round trip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from uuid_utils import uuid7

from hubbub import inputs
from hubbub.errors import Invalid
from hubbub.models import NewMessage
from hubbub.postgres import FastUUID, as_fast_uuid
from hubbub.repositories.messages.sending import Draft

# For a bounded time in which the room is locked: about a second on a busy machine of 2 cores.
MOST_AT_ONCE: Final = 10_000


def drafted(room_id: UUID, user_id: UUID, new: NewMessage) -> Draft:
    """Raises `Invalid`."""
    draft = Draft(
        FastUUID(uuid7().bytes) if new.id is None else as_fast_uuid(inputs.uuid("id", new.id)),
        as_fast_uuid(room_id),
        as_fast_uuid(user_id),
        inputs.text("content", new.content, longest=inputs.CONTENT_LENGTH),
        inputs.message_type(new.message_type),
        None if new.reply_to is None else inputs.uuid("reply_to", new.reply_to),
        inputs.metadata(new.metadata),
    )
    if draft.reply_to is not None and draft.reply_to == draft.id:
        raise Invalid("reply_to", "must be another message")
    return draft


def drafted_all(room_id: UUID, user_id: UUID, news: Iterable[NewMessage]) -> list[Draft]:
    """Raises `Invalid`, whose field says which one is refused, as `drafts[3].content`."""
    drafts: dict[UUID, Draft] = {}
    for number, new in enumerate(news):
        if number == MOST_AT_ONCE:
            raise Invalid("drafts", f"must be at most {MOST_AT_ONCE}")
        if not isinstance(new, NewMessage):
            raise Invalid(f"drafts[{number}]", "must be a NewMessage")
        try:
            draft = drafted(room_id, user_id, new)
        except Invalid as refusal:
            raise Invalid(f"drafts[{number}].{refusal.field}", refusal.reason) from refusal
        if draft.id in drafts:
            raise Invalid(f"drafts[{number}].id", "must not be that of another of them")
        drafts[draft.id] = draft
    return list(drafts.values())
