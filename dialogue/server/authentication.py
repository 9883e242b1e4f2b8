"""Who a connection or request belongs to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..errors import Internal, Unauthenticated, ValidationFailed
from .handles import Identity

if TYPE_CHECKING:
    from .hub import Hub


async def authenticate(hub: Hub, request: Any, auth: dict[str, Any], *, anonymous: Identity) -> Identity:
    """Return who *auth* and *request* belong to: what the ``authenticate`` hook says.

    Without a hook, in development mode, it is whoever ``auth`` claims to be, else *anonymous*.

    Args:
        request: The upgrade request, or the request.
        anonymous: Who it is if nobody says.

    Raises:
        Unauthenticated: The hook says so, or the identity has expired.
        ValidationFailed: In development mode: the user id cannot be one.
        Internal: The hook failed, or returned what is no identity.
    """
    if not hub.hooks.has("authenticate"):
        user_id = auth.get("user_id", auth.get("userId"))
        if user_id is None:
            return anonymous
        return Identity(
            hub.admission.check_connection_user(str(user_id) if isinstance(user_id, int) else user_id)
        )
    identity = await hub.hooks.ask(
        "authenticate", seconds=hub.limits.hook_seconds, context=hub.context, request=request, auth=auth
    )
    if not isinstance(identity, Identity):
        hub.log.error("authenticate returned a %s; return an Identity", type(identity).__name__)
        raise Internal
    try:
        hub.admission.check_connection_user(identity.user_id)
    except ValidationFailed:
        hub.log.error("authenticate returned a user_id that cannot be one")
        raise Internal from None
    if identity.expires_at is not None and identity.expires_at <= time.time():
        raise Unauthenticated("the credentials have expired")
    return identity
