"""Room ids and pattern rooms (``"dm:{a}:{b}"``)."""

from __future__ import annotations

import re
from functools import cache

MAX_ROOM_ID_LENGTH = 255
"""Longest room id in characters; also the width of the column that keeps it."""

_PARAMETER = re.compile(r"\{([^{}]*)\}")
_VALUE = r"[^:/]{1,128}"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def room_id_problem(room_id: str) -> str | None:
    """Return what is wrong with *room_id*, or None when it is well formed."""
    if not 1 <= len(room_id) <= MAX_ROOM_ID_LENGTH:
        return f"a room id has 1 to {MAX_ROOM_ID_LENGTH} characters"
    if "/" in room_id:
        return "a room id contains no '/'"
    if _CONTROL.search(room_id):
        return "a room id contains no control characters"
    return None


class RoomPattern:
    """One declared pattern.

    Args:
        template: The room id with parameters in braces. A parameter matches 1 to 128 characters other than
            ``:`` and ``/``.

    Raises:
        ValueError: The template is malformed; the message says how.
    """

    __slots__ = ("_regex", "_tokens", "parameters", "template")

    def __init__(self, template: str) -> None:
        self.template = template
        self.parameters: tuple[str, ...] = tuple(_PARAMETER.findall(template))
        literals = _PARAMETER.split(template)[::2]
        for name in self.parameters:
            if not name.isidentifier():
                raise ValueError(f"'{{{name}}}' is not a parameter name: use letters, digits and underscores")
        if len(set(self.parameters)) != len(self.parameters):
            raise ValueError("a parameter occurs twice")
        if any("{" in text or "}" in text for text in literals):
            raise ValueError("braces do not match")
        if any(not text for text in literals[1:-1]):
            raise ValueError("two parameters need something between them, e.g. ':'")
        # No value has a ':', so that there is one way to match. Elsewhere each way may have to be tried: two such
        # parameters are a few ten thousand steps for a room id that does not match, four of them would be seconds.
        if sum(":" not in text for text in literals[1:-1]) > 1:
            raise ValueError("more than two parameters have no ':' between them; separate them by ':'")
        problem = room_id_problem(_PARAMETER.sub("x", template))
        if problem:
            raise ValueError(problem)
        regex = re.escape(literals[0])
        tokens: list[str | None] = list(literals[0])
        for name, literal in zip(self.parameters, literals[1:], strict=True):
            regex += f"(?P<{name}>{_VALUE})" + re.escape(literal)
            tokens.append(None)
            tokens.extend(literal)
        self._regex = re.compile(regex)
        self._tokens = tuple(tokens)

    def match(self, room_id: str) -> dict[str, str] | None:
        """Return the parameters of *room_id*, or None when it does not match."""
        found = self._regex.fullmatch(room_id)
        return found.groupdict() if found else None

    def overlaps(self, other: RoomPattern) -> bool:
        """Whether some room id matches both, whatever its length."""
        a, b = self._tokens, other._tokens

        @cache
        def meets(i: int, j: int, in_a: bool, in_b: bool) -> bool:
            # in_a and in_b: the parameter before i (before j) has its first character and may take more.
            if i == len(a) and j == len(b):
                return True
            steps_a = ([(i, True)] if in_a else []) + ([(i + 1, a[i] is None)] if i < len(a) else [])
            steps_b = ([(j, True)] if in_b else []) + ([(j + 1, b[j] is None)] if j < len(b) else [])
            for next_i, wild_a in steps_a:
                for next_j, wild_b in steps_b:
                    if (next_i, next_j) == (i, j):
                        continue  # both parameters growing by one character: nothing new is reached
                    char_a = None if wild_a else a[next_i - 1]
                    char_b = None if wild_b else b[next_j - 1]
                    if char_a is not None and char_b is not None and char_a != char_b:
                        continue
                    if (char_a or char_b) in (":", "/") and (wild_a or wild_b):
                        continue
                    if meets(next_i, next_j, wild_a, wild_b):
                        return True
            return False

        return meets(0, 0, False, False)
