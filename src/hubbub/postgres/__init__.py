"""PostgreSQL: the only package that imports asyncpg."""

from hubbub.postgres.connection import connect
from hubbub.postgres.executor import Executor
from hubbub.postgres.lookup import Lookup
from hubbub.postgres.pool import Pool
from hubbub.postgres.statement import Statement
from hubbub.postgres.transaction import Transaction

__all__ = ["Executor", "Lookup", "Pool", "Statement", "Transaction", "connect"]
