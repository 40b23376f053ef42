"""PostgreSQL: the only package that imports asyncpg."""

from hubbub.postgres.connection import connect
from hubbub.postgres.copy import Copy, Row
from hubbub.postgres.executor import Executor
from hubbub.postgres.failures import Locked
from hubbub.postgres.ids import FastUUID, fast
from hubbub.postgres.lookup import Lookup
from hubbub.postgres.pool import Pool
from hubbub.postgres.statement import Statement
from hubbub.postgres.transaction import Transaction

__all__ = [
    "Copy",
    "Executor",
    "FastUUID",
    "Locked",
    "Lookup",
    "Pool",
    "Row",
    "Statement",
    "Transaction",
    "connect",
    "fast",
]
