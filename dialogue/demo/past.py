"""Makes the demo's past: a plausible chat of a dozen people over some weeks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import NamedTuple

from . import phrases
from .phrases import PEOPLE, Person, Topic

ROOMS = ("general", "random", "help")

SHARES = {"general": 1.0, "random": 0.07, "help": 0.05}
"""How many messages a room has, as a share of what the largest has."""

DAYS = 21
MESSAGES_PER_DAY = 300
"""A longer past than this for `DAYS` goes back further, so that its days stay as full as people can make them."""

# Weights of the hours of a day, from midnight, on workdays and at the weekend.
_WORKDAY = (1, 0, 0, 0, 0, 0, 1, 4, 9, 12, 12, 10, 11, 10, 9, 9, 10, 11, 9, 8, 9, 8, 5, 2)
_WEEKEND = (2, 1, 0, 0, 0, 0, 0, 1, 2, 4, 6, 7, 6, 5, 6, 6, 5, 4, 4, 5, 5, 4, 3, 2)

_LONGEST_PAUSE_SECONDS = 150

Line = tuple[str, str]
"""Who says it, and what."""


class Moment(NamedTuple):
    """What is said in one room within one breath.

    Attributes:
        timestamp: Milliseconds since the epoch.
        lines: At least one.
    """

    room_id: str
    timestamp: int
    lines: list[Line]


def make_past(messages: int, *, until_ms: int) -> list[Moment]:
    """Return a past, oldest first; the same one for the same arguments and the same time zone.

    Args:
        messages: How many the room "general" gets; the others get their share of it (see `SHARES`).
        until_ms: Nothing is later than this.
    """
    random = Random(20_240_229)
    until = datetime.fromtimestamp(until_ms / 1000)
    days = max(DAYS, messages // MESSAGES_PER_DAY)
    moments: list[Moment] = []
    for room_id in ROOMS:
        count = round(messages * SHARES[room_id])
        conversations: list[list[Line]] = []
        while count > 0:
            conversation = _conversation(room_id, random)[:count]
            conversations.append(conversation)
            count -= len(conversation)
        starts = _starts(len(conversations), until=until, days=days, random=random)
        for start, conversation in zip(starts, conversations, strict=True):
            moments += _spread(room_id, conversation, start.timestamp() * 1000, until_ms, random)
    # Stable: lines of one conversation that the end pushes together keep their order.
    return sorted(moments, key=lambda moment: moment.timestamp)


def _starts(count: int, *, until: datetime, days: int, random: Random) -> list[datetime]:
    """Return when *count* conversations begin, in order: by day and hour, as people are awake."""
    hours = []
    weights = []
    midnight = until.replace(hour=0, minute=0, second=0, microsecond=0)
    for ago in range(days, -1, -1):
        day = midnight - timedelta(days=ago)
        for hour, weight in enumerate(_WEEKEND if day.weekday() >= 5 else _WORKDAY):
            begin = day + timedelta(hours=hour)
            if begin + timedelta(hours=1) <= until:
                hours.append(begin)
                weights.append(weight)
    found = [
        begin + timedelta(seconds=random.random() * 3600) for begin in random.choices(hours, weights, k=count)
    ]
    return sorted(found)


def _spread(
    room_id: str, lines: Sequence[Line], start_ms: float, until_ms: int, random: Random
) -> list[Moment]:
    """Return a conversation as moments: people answer quickly, with a pause now and then."""
    moments: list[Moment] = []
    now = start_ms
    rest = list(lines)
    while rest:
        size = random.choices((1, 2, 3, 4), (3, 4, 3, 2))[0]
        moments.append(Moment(room_id, min(int(now), until_ms), rest[:size]))
        rest = rest[size:]
        now += 1000 * (20 + random.random() ** 2 * _LONGEST_PAUSE_SECONDS)
    return moments


class _Scene:
    """The people and words of one conversation: {time} and {day} stay what they are until it ends."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.topic: Topic = random.choice(phrases.TOPICS)
        self._people = list(PEOPLE)
        self._weights = [person.talks for person in PEOPLE]
        self.asks = self.pick(None)
        self.helps = self.pick(self.asks)
        self._words = {
            "thing": self.topic.thing,
            "trouble": random.choice(self.topic.troubles),
            "task": random.choice(self.topic.tasks),
            "day": random.choice(phrases.DAYS),
            "time": f"{random.randrange(8, 20)}:{random.choice(('00', '15', '30', '45'))}",
            "count": str(random.randrange(3, 40)),
            "name": self.helps.name,
        }

    def pick(self, other_than: Person | None) -> Person:
        """Return someone, the talkative more often; not *other_than*."""
        while True:
            person = self.random.choices(self._people, self._weights)[0]
            if person is not other_than:
                return person

    def some(self, choices: Sequence[str], least: int, most: int) -> list[str]:
        """Return *least* to *most* different ones, as many as there are."""
        return self.random.sample(choices, min(self.random.randint(least, most), len(choices)))

    def say(self, person: Person, template: str) -> Line:
        """Return *template* in the words of this scene, as *person* writes."""
        random = self.random
        text = template.format_map(self._words)
        if person.is_lowercase:
            text = text[0].lower() + text[1:].removesuffix(".")
        elif text.endswith(".") and random.random() < person.exclaims:
            text = text[:-1] + "!"
        if person.emoji and random.random() < 0.2:
            text += f" {random.choice(person.emoji)}"
        return person.name, text

    def chorus(self, templates: Sequence[str], *, last: Person | None) -> list[Line]:
        """Return *templates* said by changing people; the first is not *last*."""
        lines = []
        for template in templates:
            last = self.pick(last)
            lines.append(self.say(last, template))
        return lines


def _question(scene: _Scene) -> list[Line]:
    lines = [scene.say(scene.asks, scene.random.choice(phrases.QUESTIONS))]
    lines += scene.chorus(scene.some(phrases.FOLLOW_UPS, 0, 2), last=scene.asks)
    first, *others = scene.some(scene.topic.answers, 1, 3)
    lines.append(scene.say(scene.helps, first))
    lines += scene.chorus(others, last=scene.helps)
    lines.append(scene.say(scene.asks, scene.random.choice(phrases.THANKS)))
    return lines


def _plan(scene: _Scene) -> list[Line]:
    lines = [scene.say(scene.asks, scene.random.choice(phrases.PLANS))]
    lines += scene.chorus(scene.some(phrases.PLAN_ANSWERS, 2, 5), last=scene.asks)
    lines.append(scene.say(scene.asks, scene.random.choice(phrases.PLAN_ENDS)))
    return lines


def _news(scene: _Scene) -> list[Line]:
    lines = [scene.say(scene.asks, scene.random.choice(phrases.NEWS))]
    return lines + scene.chorus(scene.some(phrases.REACTIONS, 1, 4), last=scene.asks)


def _talk(scene: _Scene, talks: Sequence[Sequence[str]]) -> list[Line]:
    first, *others = scene.random.choice(talks)
    said = scene.random.randint(2, len(others))
    # In the order in which they are written: later ones answer earlier ones.
    return [scene.say(scene.asks, first), *scene.chorus(others[:said], last=scene.asks)]


def _small_talk(scene: _Scene) -> list[Line]:
    return _talk(scene, phrases.SMALL_TALK)


def _random_talk(scene: _Scene) -> list[Line]:
    return _talk(scene, phrases.RANDOM_TALK)


_KINDS: dict[str, tuple[tuple[Callable[[_Scene], list[Line]], ...], tuple[int, ...]]] = {
    "general": ((_question, _plan, _news, _small_talk), (3, 4, 3, 3)),
    "random": ((_random_talk, _small_talk), (5, 1)),
    "help": ((_question,), (1,)),
}


def _conversation(room_id: str, random: Random) -> list[Line]:
    kinds, weights = _KINDS[room_id]
    return random.choices(kinds, weights)[0](_Scene(random))
