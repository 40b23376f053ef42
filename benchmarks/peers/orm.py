"""SQLAlchemy 2 with its ORM and asyncio on asyncpg, with models, sessions and a pool of 20."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import URL, DateTime, ForeignKey, func, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.contenders import Window
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import closed_loop
from benchmarks.peers.drivers import POOL
from benchmarks.peers.node import CONTENT


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - as SQLAlchemy's manual has it


class User(Base):
    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str]
    username: Mapped[str]
    password_hash: Mapped[str]
    avatar_url: Mapped[str | None]
    is_online: Mapped[bool]
    last_seen: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Room(Base):
    __tablename__ = "rooms"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    last_seq: Mapped[int]


class RoomUser(Base):
    __tablename__ = "room_users"

    room_id: Mapped[UUID] = mapped_column(ForeignKey("rooms.id"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), primary_key=True)
    joined_at: Mapped[datetime]
    role: Mapped[str]
    last_read_message_id: Mapped[UUID | None]
    last_read_seq: Mapped[int]


class Message(Base):
    __tablename__ = "messages"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    room_id: Mapped[UUID] = mapped_column(ForeignKey("rooms.id"))
    seq: Mapped[int]
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    content: Mapped[str]
    message_type: Mapped[str]
    is_edited: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]


@asynccontextmanager
async def sqlalchemy_sends(context: Context, callers: int) -> AsyncIterator[Window]:
    settings = context.settings.postgres
    url = URL.create(
        "postgresql+asyncpg",
        username=settings.user,
        password=settings.password,
        host=settings.host,
        port=settings.port,
        database=settings.database,
    )
    engine = create_async_engine(url, pool_size=POOL, max_overflow=0, pool_timeout=60)
    session_of = async_sessionmaker(engine, expire_on_commit=False)

    async def send(number: int) -> None:
        room_id, user_id = ROOMS[number % PEOPLE], USERS[number % PEOPLE]
        async with session_of.begin() as session:
            assert await session.get(RoomUser, (room_id, user_id))
            seq = await session.scalar(
                update(Room).where(Room.id == room_id).values(last_seq=Room.last_seq + 1).returning(Room.last_seq)
            )
            session.add(
                Message(
                    id=uuid4(), room_id=room_id, seq=seq, user_id=user_id, content=CONTENT, message_type="text"
                )
            )

    try:
        yield lambda seconds: closed_loop(send, callers, seconds)
    finally:
        await engine.dispose()
