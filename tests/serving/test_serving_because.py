"""Reasons over HTTP: those of Python, for whole histories and sessions, and only for a few histories of a request."""

from pathlib import Path
from typing import Any

import pytest
from servers import LIMITS, Client

from slmrec import Recommender
from slmrec.serving.messages import Answer, Query

HISTORY = ["i20", "i01", "nope", "i02", "i03", "i02", "i04", "i05", "i06", "i07", "i08"]


def reasons_in(answer: dict[str, Any]) -> list[list[tuple[str, Any]]]:
    return [
        [(each["item_id"], pytest.approx(each["share"], abs=1e-3)) for each in i["because"]] for i in answer["items"]
    ]


def test_reasons_are_those_of_python(client: Client, student: Path) -> None:
    table = Recommender.from_pretrained(student).recommend([HISTORY, ["i09"], ["nope"]], 4, because=True).table
    expected = [
        [
            [(each["item_id"], each["share"]) for each in reasons]
            for reasons in table["because"].to_pylist()[start : start + 4]
        ]
        for start in (0, 4, 8)
    ]
    assert any(expected[0]) and expected[1:] == [[[("i09", 1.0)]] * 4, [[]] * 4]
    asked: dict[str, Any] = {"k": 4, "because": True}
    client.recommend(session_id="because", history=HISTORY[:5])
    answers = [
        client.recommend(history=HISTORY, **asked),
        client.recommend(session_id="because", events=HISTORY[5:], **asked),
    ]
    assert [reasons_in(answer) for answer in answers] == [expected[0]] * 2
    histories = [{"history": history, **asked} for history in (HISTORY, ["i09"], ["nope"])]
    *several, plain = client.recommend(requests=[*histories, {"history": HISTORY, "k": 4}])["answers"]
    assert [reasons_in(answer) for answer in several] == expected
    assert not any("because" in item for item in plain["items"])
    Answer.model_validate(several[0])
    reason = several[0]["items"][0]["because"][0]
    assert reason["title"] == f"Thing number {int(reason['item_id'][1:])} in " + (
        "red" if int(reason["item_id"][1:]) % 2 else "blue"
    )


def test_reasons_are_bounded(client: Client) -> None:
    query = {"history": HISTORY, "because": True}
    most = LIMITS.max_because
    assert len(client.recommend(requests=[query] * most)["answers"]) == most
    for body, message in (
        (
            {"requests": [query] * (most + 1)},
            f"requests: because is true in {most + 1} requests, expected at most {most}",
        ),
        ({"history": ["i01"], "because": 3}, "because: Input should be a valid boolean"),
        (
            {"requests": [{"history": ["i01"], "because": "yes"}]},
            "requests[0].because: Input should be a valid boolean",
        ),
    ):
        status, _, content = client.ask("/recommend", body)
        assert status == 422 and message in content["error"], content
    queries = [Query(history=HISTORY, because=True)] * 2 + [Query(history=HISTORY)]
    assert client.server._size_of(queries) == 2 * LIMITS.max_batch // most + 1
    schemas = client.get("/openapi.json")["components"]["schemas"]
    assert f"at most {most} of the requests" in schemas["Query"]["properties"]["because"]["description"]
    assert "because" in schemas["RankedItem"]["properties"]
