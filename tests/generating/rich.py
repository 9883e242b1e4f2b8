"""Declarations with all that pydantic can say, for the generators to put into words."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, Json, RootModel, computed_field, field_serializer
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from dialogue import Dialogue, DirectRoom, History, RoomConfig, define_event

T = TypeVar("T")


class Color(Enum):
    """A color */ of the rainbow."""

    RED = "red"
    BLUE = "blue"


class Priority(IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: int = 0


class Person(BaseModel):
    """Who it is.

    More than one line.
    """

    name: str = Field(description="as others see it")
    born: date | None = None
    manager: Person | None = None
    tags: set[str] = Field(default_factory=set)


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    owner: Person


Animal = Annotated[Cat | Dog, Field(discriminator="kind")]


class Box(BaseModel, Generic[T]):
    content: T


class Tree(RootModel[dict[str, "Tree"]]):
    """Branches by name."""


class Options(TypedDict):
    size: int
    note: NotRequired[str]


@dataclass
class Vector:
    x: float
    y: float = 0.0


class Open(BaseModel):
    """Takes more fields than it names."""

    model_config = ConfigDict(extra="allow")
    known: int


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    only: bool


class Aliased(BaseModel):
    """Named in one way when sent, in another when it comes."""

    user_name: str = Field(alias="userName")


class Both(BaseModel):
    """Named in the same way in both directions."""

    model_config = ConfigDict(serialize_by_alias=True)
    first_name: str = Field(alias="first-name")


class Function(BaseModel):
    """A name that TypeScript has taken."""

    model_config = ConfigDict(title="function", arbitrary_types_allowed=True)
    call: Callable[[], None] | None = None


class undefined(BaseModel):
    """Another one."""

    x: int


class Rich(BaseModel):
    """Everything."""

    text: str = Field(min_length=1, description="What is said; */ ends no comment.")
    count: int = 0
    ratio: float
    exact: Decimal
    flag: bool
    nothing: None = None
    anything: Any
    maybe: str | None
    moment: datetime
    day: date
    span: timedelta
    id: UUID
    raw: bytes
    color: Color
    priority: Priority
    choice: Literal["a", "b", 3, True, None]
    only: Literal["x"]
    union: int | str | list[int]
    animal: Animal
    animals: list[Animal]
    people: list[Person]
    pair: tuple[int, str]
    many: tuple[int, ...]
    point: Point
    by_name: dict[str, Person]
    by_color: dict[Color, int]
    by_word: dict[Literal["one", "two"], int]
    nested: dict[str, list[tuple[int, str | None]]]
    tree: Tree
    box: Box[int]
    boxes: list[Box[Person]]
    options: Options
    vector: Vector
    more: Open
    closed: Closed
    aliased: Aliased
    both: Both
    parsed: Json[list[int]]
    function: Function
    other: undefined
    old: str = Field("", deprecated=True)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def length(self) -> int:
        """How long the text is."""
        return len(self.text)

    @field_serializer("span")
    def _seconds(self, value: timedelta) -> float:
        return value.total_seconds()


class Message(BaseModel):
    text: str
    reply_to: int | None = None


class Notice(BaseModel):
    level: Literal["info", "alert"]


rich = define_event("rich", schema=Rich, history=History(limit=10), description="All at once.")
message = define_event("message", schema=Message, history=History(limit=10))
other_message = define_event("message", schema=Notice, description="Of another kind.")
notice = define_event("notice", schema=Notice, publish="server", kind="notification")
typing = define_event("typing")
number = define_event("number", schema=int)
numbers = define_event("numbers", schema=list[int])
animal = define_event('an animal: "it\'s"', schema=Animal)
vector = define_event("vector", schema=Vector)
tree = define_event("tree", schema=Tree)
maybe = define_event("maybe", schema=Message | None)

dialogue = Dialogue(
    rooms={
        "general": RoomConfig(
            name="General",
            description="For all.",
            events=[rich, message, notice, typing, number, numbers, animal, vector, tree, maybe],
        ),
        "dm:{a}:{b}": DirectRoom(name="Direct", events=[message, typing]),
        "notes:{owner}": RoomConfig(events=[other_message]),
        "notes:all": RoomConfig(events=[message]),
    },
    client_rooms=RoomConfig(events=[message]),
)
