"""URIs in place of paths: every command reads them through copies, and says in one line which it does not take."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from runs import refused
from servers import serving, write_model
from stores import empty_store, upload

import slmrec
from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.errors import DataError
from slmrec.storage.cache import local


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return empty_store(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def model(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tiny_dataset)


def test_prepare_reads_a_folder_of_parquet_and_a_table_of_items(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"user_id": ["u", "u", "u", "v", "v", "v"], "item_id": list("abcabc"), "timestamp": range(6)})
    for number in range(2):
        pq.write_table(table.slice(3 * number, 3), tmp_path / "part.parquet")
        upload(store, tmp_path / "part.parquet", f"/shop/log/{number}.parquet")
    store.pipe("/shop/items.csv", b"item_id,title\na,Apple\nb,Bread\nc,Cheese\n")
    arguments = ["prepare", "--input", "memory://shop/log", "--items", "memory://shop/items.csv"]
    assert main([*arguments, "--output", str(tmp_path / "data")]) == 0
    assert "reading memory://shop/log\n" in capsys.readouterr().out
    assert Dataset.load(tmp_path / "data").num_items == 3
    config = yaml.safe_load((tmp_path / "data" / "config.yaml").read_text())
    assert config["prepare"]["input"] == "memory://shop/log"
    assert main([*arguments, "--output", str(tmp_path / "data")]) == 0
    assert "unchanged, nothing to do" in capsys.readouterr().out
    files = [path for path in (tmp_path / "data").iterdir() if path.suffix in {".json", ".yaml"}]
    assert not [path for path in files if str(tmp_path / "cache") in path.read_text()]
    in_python = slmrec.prepare("memory://shop/log", tmp_path / "other", items="memory://shop/items.csv")
    assert Dataset.load(in_python).fingerprint == Dataset.load(tmp_path / "data").fingerprint


def test_faults_of_a_remote_log_name_its_uri(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.pipe("/shop/log.csv", b"user_id,item_id,timestamp\nu,,1\n")
    error = refused(["prepare", "--input", "memory://shop/log.csv", "--output", str(tmp_path / "data")], capsys)
    assert error.startswith("slmrec: memory://shop/log.csv: line 2: item_id is None")
    with pytest.raises(DataError, match=r"^memory://shop/log\.csv: line 2: item_id"):
        slmrec.prepare("memory://shop/log.csv", tmp_path / "data")
    error = refused(["prepare", "--input", "memory://shop/none.csv", "--output", str(tmp_path / "data")], capsys)
    assert error.startswith("slmrec: memory://shop/none.csv: no such file, folder or bucket")
    assert not (tmp_path / "data").exists()


def test_models_and_histories_are_read(store: Any, model: Path, tmp_path: Path) -> None:
    upload(store, model, "/shop/model")
    store.pipe("/shop/users.jsonl", b'{"user_id": "u", "history": ["i01", "i02"]}\n')
    store.pipe("/shop/only.csv", b"item_id\ni05\ni06\n")
    arguments = ["recommend", "--model", "memory://shop/model", "--k", "5"]
    histories = ["--input", "memory://shop/users.jsonl", "--candidates", "memory://shop/only.csv"]
    assert main([*arguments, *histories, "--output", str(tmp_path / "recs.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "recs.jsonl").read_text().splitlines()]
    expected = Recommender.from_pretrained(model).recommend([["i01", "i02"]], k=5, candidates=["i05", "i06"])
    assert [row["item_id"] for row in rows] == [item for item, _ in expected.to_lists()[0]]
    remote = Recommender.from_pretrained("memory://shop/model")
    assert remote.recommend([["i01"]]).table == Recommender.from_pretrained(model).recommend([["i01"]]).table


def test_outputs_are_uploaded_when_they_are_complete(
    store: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(store, model, "/shop/model")
    store.pipe("/shop/users.jsonl", b'{"user_id": "u", "history": ["i01", "i02"]}\n')
    arguments = ["recommend", "--model", "memory://shop/model", "--input", "memory://shop/users.jsonl", "--output"]
    with monkeypatch.context() as patch:
        patch.setattr("slmrec.inference.batch.recommend_file.Parts.finish", _interrupt)
        assert main([*arguments, "memory://shop/out put/recs.csv"]) == 130
    assert not store.exists("/shop/out put")
    with monkeypatch.context() as patch:  # continues with what is computed
        patch.setattr("slmrec.inference.recommender.Recommender.recommend", None)
        assert main([*arguments, "memory://shop/out put/recs.csv"]) == 0
    assert "written to memory://shop/out put/recs.csv" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "recs.csv")]) == 0
    assert store.find("/shop/out put") == ["/shop/out put/recs.csv"]
    assert store.cat("/shop/out put/recs.csv") == (tmp_path / "recs.csv").read_bytes()
    assert main([*arguments, "memory://shop/out put/recs.csv"]) == 0  # a file is replaced
    assert not [path for path in (tmp_path / "cache" / "slmrec" / "remote" / "outputs").rglob("*") if path.is_file()]
    error = refused([*arguments, "memory://shop/recs.txt"], capsys)
    assert error.startswith("slmrec: memory://shop/recs.txt: recommendations are written as .parquet, .csv, .jsonl")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_new_folder_is_uploaded_and_an_old_one_is_kept(
    store: Any, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.pipe("/sold/out.csv", b"item_id\ni05\n")
    arguments = ["items", "remove", "--model", str(model), "--items", "memory://sold/out.csv"]
    arguments += ["--output", "memory://shop/fewer"]
    assert main(arguments) == 0
    fewer = Recommender.from_pretrained("memory://shop/fewer")
    kept = Recommender.from_pretrained(model).recommend([["i01"]], k=40, exclude=["i05"])
    assert fewer.recommend([["i01"]], k=40).table["item_id"] == kept.table["item_id"]
    before = store.find("/shop", detail=True)
    assert refused(arguments, capsys).startswith("slmrec: memory://shop/fewer: exists and is a folder; choose another")
    assert store.find("/shop", detail=True) == before
    fewer.save_pretrained("memory://shop/fewer")
    after = store.find("/shop", detail=True)
    assert after.keys() == before.keys() and after != before


def test_a_server_follows_a_remote_model(store: Any, model: Path, tmp_path: Path, tiny_dataset: Dataset) -> None:
    upload(store, model, "/shop/model")
    with serving(local("memory://shop/model")) as client:
        assert client.ask("/reload", {})[2] == {"student": "unchanged"}
        upload(store, write_model(tmp_path / "new", tiny_dataset, seed=7), "/shop/model")
        assert client.ask("/reload", {})[2] == {"student": "loaded"}
        store.rm("/shop/model", recursive=True)
        status, _, content = client.ask("/reload", {})
        assert status == 409 and content["error"].startswith("memory://shop/model: no such file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--dry-run", "--output", "memory://b/out"],
            "--dry-run reads a local folder and writes nothing, got --out",
        ),
        (
            ["data", "fetch", "beauty", "--output", "memory://b/out"],
            "--output is memory://b/out, expected a local folder",
        ),
        (
            ["items", "remove", "--model", "memory://b/m", "--items", "x"],
            "slmrec items: memory://b/m is not changed in",
        ),
        (["data", "describe", "memory://b/out"], "slmrec data: memory://b/out is not changed in place; give --output"),
        (["run", "--config", "memory://b/no.yaml", "--output", "x"], "memory://b/no.yaml: no such file"),
        (["serve", "--model", "memory://b/no"], "memory://b/no: no such file"),
        (["recommend", "--model", "sftp://ann:hidden@h/m", "--history", "a"], "sftp://ann@h/m: "),
    ],
)
def test_uris_that_are_not_taken(
    store: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(arguments, capsys)
    assert error.startswith(f"slmrec: {message}"), error
    assert "hidden" not in error
