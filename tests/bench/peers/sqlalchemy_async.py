"""The usual one: SQLAlchemy's async engine, a session and a commit per message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, NamedTuple

from fastapi import FastAPI
from sqlalchemy import JSON, BigInteger, Integer, MetaData, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .common import Insert, Message, add_socket


class Base(DeclarativeBase):
    """The metadata's owner."""


class Row(Base):
    """A message."""

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    room_id: Mapped[str]
    from_user: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    timestamp: Mapped[int] = mapped_column(BigInteger)


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_app(url: str) -> FastAPI:
    """Return the application over the database at *url*."""
    lifespan, insert = open_database(url)
    app = FastAPI(lifespan=lifespan)
    add_socket(app, insert)
    return app


class Database(NamedTuple):
    """What an application needs of a database.

    Attributes:
        sessions: Makes sessions.
        turn: What has to be held while something is written.
    """

    lifespan: Lifespan
    sessions: async_sessionmaker[AsyncSession]
    turn: AbstractAsyncContextManager[Any]


def open_tables(url: str, metadata: MetaData) -> Database:
    """Return the database at *url*, which gets the tables of *metadata* when the application starts."""
    engine = create_async_engine(url)
    is_sqlite = engine.dialect.name == "sqlite"
    if is_sqlite:

        @event.listens_for(engine.sync_engine, "connect")
        def set_pragmas(connection: Any, record: object) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.close()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        yield
        await engine.dispose()

    # SQLite takes one writer: without a turn the handlers would poll each other's locks, which is slower still.
    turn = asyncio.Lock() if is_sqlite else nullcontext()
    return Database(lifespan, async_sessionmaker(engine, expire_on_commit=False), turn)


def open_database(url: str) -> tuple[Lifespan, Insert]:
    """Return what an application needs of the messages at *url*: its lifespan, and what inserts one."""
    lifespan, sessions, turn = open_tables(url, Base.metadata)

    async def insert(room_id: str, user_id: str, message: Message) -> int:
        async with turn, sessions() as session:
            row = Row(
                room_id=room_id,
                from_user=user_id,
                data=message.model_dump(),
                timestamp=time.time_ns() // 1_000_000,
            )
            session.add(row)
            await session.commit()
            return row.id

    return lifespan, insert
