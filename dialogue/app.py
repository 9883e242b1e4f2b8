"""`Dialogue`: puts the parts together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import fields
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Self

from .config import DirectRoom, EventType, Hook, Hooks, RoomConfig
from .decorators import HookDecorators
from .errors import ConfigError, LifespanNotRunning, StartError
from .events import Ack, Event
from .limits import Limits
from .overriding import UNCHANGED, Unchanged, check_archive, make_store, overridden
from .room_types import RoomTypes
from .server.handles import Client, RoomHandle, UserRooms
from .server.health import report
from .server.hook_archive import choose_archive
from .server.hooks import HookRegistry
from .server.hub import Hub
from .server.metrics import Metrics
from .server.session_records import SessionInfo
from .storage.archive import Archive
from .storage.base import Store

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI

    from .server.serving import Serving


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Dialogue(HookDecorators):
    """Rooms, their events, and what serves them.

    Building one does no I/O and binds no event loop; its lifespan may be entered again after it has ended.
    Instances share nothing.

    Args:
        rooms: By room id or pattern (``"dm:{a}:{b}"``).
        client_rooms: What a room is that clients make while running (``create_room``); None: they may make none.
        store: Where recorded events live: a URL (``sqlite+aiosqlite:///chat.db``), a `Store`, or None for memory.
        archive: Your own storage as an `Archive`, instead of the hooks ``on_cleanup`` and ``on_load``.
        hooks: Hooks in one place; the decorators add to them.
        limits: Every bound.
        on_store_failure: What a publish gets when the store refuses its append: ``"refuse"`` answers
            `StoreUnavailable` at once; ``"wait"`` keeps the event, in its place, and tries again until the store takes
            it or ``limits.append_timeout_seconds`` are over.
        allowed_origins: Origins whose pages may connect besides the server's own; ``"*"`` for any.
        logger: Where all parts log, the store too; ``logging.getLogger("dialogue")`` by default.

    Raises:
        ConfigError: A declaration is wrong; it names room and field and says what to do.
    """

    def __init__(
        self,
        rooms: Mapping[str, RoomConfig],
        *,
        client_rooms: RoomConfig | None = None,
        store: str | Store | None = None,
        archive: Archive | None = None,
        hooks: Hooks | None = None,
        limits: Limits | None = None,
        on_store_failure: Literal["refuse", "wait"] = "refuse",
        allowed_origins: Collection[str] = (),
        logger: logging.Logger | None = None,
    ) -> None:
        self.room_types = RoomTypes(rooms, client_rooms=client_rooms)
        self.limits = limits or Limits()
        self.logger = logger or logging.getLogger("dialogue")
        self.metrics = Metrics()
        self.store = make_store(store)
        self._archive = check_archive(archive)
        if on_store_failure not in ("refuse", "wait"):
            raise ConfigError(
                "Dialogue, field 'on_store_failure'",
                f"{on_store_failure!r} is not a choice",
                'Write "refuse" (the default) or "wait"',
            )
        self._on_store_failure = on_store_failure
        if isinstance(allowed_origins, str):
            raise ConfigError(
                "Dialogue, field 'allowed_origins'", "a string", "Write a list: ['https://example.com']"
            )
        self._allowed_origins = tuple(allowed_origins)
        super().__init__(HookRegistry(logger=self.logger))
        self._hub: Hub | None = None
        self._unflushed = 0
        self._has_run = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._router: APIRouter | None = None
        self._app: FastAPI | None = None
        self._serving: Serving | None = None
        if hooks is not None:
            for item in fields(hooks):
                function = getattr(hooks, item.name)
                if function is not None:
                    self._hooks.add(item.name, function)

    @contextmanager
    def override(
        self,
        *,
        store: str | Store | Unchanged | None = UNCHANGED,
        archive: Archive | Unchanged | None = UNCHANGED,
        limits: Limits | Unchanged | None = UNCHANGED,
        **hooks: Hook | None,
    ) -> Iterator[Self]:
        """Run with another store, archive, limits or hooks while the context is entered, e.g. in a test.

        Each argument has its constructor's meaning: ``store=None`` is memory, ``limits=None`` the defaults. A hook,
        by its name (``authenticate=None``, ``before_join=guard``), takes the place of all that are registered under
        it; None leaves none. What is registered meanwhile goes with the context. Overrides can be nested.

        Raises:
            ConfigError: The server is running; or a value or hook is not fit for its place.
            TypeError: There is no hook of such a name.
        """
        with overridden(self, store=store, archive=archive, limits=limits, hooks=hooks):
            yield self

    # -- running -------------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the lifespan is entered."""
        return self._hub is not None

    @property
    def on_store_failure(self) -> str:
        """What a publish does while the store refuses appends: ``refuse`` or ``wait``."""
        return self._on_store_failure

    @property
    def has_stopped(self) -> bool:
        """Whether the lifespan was entered and has ended."""
        return self._has_run and self._hub is None

    @property
    def is_development(self) -> bool:
        """Whether clients say themselves who they are, for want of an ``authenticate`` hook."""
        return not self._hooks.has("authenticate")

    @property
    def hides_rooms(self) -> bool:
        """Whether a ``can_see`` hook decides who is told of a room."""
        return self._hooks.has("can_see")

    @property
    def unflushed_events(self) -> int:
        """How many events the last stop could not hand over."""
        return self._unflushed

    def hub(self) -> Hub:
        """Return the running part.

        Raises:
            LifespanNotRunning: The lifespan is not entered.
        """
        if self._hub is None:
            raise LifespanNotRunning
        return self._hub

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Run the server side: open the store, serve until left, then stop gracefully.

        Raises:
            StartError: It is running already, or store or archive cannot be opened; the message names the remedy.
            ConfigError: The hooks do not fit together.
        """
        if self._hub is not None:
            raise StartError(
                "this Dialogue is running already: its router was included twice, or two applications serve it. "
                "Include it once; for a second server make a second Dialogue"
            )
        archive, is_readable = self._choose_archive()
        store = self.store  # What was opened is closed, also if an `override` ends before.
        hub = Hub(
            dialogue=self,
            room_types=self.room_types,
            store=store,
            archive=archive,
            is_archive_readable=is_readable,
            hooks=self._hooks,
            limits=self.limits,
            waits_for_store=self._on_store_failure == "wait",
            metrics=self.metrics,
            logger=self.logger,
            clock_ms=_clock_ms,
            random=Random(),
        )
        hub.context.app = app
        # Taken before the first await: of two lifespans entered at once one must lose.
        self._hub, self._loop = hub, asyncio.get_running_loop()
        self._has_run = True
        try:
            store.use_logger(self.logger)
            await store.open()
            try:
                if archive is not None:
                    await archive.open(epoch=store.epoch)
                self._warn(archive)
                async with hub:
                    yield
                self._unflushed = hub.unflushed_events
            finally:
                try:
                    if archive is not None:
                        await archive.aclose()
                finally:
                    await store.aclose_within(hub.stop.seconds_to_close)
        finally:
            self._hub = self._loop = None

    def _choose_archive(self) -> tuple[Archive | None, bool]:
        """Return what evicted events go to, if anything, and whether they can be read there."""
        return choose_archive(self._archive, self._hooks, is_store_durable=self.store.is_durable)

    def _warn(self, archive: Archive | None) -> None:
        if self.is_development:
            self.logger.warning(
                "development mode: there is no authenticate hook, so clients say themselves who they are"
            )
        if archive is None and not self.store.is_durable:
            types = self.room_types.all
            names = {name for room_type in types for name, event in room_type.events.items() if event.history}
            if names or any(room_type.admits_any_event for room_type in types):
                self.logger.warning(
                    "recorded events (%s) are kept in memory only: what leaves the ring is forgotten. "
                    "Give Dialogue a store= or an on_cleanup hook to keep them",
                    ", ".join(sorted(names)) or "*",
                )

    async def start(self, *, host: str = "127.0.0.1", port: int = 3000, app: FastAPI | None = None) -> None:
        """Serve in the running event loop, and return when connections are answered; `stop` ends it.

        Signals stay the program's own. After `stop` it may be started again, with a store that can be.

        Args:
            host: The address to listen on; by default only this machine can connect.
            port: 0 for any free one, which `port` then tells.
            app: An application that includes `router`; `app` of this Dialogue by default.

        Raises:
            StartError: The port is taken, or store or archive cannot be opened; the message names the remedy.
            ConfigError: The hooks do not fit together.
            RuntimeError: It is running already.
        """
        if self._serving is not None or self._hub is not None:
            raise RuntimeError(
                "this Dialogue is running already; await dialogue.stop() before it starts again"
            )
        from .server.serving import Serving

        # Taken before the first await: of two starts at once one must lose.
        self._serving = serving = Serving(self, app or self.app)
        try:
            await serving.start(host, port)
        except BaseException:
            self._serving = None
            raise

    async def stop(self) -> None:
        """Stop gracefully what `start` serves, within ``limits.stop_timeout_seconds``; nothing happens without.

        May be called twice, and at the same time. `unflushed_events` tells afterwards what could not be handed over.

        Raises:
            Exception: With which the server has failed, if it has; it is logged when that happens, too.
        """
        serving = self._serving
        if serving is None:
            return
        try:
            await serving.aclose()
        finally:
            if serving.has_ended and self._serving is serving:
                self._serving = None

    @property
    def port(self) -> int | None:
        """The port that `start` serves; None when it serves none."""
        return None if self._serving is None else self._serving.port

    # -- publishing and reading ----------------------------------------------------------------------------------

    async def trigger(
        self,
        room_id: str,
        event: str | EventType[Any],
        data: Any = None,
        *,
        sender: str = "system",
        meta: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Ack:
        """Publish an event into a room and wait until it is recorded and told.

        Args:
            data: An instance of the event's schema, or plain data that fits it.
            sender: The user it is from.
            meta: Beside the data; an object.
            key: Idempotency key, scoped to (room, sender): the same key records once.

        Raises:
            RoomNotFound, EventNotAllowed, ValidationFailed, MessageTooLarge, InvalidRequest, Blocked, Backpressure:
                It was not recorded (`InvalidRequest`: the key cannot be one).
            StoreUnavailable, Internal: It may have been recorded; retry with the same key.
            RuntimeError: Called inside ``before_each`` of the same room, which would wait for itself.
            LifespanNotRunning: The server side is not running.
        """
        return await self.hub().trigger(room_id, event, data, sender=sender, meta=meta, key=key)

    def trigger_sync(
        self,
        room_id: str,
        event: str | EventType[Any],
        data: Any = None,
        *,
        sender: str = "system",
        meta: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Ack:
        """Publish from another thread, e.g. a ``def`` endpoint; blocks until it is recorded.

        Raises:
            RuntimeError: Called in the event loop's own thread, which it would block for good.
            CommandError: See `trigger`.
        """
        hub, loop = self.hub(), self._loop
        assert loop is not None
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            raise RuntimeError("trigger_sync would block the event loop; await dialogue.trigger(...) here")
        future = asyncio.run_coroutine_threadsafe(
            hub.trigger(room_id, event, data, sender=sender, meta=meta, key=key), loop
        )
        return future.result()

    async def edit(
        self, room_id: str, seq: int, data: Any, *, sender: str = "system", key: str | None = None
    ) -> Ack:
        """Replace the data of an event, and tell its room with a recorded ``$edit``.

        The event keeps its seq, sender, timestamp and meta; whoever reads it from now on gets the new data.

        Args:
            seq: The event's.
            data: An instance of the event's schema, or plain data that fits it.
            sender: Who edits.
            key: Idempotency key, scoped to (room, sender).

        Returns:
            What was recorded: seq and id are those of the ``$edit``.

        Raises:
            InvalidRequest: There is no such event in the log, or it is deleted.
            CommandError: As for `trigger`.
            LifespanNotRunning: The server side is not running.
        """
        hub = self.hub()
        return await hub.changes.change(room_id, seq, encode=hub.encoder(data), sender=sender, key=key)

    async def delete(self, room_id: str, seq: int, *, sender: str = "system", key: str | None = None) -> Ack:
        """Delete an event: it becomes a tombstone without data and meta; its room is told with a ``$delete``.

        Args:
            seq: The event's.
            sender: Who deletes.
            key: Idempotency key, scoped to (room, sender).

        Returns:
            What was recorded: seq and id are those of the ``$delete``.

        Raises:
            InvalidRequest: There is no such event in the log, or it is deleted.
            CommandError: As for `trigger`.
            LifespanNotRunning: The server side is not running.
        """
        return await self.hub().changes.change(room_id, seq, encode=None, sender=sender, key=key)

    async def erase_user(self, user_id: str) -> int:
        """Erase everything that a user has sent: data, meta, key and name.

        Each event becomes a tombstone from ``$erased``, and its room is told with a ``$delete``. Then, when no
        hand-over is under way that could still carry it, ``on_erase`` (or the archive) is asked to do the same.
        What the user sends meanwhile is not waited for: keep them out first. Called again it goes on where it ended.

        Returns:
            How many events in the log were erased.

        Raises:
            ConfigError: There is an ``on_cleanup`` hook but no ``on_erase``; nothing was erased.
            ValidationFailed: It is no user's id, or the server's own (``system``, ``$erased``).
            CommandError: The store did not take it all; call again.
            LifespanNotRunning: The server side is not running.
        """
        return await self.hub().changes.erase_user(user_id)

    async def feed(self, *, after: int | None = None, epoch: str | None = None) -> AsyncGenerator[Event[Any]]:
        """Iterate over the recorded events of all rooms in order of ``id``: those in the log, then live ones.

        Each event comes once. Whoever keeps the last ``event.id`` that was dealt with, and gives it as *after* the
        next time, misses none. When the store cannot be read the iteration waits for it; when the server stops, it
        ends.

        Args:
            after: Exclusive; 0 for everything there is. None: from now on.
            epoch: The ``event.epoch`` that *after* belongs to; checked if given.

        Raises:
            CursorExpired: Events above *after* have been removed from the log; or *epoch* is another one, or *after*
                above all that the log has recorded, as after a restored backup.
            ValueError: *after* is no id.
            LifespanNotRunning: The server side is not running.
        """
        async with aclosing(self.hub().feeds.read(after, epoch)) as events:
            async for event in events:
                yield event

    def room(self, room_id: str) -> RoomHandle:
        """Return a room by its id; it need not be in memory.

        Raises:
            RoomNotFound: No declaration covers it.
        """
        return RoomHandle(self.hub(), room_id)

    def rooms(self) -> list[RoomHandle]:
        """Return the declared rooms, those that were made while running, and the pattern rooms in memory."""
        hub = self.hub()
        room_ids = dict.fromkeys([*self.room_types.exact, *hub.registry.records, *hub.rooms])
        return [RoomHandle(hub, room_id) for room_id in room_ids if hub.registry.find(room_id)]

    # -- rooms while running -------------------------------------------------------------------------------------

    async def create_room(
        self,
        room_id: str,
        *,
        name: str = "",
        description: str = "",
        max_size: int | None = None,
        created_by_id: str | None = None,
    ) -> RoomHandle:
        """Make a room; it is kept in the store, and everyone who may see it is told.

        What it is says the pattern that covers its id, else ``client_rooms``.

        Args:
            max_size: Most connections in it; None for what is declared.
            created_by_id: The user who may delete it over a connection.

        Raises:
            InvalidRequest: Something of the above cannot be.
            ValidationFailed: *created_by_id* cannot be a user.
            RoomExists: It is declared, or was made already.
            PermissionDenied: No declaration covers it.
            RateLimited: There are ``limits.created_rooms``.
            StoreUnavailable: The store does not take it.
            LifespanNotRunning: The server side is not running.
        """
        return await self.hub().registry.create(
            room_id, name=name, description=description, max_size=max_size, created_by_id=created_by_id
        )

    async def update_room(
        self,
        room_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        max_size: int | Literal["unchanged"] | None = "unchanged",
    ) -> RoomHandle:
        """Change a room that was made while running; what is left out stays. Everyone who may see it is told.

        Raises:
            RoomNotFound: There is no such room.
            PermissionDenied: It is declared.
            CommandError: As for `create_room`.
        """
        return await self.hub().registry.update(
            room_id, name=name, description=description, max_size=max_size
        )

    async def delete_room(self, room_id: str) -> None:
        """Delete a room that was made while running, or one of a pattern: its history, members and connections.

        What the archive has not got is handed over first; what it has got stays there. The room's seqs go on where
        they were, should it be made again. Everyone who may see it is told.

        Raises:
            RoomNotFound: There is no such room.
            PermissionDenied: It is declared under its own id.
            StoreUnavailable: The store or the archive does not take it; the room is still there, and what was not
                removed of its history too.
        """
        await self.hub().registry.delete(room_id)

    def direct_room(self, user_id: str, other_id: str, *, template: str | None = None) -> RoomHandle:
        """Return the `DirectRoom` of two users.

        Args:
            template: The pattern that it is declared under, where there are several.

        Raises:
            ConfigError: No `DirectRoom` is declared, or several and no *template* says which.
            RoomNotFound: One of the ids cannot be part of a room's id.
        """
        found = [
            room_type
            for room_type in self.room_types.patterns
            if isinstance(room_type.config, DirectRoom) and template in (None, room_type.template)
        ]
        if len(found) != 1 or found[0].pattern is None:
            raise ConfigError(
                "direct_room",
                "no DirectRoom is declared so" if not found else "several are declared",
                'Declare "dm:{a}:{b}": DirectRoom(...)' if not found else "Name one: template=",
            )
        pair = dict(zip(found[0].pattern.parameters, sorted((user_id, other_id)), strict=True))
        return RoomHandle(self.hub(), found[0].template.format_map(pair))

    # -- clients -------------------------------------------------------------------------------------------------

    def clients(self) -> list[Client]:
        """Return all connected clients."""
        return self.hub().context.clients

    def clients_of(self, user_id: str) -> list[Client]:
        """Return a user's connections, the oldest first."""
        return [session.client for session in self.hub().connections.of(user_id)]

    def rooms_of(self, user_id: str) -> UserRooms:
        """Return the rooms that a user's connections are in."""
        return UserRooms(self.hub(), user_id)

    def is_in_room(self, user_id: str, room_id: str) -> bool:
        """Whether one of a user's connections is in a room."""
        return any(room_id in client.rooms for client in self.clients_of(user_id))

    async def remove_from_room(
        self, user_id: str, room_id: str, *, reason: str = "removed by the server"
    ) -> None:
        """Take a user out of a room at once: all connections, the inbox, and answers that are being made.

        Whether the user may come back is for ``before_join`` to say.

        Raises:
            RoomNotFound: There is no such room.
            StoreUnavailable: The inbox could not be written; everything else is done.
        """
        await self.hub().remove_from_room(user_id, room_id, reason=reason)

    # -- the inbox -----------------------------------------------------------------------------------------------

    async def add_member(self, room_id: str, user_id: str) -> None:
        """Put a room into a user's inbox, as the first join of it does: from now on its events are unread.

        Whether the user may read the room is still for ``before_join`` to say. Does nothing for a member.

        Raises:
            RoomNotFound: There is no such room.
            ValidationFailed: It is no user's id.
            StoreUnavailable: It is not known to be there.
        """
        await self.hub().inbox.add_member(room_id, user_id)

    async def unread(self, user_id: str, rooms: Collection[str] | None = None) -> dict[str, int]:
        """Return how many events are unread in the rooms of a user's inbox, in the order of their ids; asks no guard.

        Args:
            rooms: Only in these; None for all. Rooms that are not in the inbox are left out.

        Raises:
            StoreUnavailable: The store cannot be read.
            LifespanNotRunning: The server side is not running.
        """
        return await self.hub().inbox.unread(user_id, rooms)

    async def mark_read(self, user_id: str, room_id: str, seq: int) -> int:
        """Mark a room as read through *seq* for a user; asks no guard. The user's connections are told.

        Args:
            seq: Inclusive; beyond the newest event it means that one. A marker never moves backwards.

        Returns:
            How many events are unread then.

        Raises:
            RoomNotFound: There is no such room.
            NotJoined: It is not in the user's inbox.
            InvalidRequest: *seq* is no seq.
            StoreUnavailable: It is not known to be marked.
            LifespanNotRunning: The server side is not running.
        """
        return await self.hub().inbox.mark_read(user_id, room_id, seq)

    async def sessions(self, user_id: str | None = None, *, limit: int = 100) -> list[SessionInfo]:
        """Return the connections that are open, and those that were, the last seen first.

        They outlive a restart, as long as the store does, and are kept for ``limits.session_retention_seconds``.

        Args:
            user_id: Only of this user; None for all.
            limit: Most sessions to return; at least 1.

        Raises:
            StoreUnavailable: The store cannot be read.
            LifespanNotRunning: The server side is not running.
        """
        return await self.hub().session_records.sessions(user_id, limit=limit)

    # -- serving -------------------------------------------------------------------------------------------------

    @property
    def router(self) -> APIRouter:
        """The FastAPI router: ``/ws``, the routes below ``/rooms``, and ``/dialogue.js``.

        Include it once; its lifespan comes along.
        """
        if self._router is None:
            from .server.router import make_router

            self._router = make_router(self)
        return self._router

    @property
    def ops_router(self) -> APIRouter:
        """A FastAPI router with ``/health`` and ``/metrics``, to include where operators may see them."""
        from .server.router import make_ops_router

        return make_ops_router(self)

    @property
    def app(self) -> FastAPI:
        """A FastAPI application with the router, ``/health`` and ``/metrics``."""
        if self._app is None:
            from .server.router import make_app

            self._app = make_app(self)
        return self._app

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The further origins that were declared."""
        return self._allowed_origins

    def health(self) -> dict[str, Any]:
        """Return the state of each tier; see `dialogue.server.health.report`."""
        return report(self._hub)
