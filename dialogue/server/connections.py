"""All connections, and whose they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import protocol
from ..errors import RateLimited
from ..limits import Limits
from .metrics import Metrics

if TYPE_CHECKING:
    from .session import Session


class Connections:
    """The open connections, by user once that is known.

    Attributes:
        sessions: All of them.
    """

    def __init__(self, *, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self.sessions: set[Session] = set()
        # A peer that does not read keeps its socket for a while after its session: it counts until then.
        self._ending: set[Session] = set()
        # In the order in which they came. A dict, because a set has none.
        self._connecting: dict[Session, None] = {}
        self._by_user: dict[str, dict[Session, None]] = {}

    @property
    def is_full(self) -> bool:
        """Whether another connection would be refused."""
        return len(self.sessions) + len(self._ending) >= self._limits.connections

    def add(self, session: Session) -> None:
        """Note a connection that has been upgraded.

        When ``limits.connecting`` have not said who they are, the oldest of them is closed: whoever means to speak
        does so at once, so that those who never speak cannot keep others out.
        """
        self.sessions.add(session)
        self._connecting[session] = None
        if len(self._connecting) > self._limits.connecting:
            oldest = next(iter(self._connecting))
            del self._connecting[oldest]
            self._metrics.refused.labels("connecting").inc()
            oldest.close(protocol.CLOSE_UNAUTHENTICATED, "no connect in time")

    def identify(self, session: Session, user_id: str) -> None:
        """Note whose a connection is.

        Raises:
            RateLimited: The user has ``limits.connections_per_user`` already.
        """
        mine = self._by_user.setdefault(user_id, {})
        if len(mine) >= self._limits.connections_per_user:
            raise RateLimited(f"a user has at most {self._limits.connections_per_user} connections")
        self._connecting.pop(session, None)
        mine[session] = None

    def remove(self, session: Session) -> None:
        """Forget a connection whose socket has ended."""
        self._ending.discard(session)

    def end(self, session: Session) -> None:
        """Note that a connection's session has ended; its socket counts until `remove`."""
        self._ending.add(session)
        self.sessions.discard(session)
        self._connecting.pop(session, None)
        mine = self._by_user.get(session.user_id)
        if mine is not None:
            mine.pop(session, None)
            if not mine:
                del self._by_user[session.user_id]

    def of(self, user_id: str) -> list[Session]:
        """Return a user's connections, the oldest first."""
        return list(self._by_user.get(user_id, ()))

    @property
    def users(self) -> list[str]:
        """The users that are connected."""
        return list(self._by_user)
