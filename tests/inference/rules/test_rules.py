"""Rules in Python and in files, against a plain loop over the scores of all items."""

import json
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from artefacts import MODELS, NUM_ITEMS, ensemble, sasrec
from torch.nn import functional as F

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.errors import CheckpointError, ConfigError, DataError
from slmrec.inference.rules.rule import MAX_RULES, parse_rules
from slmrec.models.baselines import Popularity, PopularityConfig
from slmrec.models.folder import Vocabulary
from slmrec.models.model import Model

IDS = [f"i{item:02d}" for item in range(NUM_ITEMS)]
BRANDS = [None if item % 7 == 0 else f"b{item % 3}" for item in range(NUM_ITEMS)]
COLUMNS: dict[str, pa.Array] = {
    "brand": pa.array(BRANDS),
    "stock": pa.array([None if item == 9 else item % 4 for item in range(NUM_ITEMS)], pa.int64()),
    "price": pa.array([float("nan") if item == 8 else item / 10 for item in range(NUM_ITEMS)], pa.float32()),
    "new": pa.array([item % 2 == 0 for item in range(NUM_ITEMS)]),
    "since": pa.array([date(2026, 1, 1 + item % 28) for item in range(NUM_ITEMS)]),
    "at": pa.array([datetime(2026, 1, 1, item % 24) for item in range(NUM_ITEMS)], pa.timestamp("ms", "UTC")),
    "cost": pa.array([Decimal(item) / 4 for item in range(NUM_ITEMS)], pa.decimal128(6, 2)),
    "size": pa.array([str(item % 5) for item in range(NUM_ITEMS)]),  # as a CSV file has numbers
    "kind": pa.array(["x", "y"] * 20).dictionary_encode(),
    "tags": pa.array([["a"]] * NUM_ITEMS),
}
BRANDS_OR_STOCK = {"b0", "b1", "b2", 0, 1, 2, 3}
HISTORIES = [["i20", "i01"], ["i07", "i08", "nope"], []]


def shop(model: Model, **options: Any) -> Recommender:
    counts, titles = pa.array(range(1, NUM_ITEMS + 1)), pa.array([f"Title {item % 10}" for item in range(NUM_ITEMS)])
    return Recommender(model, Vocabulary(pa.array(IDS), titles, counts, columns=COLUMNS), **options)


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return shop(sasrec())


def all_scores(recommender: Recommender, history: list[str]) -> np.ndarray:
    known = [item for item in history if item in IDS]
    return recommender.score([known])[0].double().numpy() if known else np.arange(1.0, NUM_ITEMS + 1)


def expected(
    recommender: Recommender, history: list[str], rules: list[dict[str, Any]], k: int, diversity: float = 0.0
) -> list[tuple[str, float]]:
    """Return the list of one user: boosts, exclusions, then item by item under caps, with diversity by MMR."""
    scores = all_scores(recommender, history)
    boosted, left = scores.copy(), [item for item in range(NUM_ITEMS) if IDS[item] not in history]
    columns = {name: column.to_pylist() for name, column in COLUMNS.items()}
    for rule in rules:
        has = [rule.get("values") is None or value in rule["values"] for value in columns[rule["column"]]]
        if rule["do"] == "boost":
            boosted += rule["by"] * scores.std() * np.array(has)
        if rule["do"] in ("exclude", "only"):
            left = [item for item in left if has[item] == (rule["do"] == "only")]
    caps = [rule for rule in rules if rule["do"] == "cap"]
    left = sorted(left, key=lambda item: -boosted[item])  # the pool holds all items: there are fewer than 100
    vectors = F.normalize(recommender.ranker.model.item_vectors()[1:].double(), dim=1).numpy()
    mean, deviation = boosted[left].mean() if left else 0.0, boosted[left].std() if left else 1.0
    chosen: list[int] = []
    used: list[Counter[Any]] = [Counter() for _ in caps]
    while left and len(chosen) < k:
        near = {item: max((vectors[item] @ vectors[other] for other in chosen), default=0.0) for item in left}
        best = max(left, key=lambda item: (1 - diversity) * (boosted[item] - mean) / deviation - diversity * near[item])
        left.remove(best)
        values = [columns[cap["column"]][best] for cap in caps]
        trios = zip(caps, used, values, strict=True)
        own = [trio for trio in trios if trio[2] in (trio[0].get("values") or BRANDS_OR_STOCK)]
        if any(counter[value] >= cap["by"] for cap, counter, value in own):
            continue
        chosen.append(best)
        for _, counter, value in own:
            counter[value] += 1
    return [(IDS[item], boosted[item]) for item in chosen]


def check_lists(found: list[list[tuple[Any, float]]], wanted: list[list[tuple[str, float]]]) -> None:
    assert [[item for item, _ in each] for each in found] == [[item for item, _ in each] for each in wanted]
    for own, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose([score for _, score in own], [score for _, score in other], rtol=1e-4, atol=1e-4)


RULES: dict[str, list[dict[str, Any]]] = {
    "exclude": [{"do": "exclude", "column": "brand", "values": ["b1", None]}],
    "only, twice": [
        {"do": "only", "column": "stock", "values": [1, 2, 3]},
        {"do": "only", "column": "new", "values": [True]},
    ],
    "boosts add up": [
        {"do": "boost", "column": "brand", "values": ["b2"], "by": 1.5},
        {"do": "boost", "column": "stock", "values": [0], "by": -0.75},
    ],
    "cap of each value": [{"do": "cap", "column": "brand", "by": 2}],
    "cap of some values": [{"do": "cap", "column": "brand", "values": ["b0", "b1"], "by": 1}],
    "two caps": [{"do": "cap", "column": "brand", "by": 4}, {"do": "cap", "column": "stock", "by": 1}],
    "all": [
        {"do": "only", "column": "stock", "values": [0, 1, 2]},
        {"do": "exclude", "column": "brand", "values": ["b1"]},
        {"do": "boost", "column": "brand", "values": [None], "by": 0.5},
        {"do": "cap", "column": "stock", "by": 3},
    ],
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("k", [1, 5, NUM_ITEMS])
def test_lists_are_those_of_a_plain_loop(name: str, k: int, recommender: Recommender) -> None:
    found = recommender.recommend(HISTORIES, k=k, rules=RULES[name]).to_lists()
    check_lists(found, [expected(recommender, history, RULES[name], k) for history in HISTORIES])
    diverse = recommender.recommend(HISTORIES, k=k, rules=RULES[name], diversity=0.6).to_lists()
    check_lists(diverse, [expected(recommender, history, RULES[name], k, 0.6) for history in HISTORIES])


@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_model_takes_rules(model: str) -> None:
    recommender, rules = shop(MODELS[model]()), RULES["all"]
    found = recommender.recommend(HISTORIES, k=6, rules=rules).to_lists()
    check_lists(found, [expected(recommender, history, rules, 6) for history in HISTORIES])


def test_no_diversity_changes_nothing_and_more_of_it_makes_lists_more_diverse() -> None:
    recommender, histories = shop(ensemble()), [[item_id] for item_id in IDS]
    plain = recommender.recommend(histories, k=8)
    assert recommender.recommend(histories, k=8, diversity=0).table.equals(plain.table)
    vectors = F.normalize(recommender.ranker.model.item_vectors()[1:], dim=1)
    similarities = []
    for diversity in (0.0, 0.5, 1.0):
        lists = recommender.recommend(histories, k=8, diversity=diversity).to_lists()
        assert [each[0] for each in lists] == [each[0] for each in plain.to_lists()]  # the best item stays first
        places = [[IDS.index(str(item)) for item, _ in each] for each in lists]
        near = [(vectors[own] @ vectors[own].T - 2 * torch.eye(8)).max(dim=1).values.mean() for own in places]
        similarities.append(float(torch.stack(near).mean()))
    assert similarities[0] > similarities[1] > similarities[2]


def test_the_answer_for_a_user_does_not_depend_on_the_others(recommender: Recommender) -> None:
    together = recommender.recommend(HISTORIES, k=5, rules=RULES["two caps"], diversity=0.3).to_lists()
    for history, own in zip(HISTORIES, together, strict=True):
        check_lists(recommender.recommend([history], k=5, rules=RULES["two caps"], diversity=0.3).to_lists(), [own])


def test_candidates_and_excluded_items_join_the_rules(recommender: Recommender) -> None:
    options = {"candidates": ["i02", "i03", "i04", "i07"], "exclude": ["i03"], "k": 10}
    found = recommender.recommend(HISTORIES, **options, rules=RULES["exclude"]).to_lists()
    assert [{item for item, _ in own} for own in found] == [{"i02"}] * 3
    boosted = recommender.recommend(HISTORIES, **options, rules=RULES["boosts add up"]).to_lists()
    assert {item for item, _ in boosted[0]} == {"i02", "i04", "i07"}
    nobody = [{"do": do, "column": "brand", "values": ["b1"]} for do in ("only", "exclude")]
    assert recommender.recommend(HISTORIES, rules=nobody).sizes == (0, 0, 0)


@pytest.mark.parametrize(
    ("column", "values", "items"),
    [
        ("item_id", ["i05", "nope"], {5}),
        ("title", ["Title 3"], {3, 13, 23, 33}),
        ("stock", [3.0, "2", np.int64(3)], {item for item in range(NUM_ITEMS) if item % 4 > 1 and item != 9}),
        ("stock", [None], {9}),
        ("price", [0.1, float("nan")], {1, 8}),
        ("price", pd.Series([0.3]), {3}),
        ("new", ["true"], {*range(0, NUM_ITEMS, 2)}),
        ("since", [date(2026, 1, 28), "2026-01-27"], {26, 27}),
        ("at", ["2026-01-01T03:00:00+01:00", datetime(2026, 1, 1, 23)], {2, 26, 23}),
        ("cost", [0.25, Decimal("0.50"), 1], {1, 2, 4}),
        ("size", [4, "0"], {item for item in range(NUM_ITEMS) if item % 5 in (0, 4)}),
        ("kind", ["x"], {*range(0, NUM_ITEMS, 2)}),
    ],
)
def test_values_are_compared_by_the_type_of_their_column(
    column: str, values: Any, items: set[int], recommender: Recommender
) -> None:
    rule = {"do": "only", "column": column, "values": values}
    found = recommender.recommend([[]], k=NUM_ITEMS, rules=[rule]).table["item_id"].to_pylist()
    assert set(found) == {IDS[item] for item in items}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"do": "hide", "column": "brand", "values": ["b1"]}], "rules[0].do: Input should be .* got 'hide'"),
        (
            [{"do": "only", "column": "colour", "values": [1]}],
            "column 'colour' is not in the model folder, .* item_id,",
        ),
        ([{"do": "only", "column": "brand"}], "only needs values"),
        ([{"do": "only", "column": "brand", "values": []}], "rules[0].values: .*at least 1 item"),
        ([{"do": "only", "column": "brand", "values": "b1"}], "rules[0].values: .*valid tuple, got 'b1'"),
        ([{"do": "only", "column": "brand", "values": [["b1"]]}], r"expected text .* got \['b1'\]"),
        ([{"do": "only", "column": "brand", "values": [3]}], "column brand holds text, got the value 3"),
        ([{"do": "only", "column": "stock", "values": [1.5]}], "column stock holds whole numbers, got the value 1.5"),
        ([{"do": "only", "column": "stock", "values": [2**70]}], "column stock holds values of the type int64"),
        ([{"do": "only", "column": "stock", "values": [True]}], "column stock holds whole numbers, got the value True"),
        ([{"do": "only", "column": "new", "values": [1]}], "column new holds booleans, got the value 1"),
        ([{"do": "only", "column": "since", "values": ["soon"]}], "column since holds dates, got the value 'soon'"),
        ([{"do": "cap", "column": "tags", "by": 1}], "column tags has the type list"),
        ([{"do": "only", "column": "brand", "values": ["b1"], "by": 2}], "by is 2, which has no effect with only"),
        ([{"do": "boost", "column": "brand", "values": ["b1"]}], "by is missing, expected standard deviations"),
        ([{"do": "boost", "column": "brand", "values": ["b1"], "by": float("inf")}], "rules[0].by: .*finite number"),
        ([{"do": "cap", "column": "brand", "by": 0}], "by is 0, expected a number of items, at least 1"),
        ([{"do": "cap", "column": "brand", "by": 1.5}], "by is 1.5, expected a number of items"),
        ([{"do": "cap", "column": "brand", "by": 1, "note": "x"}], "rules[0].note: Extra inputs are not permitted"),
        ({"do": "cap", "column": "brand", "by": 1}, "rules is {.*expected a list of rules"),
        ([{"do": "cap", "column": "brand", "by": 1}] * (MAX_RULES + 1), "rules has 33 rules, expected at most 32"),
    ],
)
def test_faults_are_one_line(rules: Any, message: str, recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match=message.replace("rules[0]", r"rules\[0\]")) as error:
        recommender.recommend(HISTORIES, rules=rules)
    assert "\n" not in str(error.value)


def test_equal_values_of_other_types_are_not_confused(recommender: Recommender) -> None:
    first, second = ({"do": "only", "column": "new", "values": [value]} for value in (True, 1))
    recommender.recommend([[]], rules=[first])
    with pytest.raises(ConfigError, match="holds booleans"):
        recommender.recommend([[]], rules=[second])
    assert parse_rules([first])[0] is not recommender.rules.standing


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_diversity_is_a_number_from_0_to_1(diversity: Any, recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match="expected a number from 0 to 1"):
        recommender.recommend(HISTORIES, diversity=diversity)


def test_a_model_without_item_vectors_takes_rules_but_no_diversity() -> None:
    model = Popularity(PopularityConfig(NUM_ITEMS))
    model.counts.copy_(torch.arange(NUM_ITEMS + 1)[:, None].float())
    popularity = shop(model.eval())
    assert popularity.recommend([["i01"]], k=1, rules=RULES["exclude"]).to_lists() == [[("i39", 40.0)]]
    with pytest.raises(ConfigError, match="the model has no item vectors"):
        popularity.recommend([["i01"]], diversity=0.5)


def test_standing_rules_hold_for_every_request(recommender: Recommender, tmp_path: Path) -> None:
    standing = shop(sasrec(), rules=RULES["exclude"])
    standing.save_pretrained(tmp_path / "model")
    opened = Recommender.from_pretrained(tmp_path / "model")
    both = [*RULES["exclude"], *RULES["boosts add up"]]
    found = opened.recommend(HISTORIES, rules=RULES["boosts add up"]).to_lists()
    check_lists(found, [expected(recommender, history, both, 10) for history in HISTORIES])
    path = tmp_path / "model" / "rules.json"
    for content, message in (
        ("[", "rules cannot be read"),
        ('{"do": "cap"}', "expected a list of rules"),
        ('[{"do": "only", "column": "colour", "values": [1]}]', "rules[0]: column 'colour' is not in the model folder"),
        ('[{"do": "only", "column": "item_id", "values": ["nope"]}]', "the rules leave no item to recommend"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(CheckpointError) as error:
            Recommender.from_pretrained(tmp_path / "model")
        assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_the_command_takes_rules_and_diversity(
    recommender: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recommender.save_pretrained(tmp_path / "model")
    rules = [*RULES["all"], {"do": "exclude", "column": "brand", "values": ["b9"]}]
    (tmp_path / "rules.json").write_text(json.dumps(rules), encoding="utf-8")
    (tmp_path / "rules.yaml").write_text(json.dumps(rules), encoding="utf-8")
    (tmp_path / "in.jsonl").write_text('{"user_id": 1, "history": ["i20", "i01"]}\n', encoding="utf-8")
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.parquet"), "--k", "6"]
    command = ["recommend", "--model", str(tmp_path / "model"), *files, "--diversity", "0.4", "--rules"]
    for name in ("rules.json", "rules.yaml"):
        assert main([*command, str(tmp_path / name)]) == 0
        found = pq.read_table(tmp_path / "out.parquet")
        pairs = list(zip(found["item_id"].to_pylist(), found["score"].to_pylist(), strict=True))
        check_lists([pairs], [expected(recommender, HISTORIES[0], RULES["all"], 6, 0.4)])
        assert "rules[4]: no item has a value of the column brand that it names" in capsys.readouterr().err
    (tmp_path / "rules.json").write_text('[{"do": "only", "column": "colour", "values": [1]}]', encoding="utf-8")
    for name in ("rules.json", "rules.txt", "absent.json"):
        assert main([*command, str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith(f"slmrec: {tmp_path / name}: ")


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_users_of_a_file_ask_for_their_own_rules(
    form: str, recommender: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recommender.save_pretrained(tmp_path / "model")
    (tmp_path / "all.json").write_text(json.dumps(RULES["exclude"]), encoding="utf-8")
    own = [RULES["two caps"], [], RULES["boosts add up"], RULES["two caps"]]
    rows = [
        {"user_id": user, "history": HISTORIES[user % 2], "rules": rules or None, "diversity": diversity}
        for user, (rules, diversity) in enumerate(zip(own, (0.4, None, None, 0.0), strict=True))
    ]
    path = tmp_path / f"in.{form}"

    def write() -> None:
        if form == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            return
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
            return
        table = pd.DataFrame(rows).assign(history=[" ".join(row["history"]) for row in rows])
        table["rules"] = [row["rules"] and json.dumps(row["rules"]) for row in rows]
        table.to_csv(path, index=False)

    if form == "parquet":  # its column of rules has one type
        own[2] = rows[2]["rules"] = RULES["cap of each value"]
    write()
    command = ["recommend", "--model", str(tmp_path / "model"), "--input", str(path), "--k", "4", "--diversity", "0.2"]
    command += ["--output", str(tmp_path / "out.parquet"), "--rules"]
    assert main([*command, str(tmp_path / "all.json")]) == 0
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    lists = [[(row["item_id"], row["score"]) for row in found if row["user_id"] == user] for user in range(4)]
    assert [row["user_id"] for row in found] == [user for user in range(4) for _ in range(4)]
    weights = [0.4, 0.2, 0.2, 0.0]
    check_lists(
        lists,
        [
            expected(recommender, HISTORIES[user % 2], [*RULES["exclude"], *own[user]], 4, weights[user])
            for user in range(4)
        ],
    )
    rows[1]["rules"] = [{"do": "cap", "column": "colour", "by": 1}]
    write()
    capsys.readouterr()
    assert main([*command, str(tmp_path / "all.json")]) == 2
    said = capsys.readouterr().err
    assert "rules of user " in said and "colour" in said and "rules[0]: column 'colour' is not in the model" in said


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("frame", [pa.table, pd.DataFrame, pl.DataFrame], ids=["arrow", "pandas", "polars"])
def test_users_of_a_table_ask_for_their_own_rules(frame: Any, as_text: bool, recommender: Recommender) -> None:
    own, weights = [RULES["two caps"], None, RULES["cap of each value"], None], [0.4, None, None, 0.0]
    rules = [one and json.dumps(one) for one in own] if as_text else own
    histories = [HISTORIES[user % 2] for user in range(4)]
    table = frame({"user_id": list("abcd"), "history": histories, "rules": rules, "diversity": weights})
    found = recommender.recommend(table, k=4, rules=RULES["exclude"], diversity=0.2)
    lists = [
        expected(recommender, history, [*RULES["exclude"], *(one or [])], 4, 0.2 if weight is None else weight)
        for history, one, weight in zip(histories, own, weights, strict=True)
    ]
    check_lists(found.to_lists(), lists)
    assert found.table["user_id"].to_pylist() == [user for user in "abcd" for _ in range(4)]
    with pytest.raises(ConfigError, match="the table has rules or diversity, which change no scores; leave these"):
        recommender.score(table)


def test_faults_in_the_rules_of_a_user_are_named(recommender: Recommender) -> None:
    def fault(**columns: Any) -> str:
        table = pa.table({"user_id": ["a", "b"], "history": [["i01"], ["i02"]]} | columns)
        with pytest.raises(DataError) as error:
            recommender.recommend(table, rules=RULES["exclude"])
        return str(error.value)

    cap = {"do": "cap", "column": "brand", "by": 1.0}
    colour = json.dumps([cap | {"column": "colour"}])
    said = fault(rules=[None, colour])
    assert said.startswith("histories: row 2") and "rules of user 'b'" in said and "'colour' is not in" in said
    assert "rules has 33 rules, expected at most 32" in fault(rules=[json.dumps([cap] * 32), None])
    assert "diversity is 1.5, expected a number from 0 to 1" in fault(diversity=[0.5, 1.5])
    assert "expected a JSON list of rules" in fault(rules=["cap", None])
