"""Items that join a model without training, and items that it no longer recommends."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from artefacts import MODELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.models.folder import load_recommender, replace_vocabulary, save_recommender
from slmrec.models.item_tables import item_rows, text_columns

ITEMS = [f"i{n:02d}" for n in range(40)]


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_recommender(MODELS[request.param](), tiny_dataset, path, "tiny", {"ndcg@10": 0.5})
    return path


@pytest.fixture(scope="module")
def plain(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain")
    save_recommender(MODELS["titles"](), tiny_dataset, path, "tiny", {"ndcg@10": 0.5})
    return path


def write(tmp_path: Path, rows: list[dict[str, Any]], name: str = "new.parquet") -> Path:
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def changed(command: str, model: Path, items: Path, *more: str) -> int:
    return main(["items", command, "--model", str(model), "--items", str(items), *more])


def lists(folder: Path, histories: list[list[str]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Recommender.from_pretrained(folder).recommend(histories, 99).table.to_pylist()
    return found


def test_an_item_with_the_vector_of_another_is_scored_and_read_alike(folder: Path, tmp_path: Path) -> None:
    old = Recommender.from_pretrained(folder)
    vector = item_rows(old.model)[ITEMS.index("i07") + 1].tolist()
    rows = [{"item_id": "new", "vector": vector, "title": "A twin"}, {"item_id": "mean", "like": ["i03", "i05"]}]
    assert changed("add", folder, write(tmp_path, rows, "new.jsonl"), "--output", str(tmp_path / "more")) == 0
    new = Recommender.from_pretrained(tmp_path / "more")
    assert new.model.num_items == 42 and new.title("new") == "A twin" and new.title("i07") is None
    scores = {row["item_id"]: row["score"] for row in new.recommend([["i01", "i02"]], 99).table.to_pylist()}
    assert scores["new"] == pytest.approx(scores["i07"], abs=1e-6)
    before = {row["item_id"]: row["score"] for row in old.recommend([["i01", "i02"]], 99).table.to_pylist()}
    assert all(scores[item_id] == pytest.approx(score, abs=1e-6) for item_id, score in before.items())
    torch.testing.assert_close(new.encode([["i01", "new"]]), old.encode([["i01", "i07"]]))
    mean = item_rows(old.model)[[ITEMS.index("i03") + 1, ITEMS.index("i05") + 1]].mean(dim=0)
    torch.testing.assert_close(item_rows(new.model)[-1], mean)
    assert "for 42 items" in (tmp_path / "more" / "README.md").read_text(encoding="utf-8")
    assert Recommender.from_pretrained(folder).model.num_items == 40


def test_without_the_columns_of_titles_an_item_has_no_title(plain: Path, tmp_path: Path) -> None:
    old = Recommender.from_pretrained(plain)
    titles = text_columns(old.model)
    row = item_rows(old.model)[8]
    items = write(tmp_path, [{"item_id": "new", "vector": row[~titles].tolist()}])
    assert changed("add", plain, items, "--output", str(tmp_path / "more")) == 0
    added = item_rows(Recommender.from_pretrained(tmp_path / "more").model)[-1]
    torch.testing.assert_close(added, row.masked_fill(titles, 0.0))


def test_further_columns_of_items_are_kept(
    tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tiny_dataset.items if isinstance(tiny_dataset.items, pa.Table) else pq.read_table(tiny_dataset.items)
    table = table.append_column("brand", pa.array(["A", None] * 20)).append_column("price", pa.array(range(40)))
    model = tmp_path / "model"
    save_recommender(MODELS["titles"](), replace(tiny_dataset, items=table), model, "tiny", {})
    items = write(tmp_path, [{"item_id": "n1", "like": ["i01"], "brand": "B"}, {"item_id": "n2", "like": ["i01"]}])
    assert changed("add", model, items) == 0
    found = pq.read_table(model / "items.parquet")
    assert found["brand"].to_pylist() == [*["A", None] * 20, "B", None]
    assert found["price"].to_pylist() == [*range(40), None, None]
    assert Recommender.from_pretrained(model).recommend([["n1"]], 3).table.num_rows == 3
    items = write(tmp_path, [{"item_id": "n3", "like": ["i01"], "price": "cheap"}])
    assert changed("add", model, items) == 2
    assert "column price: " in (said := capsys.readouterr().err) and "expected values of type int64" in said


@given(
    st.sets(st.sampled_from(ITEMS), min_size=1, max_size=39),
    st.lists(st.lists(st.sampled_from(ITEMS), max_size=8), min_size=1, max_size=3),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_removed_items_are_read_but_never_recommended(
    plain: Path, tmp_path: Path, removed: set[str], histories: list[list[str]]
) -> None:
    items = write(tmp_path, [{"item_id": item_id} for item_id in removed], "gone.jsonl")
    shutil.rmtree(tmp_path / "fewer", ignore_errors=True)
    assert changed("remove", plain, items, "--output", str(tmp_path / "fewer")) == 0
    expected = [row for row in lists(plain, histories) if row["item_id"] not in removed]
    found = lists(tmp_path / "fewer", histories)
    assert [(row["user_id"], row["item_id"], row["score"]) for row in found] == [
        (row["user_id"], row["item_id"], row["score"]) for row in expected
    ]
    alone = Recommender.from_pretrained(tmp_path / "fewer").recommend(histories, 99, candidates=sorted(removed))
    assert alone.table.num_rows == 0


def test_a_folder_is_replaced_whole_and_items_come_back(plain: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(plain, tmp_path / "own"))
    (own / "training").mkdir(exist_ok=True)
    (own / "training" / "log.jsonl").write_text("{}\n")
    gone = write(tmp_path, [{"item_id": "i01"}, {"item_id": "i02"}])
    assert changed("remove", own, gone) == 0
    assert changed("add", own, write(tmp_path, [{"item_id": "new", "like": ["i01"]}], "more.parquet")) == 0
    left = {row["item_id"] for row in lists(own, [["i00"]])}
    assert left == {*ITEMS, "new"} - {"i00", "i01", "i02"}
    assert changed("restore", own, gone) == 0
    assert {row["item_id"] for row in lists(own, [["i00"]])} == {*ITEMS, "new"} - {"i00"}
    assert (own / "training" / "log.jsonl").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more.parquet", "new.parquet", "own"]


@pytest.mark.parametrize(
    ("command", "rows", "message"),
    [
        ("add", [{"item_id": "i03", "like": ["i01"]}], "item 'i03' is in the catalogue already (1 known"),
        ("add", [{"item_id": "a", "like": ["i01"]}] * 2, "item 'a' occurs 2 times"),
        ("add", [{"item_id": None, "like": ["i01"]}], "row 1 has no item_id"),
        ("add", [{"item_id": "a", "like": ["i01", "x"]}], "item 'a' is like 'x', which the model does not know"),
        ("add", [{"item_id": "a", "like": []}], "like is [], expected a list of item ids"),
        ("add", [{"item_id": "a", "like": ["i01", None]}], "item 'a': like: item 2 is None: expected an id"),
        ("add", [{"item_id": "a"}], "item 'a' has neither vector nor like nor title; give one"),
        ("add", [{"item_id": "a", "like": ["i01"], "vector": [1.0]}], "item 'a' has both vector and like"),
        (
            "add",
            [{"item_id": "a", "vector": [1.0]}],
            "shape (1,), expected 13 numbers, or 8 without those of",
        ),
        ("add", [{"item_id": "a", "vector": [float("nan")] * 8}], "vector has a value that is not finite"),
        ("add", [{"item_id": "a", "vector": "near"}], "vector is near, expected a list of numbers"),
        ("add", [{"id": "a"}], "there is no column item_id"),
        ("add", [], "has no rows"),
        ("remove", [{"item_id": "x"}, {"item_id": "i01"}], "item 'x' is not in"),
        ("remove", [{"item_id": "i01"}, {"item_id": "i01"}], "item 'i01' occurs 2 times"),
        ("remove", [{"item_id": item} for item in ITEMS], "removes all 40 items"),
    ],
)
def test_wrong_tables_are_refused_by_name(
    command: str,
    rows: list[dict[str, Any]],
    message: str,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert changed(command, plain, write(tmp_path, rows, "new.jsonl"), "--output", str(tmp_path / "more")) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "more").exists()


def test_pipes_and_repeated_keys_are_refused(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert changed("add", plain, tmp_path / "pipe.jsonl", "--output", str(tmp_path / "more")) == 2
    assert "pipe.jsonl: is a named pipe, expected a file; save the items to a file first" in capsys.readouterr().err
    (tmp_path / "new.jsonl").write_text('{"item_id": "a", "item_id": "b"}')
    assert changed("add", plain, tmp_path / "new.jsonl", "--output", str(tmp_path / "more")) == 2
    assert "new.jsonl: cannot be read (the key 'item_id' occurs twice)" in capsys.readouterr().err


def test_other_faults_are_told(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = write(tmp_path, [{"item_id": "a", "like": ["i01"]}])
    assert changed("add", plain, items, "--output", str(tmp_path)) == 2
    assert f"{tmp_path} exists; choose another --output" in capsys.readouterr().err
    assert changed("add", plain, tmp_path / "new.xls") == 2
    assert "items are read from .parquet, .jsonl, .csv; got '.xls'" in capsys.readouterr().err
    (tmp_path / "new.csv").write_text("item_id,like\na,i01\n", encoding="utf-8")
    assert changed("add", plain, tmp_path / "new.csv") == 2
    assert """row 1: like is 'i01', expected a list such as ["a", "b"]""" in capsys.readouterr().err
    (tmp_path / "new.csv").write_text('item_id,like\na,"[""i01"", "\n', encoding="utf-8")
    assert changed("add", plain, tmp_path / "new.csv") == 2
    assert "new.csv: cannot be read" in capsys.readouterr().err


def test_a_csv_holds_lists_as_json(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text('item_id,title,like\n007,Bond,"[""i01"", ""i02""]"\n', encoding="utf-8")
    assert changed("add", plain, tmp_path / "new.csv", "--output", str(tmp_path / "more")) == 0
    assert Recommender.from_pretrained(tmp_path / "more").title("007") == "Bond"


def test_numbers_have_one_form_and_a_link_is_followed(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbered = Path(shutil.copytree(plain, tmp_path / "numbered"))
    _, vocabulary = load_recommender(numbered)
    replace_vocabulary(vocabulary._replace(item_ids=pa.array(range(1, 41))), numbered)
    link = tmp_path / "current"
    link.symlink_to(numbered)
    for item_id, message in (
        ("007", "item 7 is in the catalogue already"),
        (str(2**70), "is not a number, but the ids"),
    ):
        assert changed("add", link, write(tmp_path, [{"item_id": item_id, "like": ["3"]}])) == 2
        assert message in capsys.readouterr().err
    for item_id in ("41", "042"):
        assert changed("add", link, write(tmp_path, [{"item_id": item_id, "like": ["3"]}])) == 0
    assert link.is_symlink()
    assert load_recommender(numbered)[1].item_ids.to_pylist() == list(range(1, 43))


def test_a_changed_folder_is_no_result_of_its_stage(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "distill"))
    (folder / "stage.json").write_text(json.dumps({"fingerprint": "f", "done": True}))
    assert changed("add", folder, write(tmp_path, [{"item_id": "new", "like": ["i03"]}])) == 0
    assert json.loads((folder / "stage.json").read_text()) == {"fingerprint": None, "done": True}
