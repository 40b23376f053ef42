"""Redis: one connection for commands, one for subscriptions. The only importer of hiredis."""

from hubbub.redis.cluster import ClusterConnection, connection_to
from hubbub.redis.commands import NOW, Connection, ReplyOrError, Script
from hubbub.redis.replies import Part, Reply, ReplyError
from hubbub.redis.sharded import ClusterSubscriptions, subscriptions_to
from hubbub.redis.subscriptions import CallbackSubscription, Gap, Received, Subscription, Subscriptions

__all__ = [
    "NOW",
    "CallbackSubscription",
    "ClusterConnection",
    "ClusterSubscriptions",
    "Connection",
    "Gap",
    "Part",
    "Received",
    "Reply",
    "ReplyError",
    "ReplyOrError",
    "Script",
    "Subscription",
    "Subscriptions",
    "connection_to",
    "subscriptions_to",
]
