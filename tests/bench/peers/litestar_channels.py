"""Litestar: its channels with the backend in memory, and for each subscriber the background task that they offer."""

from __future__ import annotations

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.exceptions import WebSocketDisconnect


async def subscribe(socket: WebSocket, channels: ChannelsPlugin) -> None:
    """Send what is published."""
    await socket.accept()
    # What the plugin's own route does, and the line that says so.
    async with channels.start_subscription("bench") as subscriber:
        await socket.send_text("joined")
        async with subscriber.run_in_background(socket.send_text):
            while (await socket.receive())["type"] != "websocket.disconnect":
                continue


async def publish(socket: WebSocket, channels: ChannelsPlugin) -> None:
    """Publish what is sent."""
    await socket.accept()
    await socket.send_text("joined")
    try:
        while True:
            channels.publish(await socket.receive_text(), "bench")
    except WebSocketDisconnect:
        return


def make_app(store: str) -> Litestar:
    """Return the application; it has no store."""
    plugin = ChannelsPlugin(backend=MemoryChannelsBackend(), channels=["bench"])
    # Without its logging, which has a line for each connection.
    return Litestar(
        [websocket("/subscribe")(subscribe), websocket("/publish")(publish)],
        plugins=[plugin],
        openapi_config=None,
        logging_config=None,
    )
