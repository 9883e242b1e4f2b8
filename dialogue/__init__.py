"""Dialogue: realtime rooms whose history, once you give it a store, never gets lost.

Importing it imports neither SQLAlchemy nor FastAPI (held by ``tests/test_layering.py``); what needs them is
imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .app import Dialogue
from .config import DirectRoom, EventType, History, Hooks, Retention, RoomConfig, define_event
from .errors import (
    Backpressure,
    Blocked,
    CommandError,
    ConfigError,
    ConnectionLost,
    CursorExpired,
    DialogueError,
    EventNotAllowed,
    Internal,
    InvalidRequest,
    JoinDenied,
    LifespanNotRunning,
    LogLocked,
    MessageTooLarge,
    NotJoined,
    PermissionDenied,
    RateLimited,
    RoomExists,
    RoomFull,
    RoomNotFound,
    SchemaMismatch,
    StartError,
    StoreUnavailable,
    StreamBroken,
    Unauthenticated,
    ValidationFailed,
)
from .events import Ack, Event
from .folding import Folded, fold
from .limits import Limits, RoomLimits
from .server.handles import Client, Context, Identity, RoomHandle
from .server.session_records import SessionInfo
from .storage.archive import Archive
from .storage.base import Store
from .storage.memory import MemoryStore

if TYPE_CHECKING:
    from .client import DialogueClient
    from .storage.sql import SQLStore
    from .storage.sql_archive import SQLArchive

__version__ = "0.1.0"

_LAZY = {
    "DialogueClient": "dialogue.client",
    "SQLArchive": "dialogue.storage.sql_archive",
    "SQLStore": "dialogue.storage.sql",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'dialogue' has no attribute {name!r}")


__all__ = [
    "Ack",
    "Archive",
    "Backpressure",
    "Blocked",
    "Client",
    "CommandError",
    "ConfigError",
    "ConnectionLost",
    "Context",
    "CursorExpired",
    "Dialogue",
    "DialogueClient",
    "DialogueError",
    "DirectRoom",
    "Event",
    "EventNotAllowed",
    "EventType",
    "Folded",
    "History",
    "Hooks",
    "Identity",
    "Internal",
    "InvalidRequest",
    "JoinDenied",
    "LifespanNotRunning",
    "Limits",
    "LogLocked",
    "MemoryStore",
    "MessageTooLarge",
    "NotJoined",
    "PermissionDenied",
    "RateLimited",
    "Retention",
    "RoomConfig",
    "RoomExists",
    "RoomFull",
    "RoomHandle",
    "RoomLimits",
    "RoomNotFound",
    "SQLArchive",
    "SQLStore",
    "SchemaMismatch",
    "SessionInfo",
    "StartError",
    "Store",
    "StoreUnavailable",
    "StreamBroken",
    "Unauthenticated",
    "ValidationFailed",
    "define_event",
    "fold",
]
