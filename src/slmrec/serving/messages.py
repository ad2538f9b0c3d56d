"""Bodies of requests and answers; FastAPI builds the OpenAPI document from them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetPydanticSchema,
    StrictBool,
    Tag,
    TypeAdapter,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from slmrec.data.ids import MAX_EXACT_FLOAT
from slmrec.files import one_line
from slmrec.inference.because import NUM_REASONS
from slmrec.inference.timestamps import checked_times
from slmrec.serving.limits import Limits
from slmrec.types import PER_SECOND, Unit

MAX_ID_CHARS = 256
MAX_SEARCH_RESULTS = 100
_MAX_FAULTS = 5
_MAX_SHOWN_CHARS = 50
_EXAMPLE_TIME = 1_767_225_600
"""2026-01-01, in seconds."""
ModelName = str
Text = Annotated[str, Field(strict=True, min_length=1, max_length=MAX_ID_CHARS)]
_NUMBERS = (
    core_schema.int_schema(strict=True, ge=-(2**63), lt=2**64),
    core_schema.float_schema(strict=True, multiple_of=1, ge=-MAX_EXACT_FLOAT, le=MAX_EXACT_FLOAT),
)
_ID_SCHEMA = core_schema.union_schema(
    [core_schema.str_schema(strict=True, min_length=1, max_length=MAX_ID_CHARS), *_NUMBERS],
    mode="left_to_right",
    custom_error_type="item_id",
    custom_error_message=f"expected an item id: text of 1 to {MAX_ID_CHARS} characters, or a whole number",
)
ItemId = Annotated[str | int | float, GetPydanticSchema(lambda *_: _ID_SCHEMA)]
"""Item id of a request. Whole numbers may be written as floats, such as 9.0; unsigned 64-bit numbers are ids too."""


_TIME_SCHEMA = core_schema.union_schema(
    [
        core_schema.int_schema(strict=True, gt=-(2**62), lt=2**62),
        core_schema.float_schema(strict=True, multiple_of=1, ge=-MAX_EXACT_FLOAT, le=MAX_EXACT_FLOAT),
    ],
    mode="left_to_right",
    custom_error_type="time",
    custom_error_message="expected a time: a whole number in the unit that GET /model names",
)
Time = Annotated[int | float, GetPydanticSchema(lambda *_: _TIME_SCHEMA)]
"""Time of an event, in the `timestamp_unit` of the model."""


class Message(BaseModel):
    """Immutable body of a request or an answer; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Query(Message):
    """Query for one user: a whole `history`, or new `events` of a session."""

    history: list[ItemId] | None = None
    events: list[ItemId] | None = None
    session_id: Text | None = None
    timestamps: list[Time] | None = None
    k: int = 10
    filter_seen: StrictBool = True
    candidates: list[ItemId] | None = None
    exclude: list[ItemId] = []
    because: StrictBool = False

    @model_validator(mode="after")
    def _check_history(self) -> "Query":
        if self.session_id is None and (self.history is None or self.events is not None):
            raise PydanticCustomError("history", "give history, or session_id with events")
        if self.history is not None and self.events is not None:
            raise PydanticCustomError(
                "history", "give history to restart the session, or events to continue it, but not both"
            )
        if self.timestamps is not None:
            try:
                checked_times(self.timestamps, len(self.item_ids), "s")
            except ValueError as error:
                raise PydanticCustomError("timestamps", "timestamps: {error}", {"error": str(error)}) from None
        return self

    @property
    def item_ids(self) -> Sequence[Any]:
        """Item ids of the history, or of the new events of a session."""
        return (self.events if self.history is None else self.history) or ()


class BecauseItem(Message):
    """Item of the history that raises the score of a recommended item."""

    item_id: str | int = Field(examples=[9])
    title: str | None = Field(examples=["Hand Cream"])
    share: float = Field(
        description="what the score loses without this item, as a share of what it loses without each item",
        examples=[0.6],
    )


class RankedItem(Message):
    """Recommended item."""

    item_id: str | int = Field(examples=[31])
    title: str | None = Field(examples=["Lip Balm"])
    score: float = Field(examples=[4.2])
    rank: int = Field(description="1 is the best item", examples=[1])
    because: list[BecauseItem] = Field(
        [], description=f"up to {NUM_REASONS} reasons, the largest share first; present if the request asks for them"
    )


class SessionInfo(Message):
    """State of a session after the request."""

    session_id: str
    new: bool = Field(
        description="true if the server had no state of this session; if you expected one, send the whole history again"
    )
    num_items: int = Field(description="known items in the session")


class Answer(Message):
    """Recommendations for one user."""

    items: list[RankedItem] = Field(description="best item first")
    unknown_items: list[str | int | float] = Field(
        description="items of history or events that the model does not know; they were ignored", examples=[[]]
    )
    unknown_share: float = Field(
        description="share of the items of history or events that the model does not know; 0 if there are none",
        examples=[0.0],
    )
    fallback: bool = Field(
        description="true if no item was known; the answer then lists the most popular items, scored by their counts"
    )
    session: SessionInfo | None
    model: ModelName
    model_version: str = Field(examples=["0d4f8c61a2b3"])
    time_ms: float = Field(
        description="time in the server, from the arrival of the request to its answer", examples=[6.5]
    )


class Answers(Message):
    """Answers in the order of the requests."""

    answers: list[Answer]


class Item(Message):
    """Item of the catalogue."""

    item_id: str | int = Field(examples=[9])
    title: str | None = Field(examples=["Hand Cream"])


class Items(Message):
    """Result of a search, most popular item first, or the items of the given ids, in their order."""

    items: list[Item]
    similar: bool = Field(
        description="true if no item matches the words; the items then match after one typing error is corrected"
    )


class ExampleUser(Message):
    """Example user of the demo page."""

    user_id: str | int | float
    history: list[Item]
    timestamps: list[int] | None = Field(description="times of the items; null if the file has none")


class ExampleUsers(Message):
    """Example users from the file that `--examples` names."""

    users: list[ExampleUser]


class ModelInfo(Message):
    """Description of a loaded model."""

    name: str
    version: str
    fingerprint: str = Field(description="hash of configuration, weights and vocabulary")
    model_type: str
    num_items: int
    num_parameters: int
    max_history_items: int = Field(description="number of newest items of a history that the model reads")
    timestamp_unit: Unit | None = Field(
        description="unit of timestamps, since 1970-01-01 UTC, which histories and events must then have; null: the "
        "model reads no times",
        examples=[None],
    )
    metrics: dict[str, float] = Field(description="metrics of the model card", examples=[{"valid/ndcg@10": 0.05}])
    loaded_at: str = Field(examples=["2026-01-31T12:00:00Z"])


Models = dict[ModelName, ModelInfo]
"""Loaded models by name; the first one answers if a request names none."""


class ReloadRequest(Message):
    """Body of a reload; it has no fields."""


ReloadResult = dict[ModelName, Literal["loaded", "unchanged"]]
"""Result of a reload, by model."""


class Status(Message):
    """Status of the server."""

    status: str


class Error(Message):
    """Reason why a request was not answered."""

    error: str = Field(examples=["k: Input should be greater than or equal to 1"])


def query_examples(item_ids: Sequence[Any], unit: Unit | None) -> dict[str, dict[str, Any]]:
    """Return example bodies of `POST /recommend` for a catalogue.

    Args:
        item_ids: Four item ids of the catalogue, or fewer.
        unit: Unit in which the model reads times; None: it reads none.
    """
    first, *rest = item_ids
    several: list[dict[str, Any]] = [{"history": [first, *rest[:1]]}]
    several += [{"history": rest[-1:] or [first], "k": 3, "filter_seen": False}]
    one: dict[str, Any] = {"history": [first, *rest[:2]], "k": 5}
    event: dict[str, Any] = {"session_id": "f0c2", "events": [first]}
    if unit is not None:
        for body in (one, event, *several):
            num_items = len(body.get("history", body.get("events", ())))
            body["timestamps"] = [PER_SECOND[unit] * (_EXAMPLE_TIME + 3600 * hour) for hour in range(num_items)]
    return {
        "One user": {"value": one},
        "Several users": {"value": {"requests": several}},
        "New event of a session": {"value": event},
    }


def request_adapter(limits: Limits) -> TypeAdapter[Any]:
    """Return the parser of the body of `POST /recommend`: one `Query`, or several as `{"requests": [...]}`."""
    one = _query(limits)

    def check_because(queries: list[Query]) -> list[Query]:
        number = sum(query.because for query in queries)
        if number > limits.max_because:
            raise PydanticCustomError(
                "because",
                "because is true in {number} requests, expected at most {limit}; send them in several bodies",
                {"number": number, "limit": limits.max_because},
            )
        return queries

    several: Any = Annotated[_list(one, limits.max_requests, min_length=1), AfterValidator(check_because)]
    many = create_model(
        "Queries",
        __base__=Message,
        __doc__="Queries of several users, answered together.",
        requests=(several, ...),
    )
    either: Any = Annotated[one, Tag("one")] | Annotated[many, Tag("many")]
    return TypeAdapter(Annotated[either, Discriminator(_tag)])


def _query(limits: Limits) -> type[Query]:
    """Return `Query` with the limits of a server in its fields."""
    history, times = (_list(kind, limits.max_history) for kind in (ItemId, Time))
    item_ids = _list(ItemId, limits.max_candidates)
    optional = {
        "history": (history | None, "item ids, oldest first; together with session_id, restarts the session"),
        "events": (history | None, "item ids to append to the session, oldest first"),
        "session_id": (Text | None, "session, named by the client"),
        "timestamps": (times | None, "times of the items of history or events, for models with a timestamp_unit"),
        "candidates": (item_ids | None, "rank only these items"),
    }
    fields: dict[str, Any] = {name: (kind, Field(None, description=text)) for name, (kind, text) in optional.items()}
    k = Annotated[int, Field(strict=True, ge=1, le=limits.max_k)]
    fields["k"] = (k, Field(10, description="number of items to recommend"))
    fields["filter_seen"] = (StrictBool, Field(True, description="do not recommend items of the history"))
    text = (
        f"also return the items of the history that raise each score; in at most {limits.max_because} of the requests"
    )
    fields["because"] = (StrictBool, Field(False, description=text))
    fields["exclude"] = (item_ids, Field([], description="further items that are not recommended"))
    return create_model("Query", __base__=Query, __doc__=Query.__doc__, **fields)


def _list(kind: Any, max_length: int, min_length: int = 0) -> Any:
    """Return the type of a list; only its first fault is collected, since each takes much more time than a value."""
    return Annotated[list[kind], Field(min_length=min_length, max_length=max_length, fail_fast=True)]


def _tag(value: Any) -> str:
    return "many" if isinstance(value, dict) and "requests" in value else "one"


def describe_faults(faults: Sequence[ErrorDetails]) -> str:
    """Return up to five faults of a request in one line.

    Args:
        faults: Errors of pydantic, as returned by `ValidationError.errors()`.
    """
    messages: dict[str, str] = {}
    for fault in faults:
        messages.setdefault(_location(fault["loc"]), fault["msg"])
    shown = [f"{location}: {message}" if location else message for location, message in messages.items()][:_MAX_FAULTS]
    more = f"; and {len(messages) - _MAX_FAULTS} more" if len(messages) > _MAX_FAULTS else ""
    return "; ".join(shown) + more


def _location(parts: tuple[int | str, ...]) -> str:
    """Return a location such as `requests[0].history[3]`, without the tags of unions."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif len(part) > _MAX_SHOWN_CHARS:
            text += f".{one_line(part, _MAX_SHOWN_CHARS)}..."
        elif part not in {"one", "many"}:
            text += f".{one_line(part)}"
    return text.removeprefix(".")
