"""The sockets that a server listens on."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from ..errors import StartError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3000

BACKLOG_CONNECTIONS = 2048
"""How many connections the kernel keeps until they are accepted."""


def listen(host: str, port: int, *, tries: int = 1) -> socket.socket:
    """Return a listening socket; whoever gets it closes it.

    It listens at once, because a port that is only bound can still be taken by another program.

    Args:
        host: A name or an address of this machine.
        port: The first port to try; 0 for any free one.
        tries: How many ports to try, counting up from *port*; at least 1.

    Raises:
        StartError: The ports are taken or may not be used, or *host* is not this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise StartError(
            f"the host {host!r} is not known. Name an address of this machine: --host"
        ) from error
    # IPv4 first: of the two addresses of "localhost" it is the one that every program tries.
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    last = min(port + tries - 1, 65_535) if port else 0
    for candidate in range(port, last + 1):
        try:
            return _listen(family, (address[0], candidate, *address[2:]))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno in (errno.EACCES, errno.EPERM):
                raise StartError(
                    f"port {candidate} may not be used by this user. Choose one from 1024 up: --port"
                ) from error
            raise StartError(
                f"{host} cannot be listened on ({error.strerror}). Name an address of this machine: --host"
            ) from error
    if last > port:
        raise StartError(f"the ports {port} to {last} are all taken on {host}. Choose another: --port")
    raise StartError(
        f"port {port} is taken by another program on {host}. End that program, or choose another port: --port"
    )


def _listen(family: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a port stays taken for a minute after a stop. Windows means something else by it: sharing.
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and address[0] != "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG_CONNECTIONS)
        # A reloading server's children get it.
        listener.set_inheritable(True)
    except BaseException:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL under which a browser on this machine reaches *listener*."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
