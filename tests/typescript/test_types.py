"""What the compiler says to the client's types, the generated ones, and the examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dialogue.generating.typescript import typescript
from dialogue.server.static import STATIC
from examples.chat.config import dialogue as chat

from .conftest import EXAMPLES
from .tools import FOLDER, needs_node_modules, tsc

TYPES = (STATIC / "dialogue.d.ts").read_text(encoding="utf-8")
SCRIPT = (STATIC / "dialogue.js").read_text(encoding="utf-8")


def body(text: str, head: str) -> str:
    """Return what is between the braces of a class or an interface."""
    found = re.search(rf"^(?:export )?{head}\b[^\n]* \{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    assert found is not None, head
    return found[1]


def declared(name: str) -> set[str]:
    """Return the members of an interface, or of a class, of dialogue.d.ts."""
    text = body(TYPES, f"(?:interface|class) {name}")
    return set(re.findall(r"^  (?:readonly )?(\w+)\??[(:<]", text, re.MULTILINE)) - {"constructor"}


def written(name: str) -> set[str]:
    """Return the members of a class of dialogue.js that are not internal."""
    text = body(SCRIPT, f"class {name}")
    members = re.findall(r"^  (?:async |get |static )?([a-zA-Z]\w*)(?:\(| =|;)", text, re.MULTILINE)
    base = re.search(rf"^class {name} extends (\w+) ", SCRIPT, re.MULTILINE)
    inherited = written(base[1]) if base else set()
    return {*inherited, *members, *re.findall(r"\bthis\.([a-zA-Z]\w*) = ", text)} - {"constructor"}


@needs_node_modules
def test_all_of_it_compiles(project: Path) -> None:
    """The usage files with their expected errors, generated types, React and Vue; strictly."""
    is_right, said = tsc(project)
    assert is_right, said


@needs_node_modules
def test_mistakes_are_errors(project: Path) -> None:
    """The compiler really looks: each of these lines is told of, and nothing else."""
    lines = {
        'room.on("message", (event) => event.data.nope);': "Property 'nope' does not exist on type 'Message'",
        'void room.trigger("message", { text: 1, username: "" });': "'number' is not assignable to type 'string'",
        'void room.trigger("message", { text: "" });': "Property 'username' is missing",
        'room.timeline("message").getSnapshot().entries[0]?.data.txt;': "Property 'txt' does not exist",
        'room.on("massage", () => {});': '"massage"',
    }
    mistakes = project / "mistakes.ts"
    mistakes.write_text(
        "\n".join(
            [
                'import type { Room } from "./dialogue.js"; import type { Events } from "./react/events.js";',
                "export function mistakes(room: Room<Events>) {",
                *lines,
                "}",
            ]
        )
    )
    try:
        is_right, said = tsc(project)
    finally:
        mistakes.unlink()
    assert not is_right
    found = dict(re.findall(r"^mistakes\.ts\((\d+),\d+\): error (.*)$", said, re.MULTILINE))
    assert list(map(int, found)) == list(range(3, 3 + len(lines))), said
    for error, expected in zip(found.values(), lines.values(), strict=True):
        assert expected in error
    assert said.count(": error ") == len(lines)


@pytest.mark.parametrize("example", ["react", "vue"])
def test_the_examples_types_are_generated(example: str) -> None:
    """The file that is there is the one that the command writes."""
    target = "examples.chat.config:dialogue"
    text = (EXAMPLES / example / "src" / "events.ts").read_text(encoding="utf-8")
    assert text == typescript(chat.room_types, target=target)


def test_what_the_client_exports_is_declared() -> None:
    """Nothing more, nothing less; types come on top."""
    pattern = r"^export (?:class|function|const|let) (\w+)"
    assert set(re.findall(pattern, SCRIPT, re.MULTILINE)) == set(re.findall(pattern, TYPES, re.MULTILINE))
    assert not re.search(r"^export (?:default|\{|\*)", SCRIPT + TYPES, re.MULTILINE)


@pytest.mark.parametrize("name", ["DialogueClient", "Room", "Timeline"])
def test_every_public_member_is_declared_and_written(name: str) -> None:
    """What is in dialogue.js is in dialogue.d.ts, and the other way round."""
    assert written(name) == declared(name)


def test_the_usage_has_every_member() -> None:
    """Each member of each interface is used, and each type is named."""
    usage = (FOLDER / "usage.ts").read_text(encoding="utf-8")
    names = re.findall(r"^export (?:interface|class|type) (\w+)", TYPES, re.MULTILINE)
    for name in names:
        assert len(re.findall(rf"\b{name}\b", usage)) > 1, name
    for name in re.findall(r"^export (?:interface|class) (\w+)", TYPES, re.MULTILINE):
        for member in declared(name):
            assert re.search(rf"\b{member}\b", usage), f"{name}.{member}"
