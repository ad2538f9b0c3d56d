"""Rules and diversity over HTTP: the lists of Python, standing rules that a reload follows, and their bounds."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from servers import LIMITS, Client, serving

from slmrec import Recommender
from slmrec.errors import CheckpointError
from slmrec.inference.rules.rule import MAX_RULES
from slmrec.serving.limits import Limits
from slmrec.serving.loading import load

RED = [f"Thing number {n} in red" for n in range(1, 40, 2)]
HISTORIES = [["i20", "i01", "nope"], ["i09"], []]
RULES: list[dict[str, Any]] = [
    {"do": "only", "column": "title", "values": [*RED, "Thing number 4 in blue"]},
    {"do": "boost", "column": "item_id", "values": ["i07", "i04"], "by": 1.5},
    {"do": "cap", "column": "title", "by": 1},
]


def pairs(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(item["item_id"], pytest.approx(item["score"], abs=1e-3)) for item in answer["items"]]


def test_lists_are_those_of_python(client: Client, student: Path) -> None:
    asked: dict[str, Any] = {"k": 7, "rules": RULES, "diversity": 0.5}
    expected = Recommender.from_pretrained(student).recommend(HISTORIES, **asked).to_lists()
    queries: list[dict[str, Any]] = [{"history": history, **asked} for history in HISTORIES]
    *several, plain = client.recommend(requests=[*queries, {"history": ["i09"], "k": 7}])["answers"]
    assert [pairs(answer) for answer in several] == expected
    assert [pairs(client.recommend(**query)) for query in queries] == expected
    client.recommend(session_id="rules", history=["i20"])
    assert pairs(client.recommend(session_id="rules", events=["i01", "nope"], **asked)) == expected[0]
    assert pairs(plain) != expected[1]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"rules": [{"do": "hide", "column": "title", "values": [1]}]}, "rules[0].do: Input should be 'exclude', "),
        (
            {"rules": [{"do": "only", "column": "colour", "values": [1]}]},
            "rules[0]: column 'colour' is not in the model",
        ),
        ({"rules": [{"do": "only", "column": "title", "values": [True]}]}, "rules[0]: column title holds text, got"),
        (
            {"rules": [{"do": "only", "column": "title", "values": [{}]}]},
            "rules[0].values[0]: expected text of at most",
        ),
        ({"rules": [{"do": "cap", "column": "title"}]}, "rules[0]: by is missing, expected a number of items"),
        ({"rules": RULES * (MAX_RULES // 3 + 1)}, "rules: List should have at most 32 items"),
        ({"rules": RULES[0]}, "rules: Input should be a valid array"),
        ({"diversity": 1.5}, "diversity: Input should be less than or equal to 1"),
        ({"diversity": "0.5"}, "diversity: Input should be a valid number"),
    ],
)
def test_faults_are_answered_in_one_line(query: dict[str, Any], message: str, client: Client) -> None:
    for body, prefix in (({"history": ["i01"], **query}, ""), ({"requests": [{"history": ["i01"], **query}]}, "")):
        status, _, content = client.ask("/recommend", body)
        assert status == 422 and prefix + message in content["error"], content
    queries = [{"history": ["i01"]}, {"history": ["i01"], **query}]
    assert client.ask("/recommend", {"requests": queries})[2]["error"].startswith(f"requests[1].{message}")


def test_a_reload_follows_the_standing_rules(student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student, tmp_path / "model"))
    limits = Limits(max_k=200)
    with serving(folder, limits) as client:
        before = client.get("/model")["student"]
        assert before["rule_columns"] == ["item_id", "title"] and before["num_standing_rules"] == 0
        error = client.ask("/recommend", {"history": ["i01"], "k": 101, "diversity": 0.1})[2]["error"]
        assert error == "k is 101, expected at most 100 together with diversity"
        (folder / "rules.json").write_text(json.dumps(RULES[:1]), encoding="utf-8")
        assert client.ask("/reload", {})[2] == {"student": "loaded"}
        after = client.get("/model")["student"]
        assert after["num_standing_rules"] == 1 and after["version"] != before["version"]
        titles = {item["title"] for item in client.recommend(history=["i01"], k=LIMITS.max_k)["items"]}
        assert titles == {*RED[1:], "Thing number 4 in blue"}
        (folder / "rules.json").write_text('[{"do": "only"}]', encoding="utf-8")
        status, _, content = client.ask("/reload", {})
        assert status == 409 and "rules.json: rules[0].column: Field required" in content["error"]
        assert len(client.recommend(history=["i01"], k=LIMITS.max_k)["items"]) == 20
    with pytest.raises(CheckpointError, match=r"rules.json: rules\[0\].column: Field required"):
        load(folder)
