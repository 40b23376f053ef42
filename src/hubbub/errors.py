"""Every error that hubbub raises.

    HubbubError
    ├── NotFound(kind, key)         no such user, room, message, membership
    ├── Conflict(what)              already taken, or an id reused with other content
    ├── Invalid(field, reason)      refused input; nothing was written
    ├── NotAMember(room_id, user_id)    also when there is no such room
    ├── Forbidden(action, reason)   the user may not do this; nothing was done
    ├── RateLimited(retry_after_seconds)    too many attempts; nothing was done
    ├── SchemaMismatch(found, wanted)   the database is older or newer than this code
    └── Unavailable(service, reason)    cannot be reached, or no answer in time

The error of a server is the `__cause__` of the one raised for it. No message holds a password, a token or the
content of a chat message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar
from uuid import UUID

Service = Literal["postgresql", "redis", "hub", "embedded"]

E = TypeVar("E", bound=BaseException)


class HubbubError(Exception):
    """The root of the tree. `except HubbubError` catches every error that hubbub raises on purpose."""


class NotFound(HubbubError):
    """There is no such thing. `kind` names the missing thing, and `key` is the value of the lookup."""

    def __init__(self, kind: str, key: object) -> None:
        super().__init__(f"there is no {kind} {key}")
        self.kind = kind
        self.key = key


class Conflict(HubbubError):
    """It already exists: an email or username that is taken, an id that was used with other content.

    `what` names the thing that is taken, for instance `email` or `message id`.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"this {what} is already in use")
        self.what = what


class Invalid(HubbubError):
    """Input that is refused before anything is written. `field` names the input, `reason` its mistake."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class NotAMember(HubbubError):
    """The user is not a member of the room, or there is no such room.

    The two are one error on purpose, so that the error does not reveal the existence of a private room.
    """

    def __init__(self, room_id: UUID, user_id: UUID) -> None:
        super().__init__(f"user {user_id} is not a member of room {room_id}")
        self.room_id = room_id
        self.user_id = user_id


class Forbidden(HubbubError):
    """The user may not do this, so nothing was done. `action` names the operation, `reason` the rule against it.

    A user who is not a member of the room gets `NotAMember` instead.
    """

    def __init__(self, action: str, reason: str) -> None:
        super().__init__(f"not allowed to {action}: {reason}")
        self.action = action
        self.reason = reason


class RateLimited(HubbubError):
    """There were too many attempts, so nothing was done. The next is possible after `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"too many attempts, the next is possible in {retry_after_seconds:.3g} s")
        self.retry_after_seconds = retry_after_seconds


class SchemaMismatch(HubbubError):
    """The schema of the database is not the one that this code was written for.

    `found` is the revision of the database, or None without a hubbub schema. `wanted` is the one of this code.
    """

    def __init__(self, found: str | None, wanted: str, hint: str) -> None:
        is_at = "has no tables of hubbub" if found is None else f"is at revision {found}"
        super().__init__(f"the database {is_at}, and this hubbub needs revision {wanted}: {hint}")
        self.found = found
        self.wanted = wanted
        self.hint = hint


class Unavailable(HubbubError):
    """A server cannot be reached, refuses to serve, or did not answer in time.

    `outcome_unknown` is True when a change may or may not have been made, because the connection was lost after
    the statement was sent. Repeat the call if it is idempotent, as a `send` with the same id is. Otherwise read
    first. `retryable` is True when the same call may succeed a moment later.
    """

    def __init__(
        self, service: Service, reason: str, *, outcome_unknown: bool = False, retryable: bool = True
    ) -> None:
        unknown = "; whether the change was made is unknown" if outcome_unknown else ""
        super().__init__(f"{service}: {reason}{unknown}")
        self.service = service
        self.reason = reason
        self.outcome_unknown = outcome_unknown
        self.retryable = retryable

    def for_another(self) -> Unavailable:
        """The same error, with the same cause, for another caller that it affects.

        One exception that is raised in many places would collect the tracebacks of all of them.
        """
        unknown, retryable = self.outcome_unknown, self.retryable
        own = Unavailable(self.service, self.reason, outcome_unknown=unknown, retryable=retryable)
        own.__cause__ = self.__cause__
        return own

    def with_unknown_outcome(self) -> Unavailable:
        """The same error, for a call of which an earlier attempt may have made the change."""
        return Unavailable(self.service, self.reason, outcome_unknown=True, retryable=self.retryable)


@contextmanager
def once_committed() -> Iterator[None]:
    """An `Unavailable` of this block has an unknown outcome.

    For a call of which an earlier step is committed, or an earlier attempt may be.
    """
    try:
        yield
    except Unavailable as failure:
        if failure.outcome_unknown:
            raise
        raise failure.with_unknown_outcome() from failure


def without_frames(error: E) -> E:
    """The same error, without the frames of its traceback and of those behind it.

    For an error of a login: a local of those frames has the password, under a name that no scrubber looks for.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
