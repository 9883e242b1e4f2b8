"""Which pages' requests are answered, and the headers with which a browser lets them read the answers."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response

from .websocket import is_address, origin_allowed

PREFLIGHT_SECONDS = 600
"""How long a browser may remember that another origin's page may call a route."""

ALLOWED_HEADERS = "Authorization, Content-Type, Last-Event-ID"
"""What a page of another origin may send; everything else that it may is safelisted by browsers."""


def is_request_allowed(
    connection: HTTPConnection, *, allowed_origins: Collection[str], is_development: bool
) -> bool:
    """Whether a request comes from a page that may read and publish, or from no page.

    Args:
        allowed_origins: Further origins than the server's own, or ``"*"`` for any.
        is_development: Whether everyone may be anyone: then the server's own name is looked at too.
    """
    origin, host = connection.headers.get("origin"), connection.headers.get("host")
    if not origin_allowed(
        origin,
        host=host,
        scheme=connection.url.scheme,
        allowed=allowed_origins,
        is_development=is_development,
    ):
        return False
    return origin is not None or not is_development or _is_own_name(host, allowed_origins)


def _is_own_name(host: str | None, allowed_origins: Collection[str]) -> bool:
    """Whether a page cannot have bound *host* to this machine itself.

    A page reads its own origin without an Origin header; in DNS rebinding that is this server under a name of the
    page's. Names without a dot are in no one's hands but the network's own.
    """
    if host is None or "*" in allowed_origins:
        return True
    try:
        name = urlsplit(f"//{host}").hostname
        if name is None:
            return False
        return "." not in name or is_address(name) or name in _names(allowed_origins)
    except ValueError:
        return False


def _names(origins: Collection[str]) -> set[str | None]:
    return {urlsplit(origin).hostname for origin in origins}


def cors_headers(headers: Headers, allowed_origins: Collection[str]) -> dict[str, str]:
    """Return the headers of an answer to a request that `is_request_allowed`.

    An origin is echoed, and may send cookies; where any may come (``"*"``), those that are not named may send none.
    """
    origin = headers.get("origin")
    if origin is None:
        return {}
    answer = {"Access-Control-Expose-Headers": "Retry-After"}
    if "*" in allowed_origins and origin not in allowed_origins:
        return answer | {"Access-Control-Allow-Origin": "*"}
    return answer | {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true"}


def preflight(headers: Headers, allowed_origins: Collection[str], *, methods: str) -> Response:
    """Return the answer to a browser that asks whether a page may call a route.

    Args:
        methods: What the route takes, as in an Allow header.
    """
    answer = {"Allow": methods, "Vary": "Origin"}
    if "origin" in headers and "access-control-request-method" in headers:
        answer |= cors_headers(headers, allowed_origins)
        answer |= {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": ALLOWED_HEADERS,
            "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        }
    return Response(status_code=204, headers=answer)
