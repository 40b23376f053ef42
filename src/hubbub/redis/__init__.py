"""The only importer of the Redis client: one connection for commands, one for subscriptions."""

from hubbub.redis.call import Outcome
from hubbub.redis.commands import Connection
from hubbub.redis.refusals import ReplyError
from hubbub.redis.replies import Part, Reply
from hubbub.redis.script import Script
from hubbub.redis.subscription import CallbackSubscription, Gap, Received, Subscription
from hubbub.redis.subscriptions import Subscriptions

__all__ = [
    "CallbackSubscription",
    "Connection",
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
