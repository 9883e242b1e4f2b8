"""The files of the browser client, as HTTP caches want them."""

from __future__ import annotations

import hashlib
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from threading import Lock

from fastapi import Request, Response

STATIC = Path(__file__).parent.parent / "static"


class StaticFile:
    """One file, answered with an ETag of its content; the same on every node that has the same version.

    A browser keeps it and asks each time whether it has changed, which costs a few hundred bytes. What is asked for by
    its own ETag (``?v=…``) can never change, and is not asked for again within a year.

    Args:
        path: Read when it is first asked for, and again after it has changed.
        media_type: With its charset.
    """

    def __init__(self, path: Path, *, media_type: str) -> None:
        self._path = path
        self._media_type = media_type
        self._lock = Lock()
        self._read: tuple[tuple[int, int], bytes, str] | None = None

    def answer(self, request: Request) -> Response:
        """Answer GET and HEAD; in a worker thread, since it may read the file."""
        content, tag, modified = self._content()
        is_its_own = request.query_params.get("v") == tag
        headers = {
            "ETag": f'"{tag}"',
            "Last-Modified": formatdate(modified, usegmt=True),
            "Cache-Control": "public, max-age=31536000, immutable" if is_its_own else "no-cache",
            # A module is fetched with CORS: pages of other origins may load it; whether they may connect is another
            # question.
            "Access-Control-Allow-Origin": "*",
        }
        if _is_known(request, tag, modified):
            return Response(status_code=304, headers=headers)
        headers |= {"Content-Type": self._media_type, "Content-Length": str(len(content))}
        return Response(b"" if request.method == "HEAD" else content, headers=headers)

    def _content(self) -> tuple[bytes, str, int]:
        state = self._path.stat()
        version = (state.st_mtime_ns, state.st_size)
        with self._lock:
            if self._read is None or self._read[0] != version:
                content = self._path.read_bytes()
                self._read = (version, content, hashlib.sha256(content).hexdigest()[:20])
            return self._read[1], self._read[2], int(state.st_mtime)


def _is_known(request: Request, tag: str, modified: int) -> bool:
    """Whether who asks has the file already (RFC 9110, section 13: the ETag alone counts where one is given)."""
    tags = request.headers.getlist("if-none-match")
    if tags:
        # A proxy that compresses may have made it a weak one.
        given = {one.strip().removeprefix("W/") for line in tags for one in line.split(",")}
        return "*" in given or f'"{tag}"' in given
    since = request.headers.get("if-modified-since")
    if since is None:
        return False
    try:
        return modified <= parsedate_to_datetime(since).timestamp()
    except (TypeError, ValueError, OverflowError):
        return False
