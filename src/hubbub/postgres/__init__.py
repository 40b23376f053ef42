"""PostgreSQL: the only package that imports asyncpg."""

from hubbub.postgres.borrowed import ApplicationConnection, ApplicationTransaction, borrow
from hubbub.postgres.connection import connect
from hubbub.postgres.errors import LockNotAvailable
from hubbub.postgres.pool import Pool
from hubbub.postgres.replicas import Replicas
from hubbub.postgres.statement import (
    NOT_SUPPORTED,
    TABLES,
    Copy,
    Executor,
    FastUUID,
    Lookup,
    Row,
    Statement,
    as_fast_uuid,
    key_of_account,
    key_of_value,
    not_supported,
    uuid_of,
)
from hubbub.postgres.transaction import OpenTransaction, Record

__all__ = [
    "NOT_SUPPORTED",
    "TABLES",
    "ApplicationConnection",
    "ApplicationTransaction",
    "Copy",
    "Executor",
    "FastUUID",
    "LockNotAvailable",
    "Lookup",
    "OpenTransaction",
    "Pool",
    "Record",
    "Replicas",
    "Row",
    "Statement",
    "as_fast_uuid",
    "borrow",
    "connect",
    "key_of_account",
    "key_of_value",
    "not_supported",
    "uuid_of",
]
