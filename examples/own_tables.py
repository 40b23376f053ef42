"""A shop that stores an order in its own table, and a message in the customer's room, in one transaction.

    python examples/own_tables.py migrate             # Alembic makes the shop's table, after `hubbub migrate up`
    python examples/own_tables.py order ada tea 2     # stores the order and its confirmation, or neither
    python examples/own_tables.py orders ada

The tables of the shop are SQLAlchemy's, its migrations Alembic's. hubbub's tables are in the same database, and
the shop refers to them by foreign keys.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, CheckConstraint, Column, ForeignKey, Table, Uuid, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import hubbub
from hubbub import Hub, PostgresSettings, User

MIGRATIONS = Path(__file__).with_name("own_tables_migrations")
SHOP = "shop"


class Base(DeclarativeBase):
    pass


# Stubs of hubbub's tables, for the foreign keys. `include_object` in env.py keeps Alembic from changing them.
Table("users", Base.metadata, Column("id", Uuid, primary_key=True))
Table("messages", Base.metadata, Column("id", Uuid, primary_key=True))


class Order(Base):
    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("amount > 0", name="orders_amount_check"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    # Both columns have an index, because hubbub may delete the rows that they refer to.
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    message_id: Mapped[UUID | None] = mapped_column(ForeignKey("messages.id", ondelete="SET NULL"), unique=True)
    item: Mapped[str]
    amount: Mapped[int]


def engine_of(settings: PostgresSettings) -> AsyncEngine:
    """The shop's own connections to hubbub's database."""
    url = URL.create(
        "postgresql+asyncpg",
        settings.user,
        settings.password,
        settings.host,
        settings.port,
        settings.database,
    )
    return create_async_engine(url, connect_args={"ssl": settings.ssl()})


async def customer(hub: Hub, name: str) -> User:
    user = await hub.users.find_by_username(name)
    return user or await hub.users.create(f"{name}@example.org", name, "!")  # no password has this hash


async def order(hub: Hub, session: AsyncSession, user: User, item: str, amount: int) -> Order:
    """Place an order, and confirm it by a message of the shop. Both are committed together."""
    shop = await customer(hub, SHOP)
    async with session.begin():
        chat = hub.on(session)
        placed = Order(user_id=user.id, item=item, amount=amount)
        session.add(placed)
        await session.flush()  # now the order has its number
        room = await chat.rooms.direct(shop.id, user.id)
        message = await chat.messages.send(room.id, shop.id, f"Order {placed.id}: {amount} x {item}")
        placed.message_id = message.id
    # The commit has announced the message to the followers of the room.
    return placed


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Hub, AsyncSession]]:
    async with hubbub.open() as hub:
        engine = engine_of(hub.settings.postgres)
        try:
            async with AsyncSession(engine, expire_on_commit=False) as session:
                yield hub, session
        finally:
            await engine.dispose()


async def run(action: str, name: str, *details: str) -> None:
    async with opened() as (hub, session):
        user = await customer(hub, name)
        if action == "order":
            item, amount = details
            try:
                placed = await order(hub, session, user, item, int(amount))
            except IntegrityError as error:
                raise SystemExit("There is no such order, and no message of it.") from error
            sys.stdout.write(f"order {placed.id}\n")
        else:
            for placed in await session.scalars(select(Order).where(Order.user_id == user.id).order_by(Order.id)):
                sys.stdout.write(f"{placed.id} {placed.amount} x {placed.item}\n")


def alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["migrate"]:
            command.upgrade(alembic(), "head")
        case ["check"]:
            command.check(alembic())  # fails if the models and the database differ
        case ["order", name, item, amount]:
            asyncio.run(run("order", name, item, amount))
        case ["orders", name]:
            asyncio.run(run("orders", name))
        case _:
            sys.exit(__doc__)
