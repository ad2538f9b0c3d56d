"""One recommender, the caller's ids in and out."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmrec import Recommender
from slmrec.checkpoint import save_recommender
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError, DataError
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.stages.recommend import recommend_file

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
    import shutil

    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    pq.write_table(pq.read_table(folder / "items.parquet").slice(1), broken / "items.parquet")
    with pytest.raises(CheckpointError, match="39 rows but the model knows 40"):
        Recommender.from_pretrained(broken)
    (broken / "items.parquet").unlink()
    with pytest.raises(CheckpointError, match="without which items have no ids"):
        Recommender.from_pretrained(broken)


def test_the_card_names_the_library_and_the_metrics(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: slmrec" in card and "| ndcg@10 | 0.5000 |" in card


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
    recommend_file(folder, source, target, 3)
    expected = recommender.recommend([["i03", "i04"], ["i01", "i02"]], 3, user_ids=["b", "a"]).table
    if suffix == ".jsonl":
        found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    else:
        found = (pq.read_table(target) if suffix == ".parquet" else pa_csv.read_csv(target)).to_pylist()
    assert list(found[0]) == ["user_id", "item_id", "score", "rank"]
    for row, other in zip(found, expected.to_pylist(), strict=True):
        assert row | {"score": pytest.approx(row["score"], rel=1e-5)} == other


def test_wrong_files_are_refused(folder: Path, tmp_path: Path) -> None:
    source = write({"user": ["a"], "items": ["i01"]}, tmp_path / "in.csv")
    with pytest.raises(DataError, match=r"columns user, items; expected user_id and history"):
        recommend_file(folder, source, tmp_path / "out.csv", 3)
    with pytest.raises(ConfigError, match=r"out.xls: recommendations are written as"):
        recommend_file(folder, source, tmp_path / "out.xls", 3)
    with pytest.raises(DataError, match="no such file"):
        recommend_file(folder, tmp_path / "none.csv", tmp_path / "out.csv", 3)
    (tmp_path / "bad.csv").write_text('user_id,history\na,"[1, "\n', encoding="utf-8")
    with pytest.raises(DataError, match="no JSON list"):
        recommend_file(folder, tmp_path / "bad.csv", tmp_path / "out.csv", 3)
    assert not list(tmp_path.glob("out.*"))
