"""Redis: one connection for commands, one for subscriptions. The only importer of hiredis."""

from hubbub.redis.commands import Connection, Outcome
from hubbub.redis.errors import ReplyError
from hubbub.redis.replies import Part, Reply
from hubbub.redis.script import FIND_DUE, NOW, Due, Script
from hubbub.redis.subscriptions import CallbackSubscription, Gap, Received, Subscription, Subscriptions

__all__ = [
    "FIND_DUE",
    "NOW",
    "CallbackSubscription",
    "Connection",
    "Due",
    "Gap",
    "Outcome",
    "Part",
    "Received",
    "Reply",
    "ReplyError",
    "Script",
    "Subscription",
    "Subscriptions",
]
