"""What requests and answers look like; also the source of the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from slmrec.serving.limits import Limits

MAX_ID_CHARS = 256
MAX_FOUND = 100
"""Items that a search may ask for."""
_INT64 = 2**63
ModelName = Literal["student", "teacher"]
Text = Annotated[str, Field(strict=True, min_length=1, max_length=MAX_ID_CHARS)]
Number = Annotated[int, Field(strict=True, ge=-_INT64, lt=_INT64)]
ItemId = Text | Number


class Message(BaseModel):
    """Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Query(Message):
    """One user: a whole `history`, or new `events` of a session."""

    history: list[ItemId] | None = None
    events: list[ItemId] | None = None
    session_id: Text | None = None
    k: int = 10
    filter_seen: StrictBool = True
    candidates: list[ItemId] | None = None
    exclude: list[ItemId] = []

    @model_validator(mode="after")
    def _says_who(self) -> "Query":
        if self.session_id is None and (self.history is None or self.events is not None):
            raise PydanticCustomError("who", "give history, or session_id with events")
        if self.history is not None and self.events is not None:
            raise PydanticCustomError("who", "give history, to start the session anew, or events, to go on; not both")
        return self


class RankedItem(Message):
    """One recommended item."""

    item_id: str | int
    title: str | None
    score: float
    rank: int


class SessionInfo(Message):
    """What the server keeps of the session."""

    session_id: str
    new: bool = Field(description="true if the server had nothing of it; send the whole history if it should have")
    num_items: int


class Answer(Message):
    """The list of one user, best item first."""

    items: list[RankedItem]
    num_unknown: int = Field(description="items of history or events that the model does not know; they are left out")
    unknown: list[str | int] = Field(description="the first ten of these")
    fallback: bool = Field(description="true if no item is known, so that the list is that of the most popular items")
    session: SessionInfo | None
    model: ModelName
    model_version: str
    time_ms: float = Field(description="from the arrival of the request to its answer")


class Answers(Message):
    """Answers in the order of the requests."""

    answers: list[Answer]


class FoundItem(Message):
    """An item of the catalogue."""

    item_id: str | int
    title: str | None


class FoundItems(Message):
    """Items whose title or id holds all words, the most popular first."""

    items: list[FoundItem]


class ExampleUser(Message):
    """A user to try the page with."""

    user_id: str | int
    history: list[FoundItem]


class ExampleUsers(Message):
    """Those of `--examples`."""

    users: list[ExampleUser]


class ModelInfo(Message):
    """What is loaded."""

    name: str
    version: str
    fingerprint: str
    model_type: str
    num_items: int
    num_parameters: int
    max_history_items: int
    metrics: dict[str, float]
    loaded_at: str


class Models(Message):
    """What is loaded, by name."""

    student: ModelInfo
    teacher: ModelInfo | None = None


class ReloadRequest(Message):
    """Nothing need be said: `{}`."""


class Outcomes(Message):
    """What a reload did."""

    student: Literal["loaded", "unchanged"]
    teacher: Literal["loaded", "unchanged"] | None = None


class Status(Message):
    """Of the server."""

    status: str


class Problem(Message):
    """Why there is no answer."""

    error: str


def request_adapter(limits: Limits) -> TypeAdapter[Any]:
    """Reads the body of `POST /recommend`: one `Query`, or many as `{"requests": [...]}`."""
    one = _query(limits)
    many = create_model("Queries", __base__=Message, requests=(_list(one, limits.max_requests, at_least=1), ...))
    either: Any = Annotated[one, Tag("one")] | Annotated[many, Tag("many")]
    return TypeAdapter(Annotated[either, Discriminator(_number_of_users)])


def _query(limits: Limits) -> type[Query]:
    history = _list(ItemId, limits.max_history)
    chosen = _list(ItemId, limits.max_candidates)
    about = {
        "history": (history | None, "item ids, oldest first; with session_id, the session starts anew with them"),
        "events": (history | None, "newer item ids of a session, oldest first"),
        "session_id": (Text | None, "a name of your choice"),
        "candidates": (chosen | None, "rank these items alone"),
    }
    fields: dict[str, Any] = {name: (kind, Field(None, description=text)) for name, (kind, text) in about.items()}
    most = Annotated[int, Field(strict=True, ge=1, le=limits.max_k)]
    fields["k"] = (most, Field(10, description="items wanted"))
    fields["filter_seen"] = (StrictBool, Field(True, description="leave out the items of the history"))
    fields["exclude"] = (chosen, Field([], description="leave out these items too"))
    return create_model("Query", __base__=Query, __doc__=Query.__doc__, **fields)


def _list(kind: Any, most: int, at_least: int = 0) -> Any:
    return Annotated[list[kind], Field(min_length=at_least, max_length=most)]


def _number_of_users(value: Any) -> str:
    return "many" if isinstance(value, dict) and "requests" in value else "one"


def told(error: ValidationError) -> str:
    """Every fault of a body, in one line."""
    faults: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_context=False):
        faults.setdefault(_place(fault["loc"]), fault["msg"])
    shown = [f"{place}: {message}" if place else message for place, message in list(faults.items())[:5]]
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    return "; ".join(shown) + more


def _place(location: tuple[int | str, ...]) -> str:
    """`requests[0].history[3]`, without the names of alternatives."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in {"one", "many", "constrained-str", "constrained-int", "str", "int"}:
            text += f".{part}" if text else part
    return text
