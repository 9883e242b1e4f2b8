"""A small server that speaks the wire protocol: its rules without I/O, and a socket around them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

Message = dict[str, Any]
EPHEMERAL = "typing"
START_TIMESTAMP = 1_700_000_000_000


class FakeConnection:
    """What the server keeps for one connection: its outbox and its memberships."""

    def __init__(self, server: FakeServer, number: int) -> None:
        self.server = server
        self.client_id = f"c{number}"
        self.user_id = ""
        self.outbox: list[Message] = []
        self.subscriptions: dict[str, Any] = {}
        self.is_open = True
        self.commands: list[Message] = []
        self.wake: Callable[[], None] = lambda: None

    def send(self, message: Message) -> None:
        """Queue a message for the client."""
        if self.is_open:
            self.outbox.append(message)
            self.wake()

    def wants(self, room: str, event: str) -> bool:
        """Whether the event is subscribed to."""
        names = self.subscriptions.get(room, [])
        return names == "*" or event in names


class FakeServer:
    """Rooms, a log per room, and the answers to every command that the client sends."""

    def __init__(self) -> None:
        self.epoch = "e1"
        self.log: dict[str, list[Message]] = {}
        self.next_id = 0
        self.keys: dict[tuple[str, str, str], Message] = {}
        self.connections: list[FakeConnection] = []
        self.accepted_count = 0
        self.page_events = 200
        self.replay_events = 1000
        self.sync_events = 50
        self.ping_seconds = 25.0
        self.auto_join: str | None = None
        self.refuse_connect: str | None = None
        self.intercept: Callable[[FakeConnection, Message], bool] = lambda connection, command: False
        """Sees every command first; returns whether it has dealt with it."""

    def accept(self) -> FakeConnection:
        self.accepted_count += 1
        connection = FakeConnection(self, self.accepted_count)
        self.connections.append(connection)
        return connection

    def lose(self, connection: FakeConnection) -> None:
        connection.is_open = False
        connection.outbox.clear()
        if connection in self.connections:
            self.connections.remove(connection)

    def publish(
        self, room: str, event: str, data: Any = None, *, sender: str = "bob", key: str | None = None
    ) -> Message:
        """Record an event (or pass an ephemeral one on) and tell the subscribers."""
        events = self.log.setdefault(room, [])
        message: Message = {
            "type": "event",
            "room": room,
            "event": event,
            "id": None,
            "seq": None,
            "from": sender,
            "timestamp": START_TIMESTAMP + len(events),
            "data": data,
        }
        if event != EPHEMERAL:
            self.next_id += 1
            message["id"], message["seq"] = self.next_id, len(events) + 1
            events.append(message)
        if key is not None:
            self.keys[(room, sender, key)] = message
        for connection in self.connections:
            if connection.wants(room, event):
                connection.send({**message, "key": key} if connection.user_id == sender and key else message)
        return message

    def receive(self, connection: FakeConnection, command: Message) -> None:
        """Take one command."""
        connection.commands.append(command)
        if self.intercept(connection, command):
            return
        handler = getattr(self, "_" + command["type"], None)
        if handler is not None:
            handler(connection, command)

    def error(self, connection: FakeConnection, command: Message, code: str, **fields: Any) -> bool:
        """Refuse a command; return True, as `intercept` does for what it has dealt with."""
        connection.send({"type": "error", "ref": command.get("ref"), "code": code, "message": "no", **fields})
        return True

    def _connect(self, connection: FakeConnection, command: Message) -> None:
        if self.refuse_connect:
            self.error(connection, command, self.refuse_connect)
            return
        connection.user_id = (command.get("auth") or {}).get("user_id") or connection.client_id
        connection.send(
            {
                "type": "connected",
                "ref": command["ref"],
                "client_id": connection.client_id,
                "user_id": connection.user_id,
                "protocol": 1,
                "ping_seconds": self.ping_seconds,
                "limits": {"page_events": self.page_events, "frame_bytes": 1_048_576},
            }
        )
        if self.auto_join:
            self._join(connection, {"type": "join", "room": self.auto_join})

    def _join(self, connection: FakeConnection, command: Message) -> None:
        room = command["room"]
        if room.startswith("secret"):
            self.error(connection, command, "JOIN_DENIED")
            return
        events = self.log.setdefault(room, [])
        connection.subscriptions[room] = command.get("events", "*")
        since = command.get("since")
        wanted = [event for event in events if connection.wants(room, event["event"])]
        recovered = None
        if since is not None:
            missed = [event for event in wanted if event["seq"] > since["seq"]]
            recovered = (
                since["epoch"] == self.epoch
                and since["seq"] <= len(events)
                and len(missed) <= self.replay_events
            )
            wanted = missed if recovered else wanted
        sync = command.get("sync", self.sync_events)
        connection.send(
            {
                "type": "joined",
                **({"ref": command["ref"]} if "ref" in command else {}),
                "room": room,
                "name": room.title(),
                "seq": len(events),
                "epoch": self.epoch,
                "subscriptions": connection.subscriptions[room],
                "events": wanted if recovered else wanted[len(wanted) - min(len(wanted), sync) :],
                "has_more": False,
                "next": None,
                "recovered": recovered,
            }
        )

    def _leave(self, connection: FakeConnection, command: Message) -> None:
        connection.subscriptions.pop(command["room"], None)
        if "ref" in command:
            connection.send({"type": "ok", "ref": command["ref"]})

    def _subscribe(self, connection: FakeConnection, command: Message) -> None:
        self._change(connection, command, is_adding=True)

    def _unsubscribe(self, connection: FakeConnection, command: Message) -> None:
        self._change(connection, command, is_adding=False)

    def _change(self, connection: FakeConnection, command: Message, *, is_adding: bool) -> None:
        room, names = command["room"], command["events"]
        if room not in connection.subscriptions:
            self.error(connection, command, "NOT_JOINED")
            return
        now = connection.subscriptions[room]
        if names == "*":
            now = "*" if is_adding else []
        elif is_adding and now != "*":
            now = sorted({*now, *names})
        elif not is_adding:
            known = {event["event"] for event in self.log[room]} if now == "*" else set(now)
            now = sorted(known - set(names))
        connection.subscriptions[room] = now
        connection.send(
            {"type": "ok", "ref": command["ref"], "subscriptions": now, "seq": len(self.log[room])}
        )

    def _trigger(self, connection: FakeConnection, command: Message) -> None:
        room = command["room"]
        if room not in connection.subscriptions:
            self.error(connection, command, "NOT_JOINED")
            return
        key = command.get("key")
        known = self.keys.get((room, connection.user_id, key or ""))
        event = known or self.publish(
            room, command["event"], command.get("data"), sender=connection.user_id, key=key
        )
        connection.send(
            {
                "type": "ok",
                "ref": command["ref"],
                "room": room,
                "seq": event["seq"],
                "id": event["id"],
                "timestamp": event["timestamp"],
                **({"duplicate": True} if known else {}),
            }
        )

    def _rooms(self, connection: FakeConnection, command: Message) -> None:
        rooms = [
            {"id": room, "name": room.title(), "description": "", "size": 1, "max_size": None}
            for room in sorted(self.log)
        ]
        connection.send({"type": "rooms", "ref": command["ref"], "rooms": rooms})

    def _history(self, connection: FakeConnection, command: Message) -> None:
        room, name = command["room"], command.get("event")
        if room not in connection.subscriptions:
            self.error(connection, command, "NOT_JOINED")
            return
        events = [event for event in self.log[room] if name is None or event["event"] == name]
        limit = min(command.get("limit", 50), self.page_events)
        before, after = command.get("before"), command.get("after")
        if "cursor" in command:
            direction, _, number = command["cursor"].partition(":")
            before, after = (int(number), None) if direction == "before" else (None, int(number))
        if "start" in command:
            end = len(events) - command["start"]
            limit = min(limit, command["end"] - command["start"])
            events = events[: max(end, 0)]
        if after is not None:
            newer = [event for event in events if event["seq"] > after]
            page = newer[:limit]
            next_ = f"after:{page[-1]['seq']}" if len(newer) > len(page) else None
        else:
            older = [event for event in events if before is None or event["seq"] < before]
            page = older[len(older) - min(limit, len(older)) :]
            next_ = f"before:{page[0]['seq']}" if len(older) > len(page) else None
        connection.send(
            {
                "type": "history",
                "ref": command["ref"],
                "room": room,
                "event": name,
                "epoch": self.epoch,
                "events": page,
                "has_more": next_ is not None,
                "next": next_,
            }
        )


class FakeSocketServer(FakeServer):
    """The same behind a real socket."""

    def __init__(self) -> None:
        super().__init__()
        self.port = 0
        self.refuse_status: int | None = None
        self.handshake_count = 0
        self._sockets: dict[FakeConnection, ServerConnection] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def drop(self, code: int | None = None) -> None:
        """End all connections: without a close frame, or with *code*."""
        for connection, socket in list(self._sockets.items()):
            self.lose(connection)
            if code is None:
                socket.transport.abort()
            else:
                await socket.close(code)

    def mute(self) -> None:
        """Let the connections that stand neither hear nor say anything any more."""
        for connection in list(self.connections):
            self.lose(connection)

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshake_count += 1
        if request.path.partition("?")[0] != "/ws":
            return connection.respond(404, "no such path\n")
        if self.refuse_status is not None:
            return connection.respond(self.refuse_status, "not now\n")
        return None

    async def _serve(self, socket: ServerConnection) -> None:
        connection = self.accept()
        self._sockets[connection] = socket
        has_output = asyncio.Event()
        connection.wake = has_output.set

        async def write() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await has_output.wait()
                    has_output.clear()
                    messages, connection.outbox = connection.outbox, []
                    if messages:
                        await socket.send(msgspec.json.encode(messages).decode())

        writer = asyncio.create_task(write())
        try:
            async for frame in socket:
                commands = msgspec.json.decode(frame)
                for command in commands if isinstance(commands, list) else [commands]:
                    if connection.is_open:
                        self.receive(connection, command)
        except ConnectionClosed:
            pass
        finally:
            writer.cancel()
            await asyncio.wait([writer])
            self.lose(connection)
            self._sockets.pop(connection, None)

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[FakeSocketServer]:
        """Serve on a port of its own, or on *port*."""
        async with serve(
            self._serve, "127.0.0.1", port, process_request=self._process_request, close_timeout=0.2
        ) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            yield self


async def until(condition: Callable[[], Any], *, within_seconds: float = 30.0) -> None:
    """Wait until *condition* is true.

    Raises:
        TimeoutError: It was not in time.
    """
    async with asyncio.timeout(within_seconds):
        while not condition():  # what is waited for is not always an asyncio event
            await asyncio.sleep(0.002)
