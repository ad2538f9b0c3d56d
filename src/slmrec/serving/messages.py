"""Bodies of requests and answers; FastAPI builds the OpenAPI document from them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    StrictBool,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from slmrec.data.ids import MAX_EXACT_FLOAT
from slmrec.files import one_line
from slmrec.inference.because import NUM_REASONS
from slmrec.inference.rules.rule import Rule
from slmrec.inference.timestamps import checked_times
from slmrec.types import Unit

MAX_ID_CHARS = 256
MAX_SEARCH_RESULTS = 100
MAX_DIVERSE_K = 100
"""Largest k of a request with diversity, whose cost grows with the square of k."""
_MAX_FAULTS = 5
_MAX_SHOWN_CHARS = 50
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


Diversity = Annotated[float, Field(strict=True, ge=0, le=1)]


class Message(BaseModel):
    """Immutable body of a request or an answer; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Query(Message):
    """Query for one user: a whole `history`, or new `events` of a session."""

    history: list[ItemId] | None = None
    events: list[ItemId] | None = None
    session_id: Text | None = None
    user_id: ItemId | None = None
    timestamps: list[Time] | None = None
    k: int = 10
    filter_seen: StrictBool = True
    candidates: list[ItemId] | None = None
    exclude: list[ItemId] = []
    because: StrictBool = False
    rules: list[Rule] = []
    diversity: Diversity = 0.0

    @model_validator(mode="after")
    def _check_history(self) -> "Query":
        if self.session_id is None and (self.history is None or self.events is not None):
            raise PydanticCustomError("history", "give history, or session_id with events")
        if self.history is not None and self.events is not None:
            raise PydanticCustomError(
                "history", "give history to restart the session, or events to continue it, but not both"
            )
        if self.diversity and self.k > MAX_DIVERSE_K:
            text = "k is {k}, expected at most {limit} together with diversity"
            raise PydanticCustomError("diversity", cast("Any", text), {"k": self.k, "limit": MAX_DIVERSE_K})
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
    rule_columns: list[str] = Field(description="columns of the items that rules may name", examples=[["item_id"]])
    num_standing_rules: int = Field(description="number of rules of rules.json, which hold for every request")
    metrics: dict[str, float] = Field(description="metrics of the model card", examples=[{"valid/ndcg@10": 0.05}])
    loaded_at: str = Field(examples=["2026-01-31T12:00:00Z"])


Models = dict[ModelName, ModelInfo]
"""Loaded models by name; the first one answers if a request names none."""


class ReloadRequest(Message):
    """Body of a reload; it has no fields."""


ReloadResult = dict[ModelName, Literal["loaded", "unchanged"]]
"""Result of a reload, by model."""


class DroppedSession(Message):
    """Session that was removed."""

    session_id: str
    models: list[ModelName] = Field(description="models that had such a session; empty if there was none")


class Status(Message):
    """Status of the server."""

    status: str


class Error(Message):
    """Reason why a request was not answered."""

    error: str = Field(examples=["k: Input should be greater than or equal to 1"])


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
