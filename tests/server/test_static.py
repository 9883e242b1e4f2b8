"""What the router serves besides rooms: the browser client as caches want it, and the AsyncAPI document."""

from __future__ import annotations

import re
from email.utils import formatdate, parsedate_to_datetime
from typing import Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient

from dialogue import Dialogue, Identity
from dialogue.server.static import STATIC, StaticFile

from .harness import rooms, serve

FILES = {"dialogue.js": "text/javascript", "dialogue.d.ts": "application/typescript"}


@pytest.mark.parametrize("name", FILES)
async def test_a_client_file_is_asked_for_again_and_not_sent_again(name: str) -> None:
    """ETag and Last-Modified, 304 to whoever has it, and HEAD as GET without the body; over a real server."""
    content = (STATIC / name).read_bytes()
    app = FastAPI()
    app.include_router(Dialogue(rooms()).router, prefix="/d")
    async with serve(app) as address, httpx2.AsyncClient(base_url=f"http://{address}/d/") as http:
        first = await http.get(name)
        assert (first.status_code, first.content) == (200, content)
        assert first.headers["content-type"] == f"{FILES[name]}; charset=utf-8"
        assert first.headers["cache-control"] == "no-cache"
        assert first.headers["access-control-allow-origin"] == "*"
        tag, modified = first.headers["etag"], first.headers["last-modified"]
        assert re.fullmatch(r'"[0-9a-f]{20}"', tag)
        head = await http.head(name)
        assert (head.status_code, head.content) == (200, b"")
        kept = ("content-length", "content-type", "etag", "last-modified", "cache-control")
        assert [head.headers[key] for key in kept] == [first.headers[key] for key in kept]
        older = formatdate(parsedate_to_datetime(modified).timestamp() - 1, usegmt=True)
        for headers, status in (
            ({"if-none-match": tag}, 304),
            ({"if-none-match": f'"other", W/{tag}'}, 304),
            ({"if-none-match": "*"}, 304),
            ({"if-none-match": '"other"'}, 200),
            # The ETag alone counts where one is given.
            ({"if-none-match": '"other"', "if-modified-since": modified}, 200),
            ({"if-modified-since": modified}, 304),
            ({"if-modified-since": older}, 200),
            ({"if-modified-since": "yesterday"}, 200),
        ):
            for method in ("GET", "HEAD"):
                answer = await http.request(method, name, headers=headers)
                assert answer.status_code == status, (method, headers)
                assert answer.headers["etag"] == tag
                assert answer.headers["cache-control"] == "no-cache"
                assert answer.content == (content if (status, method) == (200, "GET") else b"")


async def test_what_is_asked_for_by_its_own_etag_is_kept() -> None:
    """Any other `?v=` could be of another version, which a node that is not updated yet would answer with its own."""
    with TestClient(Dialogue(rooms()).app) as http:
        tag = http.get("/dialogue.js").headers["etag"].strip('"')
        for query, said in (
            (f"v={tag}", "public, max-age=31536000, immutable"),
            ("v=x", "no-cache"),
            ("", "no-cache"),
        ):
            assert http.get(f"/dialogue.js?{query}").headers["cache-control"] == said


def test_a_file_that_changes_has_another_etag(tmp_path: Any) -> None:
    """It is read again."""
    path = tmp_path / "file.js"
    path.write_text("1")
    app = FastAPI()
    app.add_api_route("/file.js", StaticFile(path, media_type="text/javascript").answer)
    http = TestClient(app)
    first = http.get("/file.js")
    path.write_text("22")
    second = http.get("/file.js", headers={"if-none-match": first.headers["etag"]})
    assert (second.status_code, second.text) == (200, "22")
    assert second.headers["etag"] != first.headers["etag"]


def test_the_asyncapi_document_is_served_beside_the_socket() -> None:
    """It has the application's title and the address by which it was asked for, prefix included."""
    app = FastAPI(title="Shop", version="7")
    app.include_router(Dialogue(rooms()).router, prefix="/chat")
    http = TestClient(app, base_url="https://shop.example:8443")
    answer = http.get("/chat/asyncapi.json?x=1")
    assert answer.headers["cache-control"] == "no-cache"
    document = answer.json()
    assert (document["info"]["title"], document["info"]["version"]) == ("Shop", "7")
    assert document["servers"] == {
        "dialogue": {"host": "shop.example:8443", "protocol": "wss", "pathname": "/chat/ws"}
    }
    assert "general" in document["channels"]
    assert "securitySchemes" not in document["components"]
    assert "access-control-allow-origin" not in answer.headers
    for host in ("a b", "user@host", "", "[", "x?y"):
        again = http.get("/chat/asyncapi.json", headers={"host": host})
        assert again.status_code in (200, 400), host
        assert "user" not in again.text.partition('"servers"')[2]


def test_the_asyncapi_document_tells_of_authentication() -> None:
    """Also when the hook came after the document was asked for."""
    dialogue = Dialogue(rooms())
    http = TestClient(dialogue.app)
    assert "security" not in http.get("/asyncapi.json").json()["servers"]["dialogue"]

    @dialogue.authenticate
    def who(auth: dict[str, Any]) -> Identity:
        return Identity("ann")

    document = http.get("/asyncapi.json").json()
    assert document["servers"]["dialogue"]["security"] == [
        {"$ref": "#/components/securitySchemes/authenticate"}
    ]
    assert document["components"]["securitySchemes"]["authenticate"]["scheme"] == "bearer"


def test_the_asyncapi_document_is_as_hidden_as_openapi() -> None:
    """None without OpenAPI, none where a hook hides rooms, and the dependencies of the include hold."""
    app = FastAPI(openapi_url=None)
    app.include_router(Dialogue(rooms()).router)
    assert TestClient(app).get("/asyncapi.json").status_code == 404

    hiding = Dialogue(rooms())
    hiding.can_see(lambda room: False)
    http = TestClient(hiding.app)
    assert http.get("/asyncapi.json").status_code == 404
    assert http.get("/openapi.json").status_code == 200  # which names no room

    def guard() -> None:
        raise HTTPException(403)

    guarded = FastAPI()
    guarded.include_router(Dialogue(rooms()).router, dependencies=[Depends(guard)])
    assert TestClient(guarded).get("/asyncapi.json").status_code == 403
