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
        # In the order in which they came. Dicts, because a set has none.
        self._silent: dict[Session, None] = {}
        self._asking: dict[Session, None] = {}
        self._by_user: dict[str, dict[Session, None]] = {}

    @property
    def is_full(self) -> bool:
        """Whether another connection would be refused."""
        return len(self.sessions) + len(self._ending) >= self._limits.connections

    def add(self, session: Session) -> None:
        """Note a connection that has been upgraded.

        When ``limits.connecting`` have not been told ``connected``, the oldest of them is closed: whoever means to
        speak does so at once, so that those who never speak cannot keep others out. Of those whose ``connect`` has
        come the oldest is closed only where there are no others.
        """
        self.sessions.add(session)
        self._silent[session] = None
        if len(self._silent) + len(self._asking) > self._limits.connecting:
            oldest = (
                next(iter(self._silent))
                if len(self._silent) > 1
                else next(iter(self._asking or self._silent))
            )
            self._forget(oldest)
            self._metrics.refused.labels("connecting").inc()
            oldest.close(protocol.CLOSE_UNAUTHENTICATED, "no connect in time")

    def asks(self, session: Session) -> None:
        """Note that a connection's ``connect`` has come."""
        if session in self._silent:
            del self._silent[session]
            self._asking[session] = None

    def _forget(self, session: Session) -> None:
        self._silent.pop(session, None)
        self._asking.pop(session, None)

    def identify(self, session: Session, user_id: str) -> None:
        """Note whose a connection is.

        Raises:
            RateLimited: The user has ``limits.connections_per_user`` already.
        """
        mine = self._by_user.setdefault(user_id, {})
        if len(mine) >= self._limits.connections_per_user:
            raise RateLimited(f"a user has at most {self._limits.connections_per_user} connections")
        self._forget(session)
        mine[session] = None

    def remove(self, session: Session) -> None:
        """Forget a connection whose socket has ended."""
        self._ending.discard(session)

    def end(self, session: Session) -> None:
        """Note that a connection's session has ended; its socket counts until `remove`."""
        self._ending.add(session)
        self.sessions.discard(session)
        self._forget(session)
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
