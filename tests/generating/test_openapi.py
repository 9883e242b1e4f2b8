"""The OpenAPI document of the HTTP side: valid, complete, and of one mind with the AsyncAPI document."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openapi_spec_validator import validate

from dialogue import Dialogue
from dialogue.generating.asyncapi import asyncapi

from ..docs.pages import DOCS, read
from . import rich


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """As an application serves it that includes the router under a prefix."""
    app = FastAPI()
    app.include_router(rich.dialogue.router, prefix="/chat")
    found: dict[str, Any] = TestClient(app).get("/openapi.json").json()
    return found


def test_it_is_valid(document: dict[str, Any]) -> None:
    """By the schema of OpenAPI and the rules beside it."""
    assert document["openapi"].startswith("3.1")
    validate(document)


def test_it_names_every_documented_route(document: dict[str, Any]) -> None:
    """And the protocol's page names every route that is in it."""
    rows = read(DOCS / "reference" / "protocol.md").rows("Route")
    documented = {
        (method.lower(), f"/chat{path}")
        for row in rows
        for method, path in re.findall(r"`([A-Z]+) (/[^`?]*)", row[0])
    }
    assert documented
    named = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert named == documented


def test_operations_are_told_apart(document: dict[str, Any]) -> None:
    """Each has an id of its own, a description, and what it answers when it is refused."""
    operations = [one for path in document["paths"].values() for one in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    for operation in operations:
        assert operation["description"]
        assert {"401", "403", "429", "503"} <= set(operation["responses"])


def test_both_documents_have_the_same_words(document: dict[str, Any]) -> None:
    """What is the same over the socket has the same name and the same fields there."""
    ours = asyncapi(Dialogue(rooms={}).room_types, is_authenticated=False)["components"]["schemas"]
    theirs = document["components"]["schemas"]
    shared = set(ours) & set(theirs)
    assert {"RoomEntry", "RoomEvent", "HistoryGap"} <= shared
    for name in shared:
        assert set(ours[name]["properties"]) == set(theirs[name]["properties"]), name
        assert set(ours[name]["required"]) == set(theirs[name]["required"]), name
    history = set(theirs["HistoryAnswer"]["properties"]) | {"type", "ref"}
    assert set(ours["History"]["properties"]) == history
