"""Parser of the body of `POST /recommend`, with the limits of a server, and examples of such bodies."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, StrictBool, Tag, TypeAdapter, create_model
from pydantic_core import PydanticCustomError

from slmrec.inference.rules.rule import MAX_RULES, Rule
from slmrec.serving.limits import Limits
from slmrec.serving.messages import MAX_DIVERSE_K, Diversity, ItemId, Message, Query, Text, Time
from slmrec.types import PER_SECOND, Unit

_EXAMPLE_TIME = 1_767_225_600
"""2026-01-01, in seconds."""


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
        "user_id": (ItemId | None, "user, for servers that divide users between models (A/B) or log their answers"),
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
    text = "rules about columns of the items, in addition to the standing ones of the model"
    fields["rules"] = (_list(Rule, MAX_RULES), Field([], description=text))
    text = f"weight of the diversity of the list against its scores, for k up to {MAX_DIVERSE_K}"
    fields["diversity"] = (Diversity, Field(0.0, description=text))
    return create_model("Query", __base__=Query, __doc__=Query.__doc__, **fields)


def _list(kind: Any, max_length: int, min_length: int = 0) -> Any:
    """Return the type of a list; only its first fault is collected, since each takes much more time than a value."""
    return Annotated[list[kind], Field(min_length=min_length, max_length=max_length, fail_fast=True)]


def _tag(value: Any) -> str:
    return "many" if isinstance(value, dict) and "requests" in value else "one"
