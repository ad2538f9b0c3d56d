"""One recommender, the caller's ids in and out."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmrec import Recommender
from slmrec.data.batching import pad_histories
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError, DataError, TrainingError
from slmrec.inference.batch.recommend_file import RankOptions, recommend_file
from slmrec.models.baselines import build_baseline
from slmrec.models.folder import save_recommender
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.serving.engine import Engine
from slmrec.serving.limits import Limits
from slmrec.serving.loading import load
from slmrec.serving.messages import Query

ITEMS = [f"i{n:02d}" for n in range(40)]


@pytest.fixture(scope="module")
def folder(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    model = SasRec(SasRecConfig(num_items=40, hidden_size=8, max_history_items=5))
    save_recommender(model, tiny_dataset, path, "tiny", {"ndcg@10": 0.5})
    return path


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return Recommender.from_pretrained(folder)


@given(st.lists(st.lists(st.sampled_from(ITEMS), max_size=12), min_size=1, max_size=4), st.integers(1, 60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lists_are_sound(recommender: Recommender, sequences: list[list[str]], k: int) -> None:
    rows = recommender.recommend(sequences, k).table.to_pylist()
    for user, history in enumerate(sequences):
        own = [row for row in rows if row["user_id"] == user]
        assert [row["rank"] for row in own] == list(range(1, min(k, 40 - len(set(history))) + 1))
        items = [row["item_id"] for row in own]
        assert len(set(items)) == len(items) and not set(items) & set(history) and set(items) <= set(ITEMS)
        scores = [row["score"] for row in own]
        assert scores == sorted(scores, reverse=True)


def test_a_user_is_answered_alike_alone_and_in_company(recommender: Recommender) -> None:
    sequences = [["i01"], ["i02", "i03", "i04"], []]
    together = recommender.recommend(sequences, 5).table["item_id"].to_pylist()
    alone = [recommender.recommend([sequence], 5).table["item_id"].to_pylist() for sequence in sequences]
    assert together == [item for items in alone for item in items]


def test_unknown_items_are_left_out_and_counted(recommender: Recommender) -> None:
    with_unknown = recommender.recommend([["nope", "i01", "never", "i02"]], 5)
    without = recommender.recommend([["i01", "i02"]], 5)
    assert with_unknown.table.equals(without.table)
    assert (with_unknown.num_unknown, without.num_unknown) == (2, 0)
    assert (with_unknown.first_unknown, without.first_unknown) == ("nope", None)


def test_without_a_history_the_popular_items_are_given_and_marked(
    recommender: Recommender, tiny_dataset: Dataset
) -> None:
    found = recommender.recommend([[], ["i01"], ["nope"]], 3, user_ids=["a", "b", "c"])
    assert found.fallback_users == ("a", "c")
    counts = tiny_dataset.train_counts()
    given_counts = [counts[ITEMS.index(item) + 1] for item in found.table["item_id"].to_pylist()[:3]]
    assert given_counts == sorted(counts, reverse=True)[:3]


def test_seen_items_on_request_and_candidates_alone(recommender: Recommender) -> None:
    assert recommender.recommend([["i01"]], 40, filter_seen=False).table.num_rows == 40
    found = recommender.recommend([["i01"]], 10, candidates=["i01", "i05", "i09"]).table["item_id"].to_pylist()
    assert set(found) == {"i05", "i09"}


def test_encode_is_the_newest_position(recommender: Recommender) -> None:
    assert recommender.encode([["i01", "i02"], ["i03"]]).shape == (2, 8)
    with pytest.raises(ConfigError, match="history 1 has no item"):
        recommender.encode([["i01"], ["nope"]])


def test_wrong_requests_are_refused(recommender: Recommender, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="k is 0"):
        recommender.recommend([["i01"]], 0)
    with pytest.raises(ConfigError, match="candidate 'nope' is not in the catalogue"):
        recommender.recommend([["i01"]], 1, candidates=["nope"])
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        Recommender.from_pretrained(tmp_path)


def test_a_vocabulary_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    pq.write_table(pq.read_table(folder / "items.parquet").slice(0, 39), broken / "items.parquet")
    with pytest.raises(CheckpointError, match="39 rows but the model knows 40"):
        Recommender.from_pretrained(broken)
    (broken / "items.parquet").unlink()
    with pytest.raises(CheckpointError, match="without which items have no ids"):
        Recommender.from_pretrained(broken)


def test_the_card_names_the_library_and_the_metrics(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: slmrec" in card and "| ndcg@10 | 0.5000 |" in card
    assert "from_pretrained(\"this folder\").recommend([['i00']])" in card


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    """Of a shop whose items are the numbers 70, 60, ... 10."""
    torch.manual_seed(0)
    users, items = pa.table({"user_id": [5]}), pa.table({"item_id": [70, 60, 50, 40, 30, 20, 10]})
    data = Dataset(np.arange(1, 8), np.array([0, 7]), users, items, "x")
    folder = tmp_path_factory.mktemp("numbered")
    save_recommender(
        SasRec(SasRecConfig(num_items=7, hidden_size=8, max_history_items=50)), data, folder, "numbered", {}
    )
    return Recommender.from_pretrained(folder)


def test_numbers_come_out_as_numbers_however_they_went_in(numbered: Recommender) -> None:
    found = numbered.recommend([[70, 10]], 9, user_ids=[5]).table
    assert set(found["item_id"].to_pylist()) == {20, 30, 40, 50, 60}
    assert found["user_id"].to_pylist() == [5] * 5
    texts = numbered.recommend([["70", "10"]], 9, user_ids=[5])
    assert texts.table.equals(found) and texts.num_unknown == 0


def test_nothing_known_of_padding(numbered: Recommender) -> None:
    found = numbered.recommend([[0, 70], [70]], 9, filter_seen=False)
    items = found.table["item_id"].to_pylist()
    assert items[:7] == items[7:]
    assert found.num_unknown == 1


def test_nothing_left_is_no_row(numbered: Recommender) -> None:
    everything = [10, 20, 30, 40, 50, 60, 70]
    found = numbered.recommend([everything, [70]], 3, user_ids=["full", "not"])
    assert found.table["user_id"].to_pylist() == ["not"] * 3
    assert found.fallback_users == ()
    nobody = numbered.recommend([], 3)
    assert nobody.table.num_rows == 0 and nobody.table.column_names == ["user_id", "item_id", "score", "rank"]


def test_lists_do_not_depend_on_how_users_are_batched(recommender: Recommender, monkeypatch: Any) -> None:
    sequences = [ITEMS[user % 30 : user % 30 + user % 8] for user in range(23)]
    whole = recommender.recommend(sequences, 5)
    monkeypatch.setattr("slmrec.inference.recommender.BATCH_USERS", 3)
    parts = recommender.recommend(sequences, 5)
    assert whole.table.drop(["score"]).equals(parts.table.drop(["score"]))
    assert whole.table["score"].to_pylist() == pytest.approx(parts.table["score"].to_pylist(), rel=1e-5)
    assert whole.fallback_users == parts.fallback_users == (0, 8, 16)


def test_a_text_in_place_of_a_list_is_refused(recommender: Recommender) -> None:
    for ask in (recommender.recommend, recommender.encode):
        with pytest.raises(ConfigError, match=r"history 1 is 'i02', expected a list of item ids; give \['i02'\]"):
            ask([["i01"], "i02"])
        with pytest.raises(ConfigError, match=r"is \[9, 18\], expected a list of histories; give \[\[9, 18\]\]"):
            ask([9, 18])


def test_scores_that_are_not_numbers_are_refused(folder: Path) -> None:
    broken = Recommender.from_pretrained(folder)
    assert isinstance(broken.model, SasRec)
    with torch.no_grad():
        broken.model.position_embeddings.weight[1] = torch.nan  # the second newest item's
    with pytest.raises(TrainingError, match=r"scores of user 'b' are NaN, expected numbers; train the model again"):
        broken.recommend([["i01"], ["i01", "i02"]], 3, user_ids=["a", "b"])


EVENTS = {"user_id": ["b", "a", "a", "b"], "item_id": ["i03", "i02", "i01", "i04"], "timestamp": [1, 9, 2, 1]}
HISTORIES = {"user_id": ["b", "a"], "history": [["i03", "i04"], ["i01", "i02"]]}


def write(values: dict[str, list[object]], path: Path) -> Path:
    table = pa.table(values)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    else:
        texts = {name: [" ".join(v) if isinstance(v, list) else v for v in column] for name, column in values.items()}
        pa_csv.write_csv(pa.table(texts), path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("values", [EVENTS, HISTORIES], ids=["events", "histories"])
def test_files_give_what_python_gives(
    suffix: str, values: dict[str, list[object]], folder: Path, recommender: Recommender, tmp_path: Path
) -> None:
    source, target = write(values, tmp_path / f"in{suffix}"), tmp_path / f"out{suffix}"
    recommend_file(folder, source, target, RankOptions(3))
    expected = recommender.recommend([["i03", "i04"], ["i01", "i02"]], 3, user_ids=["b", "a"]).table
    if suffix == ".jsonl":
        found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    else:
        found = (pq.read_table(target) if suffix == ".parquet" else pa_csv.read_csv(target)).to_pylist()
    assert list(found[0]) == ["user_id", "item_id", "score", "rank"]
    for row, other in zip(found, expected.to_pylist(), strict=True):
        assert row | {"score": pytest.approx(row["score"], rel=1e-5)} == other


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["txt", "tsv", "csv", "jsonl", "parquet"])
def test_what_prepare_reads_is_read_too(kind: str, packed: bool, folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / f"in.{kind}"
    if kind == "txt":
        plain.write_text("b\ti03  i04\n\na i01 i02\n", encoding="utf-8")
    elif kind == "tsv":
        plain.write_text("user_id\titem_id\ttimestamp\nb\ti03\t1\na\ti01\t2\nb\ti04\t3\na\ti02\t4\n", encoding="utf-8")
    else:
        write(HISTORIES, plain)
    source = tmp_path / f"in.{kind}.gz" if packed else plain
    source.write_bytes(gzip.compress(plain.read_bytes()) if packed else plain.read_bytes())
    recommend_file(folder, source, tmp_path / "out.jsonl", RankOptions(3))
    recommend_file(folder, write(HISTORIES, tmp_path / "same.jsonl"), tmp_path / "expected.jsonl", RankOptions(3))
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "expected.jsonl").read_text()


def test_commas_part_ids_unless_they_are_in_some(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "slmrec")
    expected = answered(folder, tmp_path, "in.jsonl", lines_of({"user_id": "u", "history": ["i01", "i02"]}))
    for history in ('"i01,i02"', '"i01, i02"', '"[""i01"", ""i02""]"', "i01 i02"):
        assert answered(folder, tmp_path, "in.csv", f"user_id,history\nu,{history}\n") == expected
    plain = Recommender.from_pretrained(folder)
    renamed = pa.array(["i,00", *plain.vocabulary.item_ids.to_pylist()[1:]])
    Recommender(plain.model, plain.vocabulary._replace(item_ids=renamed)).save_pretrained(tmp_path / "other")
    answered(tmp_path / "other", tmp_path, "in.csv", 'user_id,history\nu,"i,00 i01,i02"\n')
    assert "1 unknown items ignored, the first one 'i01,i02'" in caplog.messages[-1]


def test_the_summary_says_when_there_are_fewer(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "slmrec")
    source = write(HISTORIES, tmp_path / "in.jsonl")
    recommend_file(folder, source, tmp_path / "out.jsonl", RankOptions(38))
    recommend_file(folder, source, tmp_path / "out.jsonl", RankOptions(39))
    assert [message.partition("; ")[2] for message in caplog.messages] == [
        "",
        "some users received fewer than 39 because no more items are available",
    ]


def test_wrong_files_are_refused(folder: Path, tmp_path: Path) -> None:
    source = write({"user": ["a"], "items": ["i01"]}, tmp_path / "in.csv")
    with pytest.raises(DataError, match=r"columns user, items; expected user_id and history .*; rename the columns"):
        recommend_file(folder, source, tmp_path / "out.csv", RankOptions(3))
    with pytest.raises(ConfigError, match=r"out.xls: recommendations are written as"):
        recommend_file(folder, source, tmp_path / "out.xls", RankOptions(3))
    (tmp_path / "in.xls").write_bytes(b"\xd0\xcf\x11\xe0\x00\x00")
    with pytest.raises(DataError, match=r"in.xls: line 1: byte .* is not text"):
        recommend_file(folder, tmp_path / "in.xls", tmp_path / "out.csv", RankOptions(3))
    with pytest.raises(DataError, match="no such file"):
        recommend_file(folder, tmp_path / "none.csv", tmp_path / "out.csv", RankOptions(3))
    (tmp_path / "bad.csv").write_text('user_id,history\na,"[1, "\n', encoding="utf-8")
    with pytest.raises(DataError, match="no JSON list"):
        recommend_file(folder, tmp_path / "bad.csv", tmp_path / "out.csv", RankOptions(3))
    assert not list(tmp_path.glob("out.*"))


def answered(folder: Path, tmp_path: Path, name: str, content: str) -> list[dict[str, Any]]:
    (tmp_path / name).write_text(content, encoding="utf-8")
    recommend_file(folder, tmp_path / name, tmp_path / "out.jsonl", RankOptions(40))
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]


def lines_of(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "times",
    [(10, 9), (10.5, 9.0), ("10", "9"), ("2024-01-10", "2024-01-09"), ("2024-01-09T10:00Z", "2024-01-09T10:00+01:00")],
)
def test_times_are_compared_as_what_they_are(times: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    later, earlier = times
    events = [
        {"user_id": "u", "item_id": "i01", "timestamp": later, "row": 1},
        {"user_id": "u", "item_id": "i02", "timestamp": earlier, "row": 2},
    ]
    expected = answered(folder, tmp_path, "in.jsonl", lines_of({"user_id": "u", "history": ["i02", "i01"]}))
    assert answered(folder, tmp_path, "in.jsonl", lines_of(*events)) == expected
    text = "user_id,item_id,timestamp,row\n" + "".join(",".join(map(str, event.values())) + "\n" for event in events)
    assert answered(folder, tmp_path, "in.csv", text) == expected
    opposite = answered(folder, tmp_path, "in.jsonl", lines_of({"user_id": "u", "history": ["i01", "i02"]}))
    assert opposite != expected


def test_ids_that_are_all_dates_stay_as_they_are_written(folder: Path, tmp_path: Path) -> None:
    found = answered(folder, tmp_path, "in.jsonl", lines_of({"user_id": "2024-01-09", "history": ["i01"]}))
    assert {row["user_id"] for row in found} == {"2024-01-09"}


def test_ids_stay_as_they_are_written(folder: Path, tmp_path: Path) -> None:
    users = ["2024-01-09", "007", 'a,"b"', "日本"]
    content = lines_of(*({"user_id": user, "history": ["i01"]} for user in users))
    found = answered(folder, tmp_path, "in.jsonl", content)
    assert list(dict.fromkeys(row["user_id"] for row in found)) == users
    text = 'user_id,history\n2024-01-09,i01\n007,i01\n"a,""b""",i01\n日本,i01\n'
    assert answered(folder, tmp_path, "in.csv", text) == found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", "user_id,item_id,timestamp\nu,i01,1\nu,i02,\n", r"in\.csv: line 3: timestamp is .*: .*expected "),
        ("in.csv", "user_id,item_id,timestamp\nu,i01,1\nu,i02,soon\n", r"line 3: timestamp is 'soon': .*correct or"),
        ("in.csv", "user_id,item_id,timestamp\nu,i01,soon\nu,i02,5\n", r"line 2: timestamp is 'soon': "),
        ("in.csv", "user_id,item_id,timestamp\nu,i01,2024-01-09\nu,i02,5\n", r"line 3: timestamp is '5': .*one way"),
        ("in.jsonl", '{"user_id": "u", "history": ["i01"]}\n{"user', r"in\.jsonl: line 2: '\{\"user' is not JSON"),
        ("in.jsonl", "[1]\n", r"in\.jsonl: line 1: '\[1\]' is not a JSON object; write one JSON object per line"),
        ("in.jsonl", "", r"in\.jsonl: the file is empty"),
        ("in.csv", "", r"in\.csv: the file is empty"),
        ("in.parquet", "no parquet", r"in\.parquet: cannot be read"),
        (
            "in.jsonl",
            lines_of({"user_id": 1, "history": []}, {"user_id": None, "history": []}),
            r"line 2: user_id is N",
        ),
        (
            "in.jsonl",
            lines_of({"user_id": 1, "history": []}, {"user_id": 2}),
            r"line 2: history is None: expected a list",
        ),
        (
            "in.jsonl",
            lines_of({"user_id": 1, "history": {"a": 1}}),
            r"line 1: history is .*: expected a list of item ids",
        ),
        (
            "in.jsonl",
            lines_of({"user_id": 1, "history": [["i01"]]}),
            r"line 1: item 1 of the history of user 1 .*one id",
        ),
        ("in.csv", "user_id,history\nu,i01,2\n", r"line 2: 'u,i01,2': 3 columns, expected 2; correct the line"),
        (
            "in.csv",
            'user_id,history\n"[1, 2]",i01\n',
            r"line 2: user_id is '\[1, 2\]': a list or an object, expected one",
        ),
    ],
)
def test_files_that_are_refused(name: str, content: str, message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        answered(folder, tmp_path, name, content)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture(scope="module", params=["popularity", "cooccurrence"])
def counted(request: pytest.FixtureRequest, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_recommender(build_baseline(request.param, tiny_dataset), tiny_dataset, path, request.param, {})
    return path


def test_a_counted_model_recommends(counted: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    recommender, histories = Recommender.from_pretrained(counted), [["i01", "i05"], ["i07"], []]
    model = build_baseline(counted.name.rstrip("0123456789"), tiny_dataset)
    encoded = model.encode(pad_histories([[2, 6], [8]], 1))
    scores = (encoded.users @ model.item_vectors().T).index_fill(1, torch.tensor([0]), -torch.inf)
    if encoded.bonus is not None:
        scores.scatter_add_(1, encoded.bonus.items, encoded.bonus.scores)
    torch.testing.assert_close(recommender.score(histories[:2]), scores[:, 1:])
    torch.testing.assert_close(recommender.score(histories[:2], ["i03", "i01"]), scores[:, [4, 2]])
    lists = recommender.recommend(histories, 4).to_lists()
    for row, (history, found) in enumerate(zip(histories[:2], lists, strict=False)):
        seen = [ITEMS.index(item) + 1 for item in history]
        best = scores[row].index_fill(0, torch.tensor([0, *seen]), -torch.inf).topk(4).values
        assert [score for _, score in found] == pytest.approx(best.tolist())
    write({"user_id": ["a", "b"], "history": histories[:2]}, tmp_path / "in.jsonl")
    recommend_file(counted, tmp_path / "in.jsonl", tmp_path / "out.parquet", RankOptions(4))
    assert pq.read_table(tmp_path / "out.parquet")["item_id"].to_pylist() == [item for item, _ in lists[0] + lists[1]]


def test_a_counted_model_is_served_by_the_engine(counted: Path) -> None:
    engine, recommender = Engine(load(counted), Limits()), Recommender.from_pretrained(counted)
    expected = recommender.recommend([["i01", "i05"]], 4).to_lists()[0]
    queries = [[Query(history=["i01", "i05"], k=4)], [Query(session_id="s", history=["i01"], k=4)]]
    whole = engine.answer(queries)[0][0]
    session = engine.answer([[Query(session_id="s", events=["i05"], k=4)]])[0][0]
    for found in (whole, session):
        assert [(ITEMS[item - 1], score) for item, score in found.ranked] == [
            (item, pytest.approx(score)) for item, score in expected
        ]


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cpu:1"])
def test_a_device_that_does_not_exist_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"device is '{name}', which is not available on this machine; choose one"):
        Recommender.from_pretrained(folder, device=name)


def test_a_device_can_be_chosen(folder: Path, recommender: Recommender) -> None:
    chosen = Recommender.from_pretrained(folder, device="cpu")
    assert chosen.ranker.model.device.type == "cpu"
    assert chosen.recommend([["i01"]], 3).table.equals(recommender.recommend([["i01"]], 3).table)
