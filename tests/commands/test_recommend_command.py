"""`slmrec recommend`: files of any size, resumed, and the same answers as in Python."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.errors import DataError
from slmrec.inference.batch import recommend_file as module
from slmrec.inference.batch.recommend_file import RankOptions, recommend_file
from slmrec.inference.recommendations import Recommendations
from slmrec.models.decoder import DecoderRecommender, DecoderRecommenderConfig
from slmrec.models.folder import save_recommender

ITEMS = [f"i{n:02d}" for n in range(40)]
LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def folder(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a prompt, and items with titles."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student")
    sizes = {"num_items": 40, "item_dim": 8, "num_prefix_tokens": 3, "num_response_tokens": 2, "max_history_items": 6}
    model = DecoderRecommender(DecoderRecommenderConfig(decoder=LLAMA | HEADS, **sizes)).eval()
    torch.nn.init.normal_(model.prefix)
    torch.nn.init.normal_(model.response)
    save_recommender(model, tiny_dataset, path / "plain", "tiny", {})
    plain = Recommender.from_pretrained(path / "plain")
    titles = pa.array([None, *(f"[Thing] {item}" for item in ITEMS[1:])])
    Recommender(plain.model, plain.vocabulary._replace(titles=titles)).save_pretrained(path / "titled")
    return path / "titled"


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return Recommender.from_pretrained(folder)


def rows_of(found: Recommendations) -> list[tuple[Any, Any, float, int]]:
    return [tuple(row.values()) for row in found.table.to_pylist()]


def same(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> bool:
    """Ids alike, scores to 1e-4."""
    ids = [[(row[0], row[1], row[3]) for row in rows] for rows in (found, expected)]
    return ids[0] == ids[1] and [row[2] for row in found] == pytest.approx([row[2] for row in expected], abs=1e-4)


histories = st.lists(st.lists(st.sampled_from([*ITEMS, "nope"]), max_size=9), min_size=1, max_size=5)
items = st.none() | st.lists(st.sampled_from(ITEMS), max_size=30, unique=True)


@given(histories, st.integers(1, 45), st.booleans(), items, items)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_command_python_and_one_by_one_answer_alike(
    recommender: Recommender,
    folder: Path,
    tmp_path: Path,
    sequences: list[list[str]],
    k: int,
    filter_seen: bool,
    candidates: list[str] | None,
    exclude: list[str] | None,
) -> None:
    together = recommender.recommend(sequences, k, filter_seen=filter_seen, candidates=candidates, exclude=exclude)
    alone = []
    for user, sequence in enumerate(sequences):
        found = recommender.recommend(
            [sequence], k, filter_seen=filter_seen, candidates=candidates, exclude=exclude, user_ids=[user]
        )
        alone += rows_of(found)
    assert same(alone, rows_of(together))
    users = range(len(sequences))
    pq.write_table(pa.table({"user_id": users, "history": sequences}), tmp_path / "in.parquet")
    given_files = []
    for name, chosen in (("candidates", candidates), ("exclude-items", exclude)):
        if chosen is not None:
            (tmp_path / f"{name}.txt").write_text("\n".join(chosen), encoding="utf-8")
            if chosen:  # a file of nothing is taken for a mistake
                given_files += [f"--{name}", str(tmp_path / f"{name}.txt")]
    if candidates == []:
        assert together.table.num_rows == 0
        return
    files = ["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out.parquet")]
    kept = ["--allow-unknown"] if filter_seen else ["--allow-unknown", "--keep-seen"]
    assert main(["recommend", "--model", str(folder), *files, "--k", str(k), *given_files, *kept]) == 0
    assert same([tuple(row.values()) for row in pq.read_table(tmp_path / "out.parquet").to_pylist()], rows_of(together))


def sequences_of_many(num: int) -> list[list[str]]:
    return [ITEMS[user % 30 : user % 30 + user % 8] for user in range(num)]


def write(path: Path, sequences: list[list[str]]) -> Path:
    names = [f"u{user}" for user in range(len(sequences))]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"user_id": names, "history": sequences}), path, row_group_size=7)
    elif path.suffix == ".jsonl":
        rows = zip(names, sequences, strict=True)
        path.write_text("".join(json.dumps({"user_id": u, "history": s}) + "\n" for u, s in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        rows = zip(names, sequences, strict=True)
        path.write_text("user_id,history\n" + "".join(f"{u},{' '.join(s)}\n" for u, s in rows), encoding="utf-8")
    else:
        rows = zip(names, sequences, strict=True)
        path.write_text("".join(f"{u} {' '.join(s)}\n" for u, s in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".txt"])
def test_files_are_read_some_users_at_a_time(
    suffix: str, folder: Path, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    recommend = Recommender.recommend

    def watched(self: Recommender, sequences: Any, *rest: Any, **others: Any) -> Recommendations:
        asked.append(len(sequences.users))
        return recommend(self, sequences, *rest, **others)

    sequences = sequences_of_many(23)
    source = write(tmp_path / f"in{suffix}", sequences)
    monkeypatch.setattr(module, "CHUNK_USERS", 5)
    monkeypatch.setattr(Recommender, "recommend", watched)
    recommend_file(folder, source, tmp_path / "out.parquet", RankOptions(3))
    assert max(asked) == 5 and sum(asked) == 23
    expected = recommend(recommender, sequences, 3, user_ids=[f"u{user}" for user in range(23)])
    assert same([tuple(row.values()) for row in pq.read_table(tmp_path / "out.parquet").to_pylist()], rows_of(expected))
    assert not list(tmp_path.glob(".*"))


class PowerCutError(Exception):
    """What stands for a power cut."""


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_an_interrupted_command_goes_on_where_it_stopped(
    suffix: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "slmrec")
    monkeypatch.setattr(module, "CHUNK_USERS", 5)
    source, output = write(tmp_path / "in.parquet", [["nope"], *sequences_of_many(22)]), tmp_path / f"out{suffix}"
    recommend_file(folder, source, tmp_path / f"expected{suffix}", RankOptions(3))
    first_message = caplog.messages[-1]
    recommend, asked = Recommender.recommend, []

    def until_the_third(self: Recommender, sequences: Any, **others: Any) -> Recommendations:
        if len(asked) == 2:
            raise PowerCutError
        asked.append(sequences.users)
        return recommend(self, sequences, **others)

    monkeypatch.setattr(Recommender, "recommend", until_the_third)
    with pytest.raises(PowerCutError):
        recommend_file(folder, source, output, RankOptions(3))
    assert not output.exists() and len(list(tmp_path.glob(f".out{suffix}.parts/*.parquet"))) == 2
    asked.clear()
    with pytest.raises(PowerCutError):
        recommend_file(folder, source, output, RankOptions(3))
    assert [users[0] for users in asked] == ["u10", "u15"]
    monkeypatch.setattr(Recommender, "recommend", recommend)
    recommend_file(folder, source, output, RankOptions(3))
    assert output.read_bytes() == (tmp_path / f"expected{suffix}").read_bytes()
    assert caplog.messages[-1] == first_message.replace("expected", "out")
    assert "1 unknown items ignored, the first one 'nope'" in first_message
    assert not list(tmp_path.glob(".out*"))


def test_parts_of_another_request_are_not_used(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = write(tmp_path / "in.parquet", sequences_of_many(5)), tmp_path / "out.parquet"
    finish = module.Parts.finish
    monkeypatch.setattr(module.Parts, "finish", lambda self: (_ for _ in ()).throw(PowerCutError))
    with pytest.raises(PowerCutError):
        recommend_file(folder, source, output, RankOptions(9))
    monkeypatch.setattr(module.Parts, "finish", finish)
    recommend_file(folder, source, output, RankOptions(2))
    assert max(pq.read_table(output)["rank"].to_pylist()) == 2


def test_user_ids_of_two_kinds_are_text(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_USERS", 1)
    rows = [{"user_id": user, "history": ["i01"]} for user in (1, "x", 2.0)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recommend_file(folder, tmp_path / "in.jsonl", tmp_path / "out.parquet", RankOptions(1))
    assert pq.read_table(tmp_path / "out.parquet")["user_id"].to_pylist() == ["1", "x", "2"]
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.parquet"}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".txt"])
def test_files_of_item_ids(suffix: str, folder: Path, recommender: Recommender, tmp_path: Path) -> None:
    path, chosen = tmp_path / f"ids{suffix}", ["i05", "i07", "i09"]
    if suffix == ".parquet":
        pq.write_table(pa.table({"item_id": chosen}), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"item_id": item}) + "\n" for item in chosen), encoding="utf-8")
    else:
        path.write_text("\n".join([*(["item_id"] if suffix == ".csv" else []), *chosen]), encoding="utf-8")
    source = write(tmp_path / "in.txt", [["i01"]])
    recommend_file(folder, source, tmp_path / "out.parquet", RankOptions(9, candidates=path))
    assert set(pq.read_table(tmp_path / "out.parquet")["item_id"].to_pylist()) == set(chosen)
    recommend_file(folder, source, tmp_path / "out.parquet", RankOptions(40, exclude=path))
    assert set(pq.read_table(tmp_path / "out.parquet")["item_id"].to_pylist()) == {*ITEMS} - {*chosen, "i01"}


def test_a_table_without_item_ids_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("thing\ni01\n", encoding="utf-8")
    source = write(tmp_path / "in.txt", [["i01"]])
    with pytest.raises(DataError, match=r"ids\.csv: columns thing; expected item_id; rename the column"):
        recommend_file(folder, source, tmp_path / "out.parquet", RankOptions(9, exclude=tmp_path / "ids.csv"))


def test_one_history_is_answered_on_the_screen(
    folder: Path, recommender: Recommender, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", "--model", str(folder), "--history", "i01, i02,nope", "--k", "3"]) == 0
    said = capsys.readouterr().out
    assert "after i01 ([Thing] i01), i02 ([Thing] i02), nope" in " ".join(said.split())
    assert "1 unknown items ignored, the first one 'nope'" in said
    for item_id, score in recommender.recommend([["i01", "i02"]], 3).to_lists()[0]:
        (line,) = [line for line in said.splitlines() if f"{score:.4f}" in line]
        assert str(item_id) in line and (recommender.title(item_id) or "") in line
    assert main(["recommend", "--model", str(folder), "--history", "nope"]) == 0
    assert "the history has no known item; these are the most popular items" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--input", "a.txt"], ["--history", "i01", "--output", "b.csv"]])
def test_a_file_or_a_history(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["recommend", "--model", "m", *given])
    assert "give --input FILE and --output FILE, or --history A,B,C alone" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--allow-unknown"], ["--on-bad-row", "skip"], ["prepare.item_col=sku"]])
def test_settings_of_files_are_refused_beside_a_history(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["recommend", "--model", "m", "--history", "i01", *given])
    assert "--history reads no file: leave out" in capsys.readouterr().err


@pytest.mark.heavy
def test_spark_answers_alike(
    folder: Path, recommender: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'slmrec[spark]'")
    if shutil.which("java") is None:
        pytest.skip("Spark takes java, which is not on the PATH")
    sequences = sequences_of_many(23)
    source, output = write(tmp_path / "in.parquet", sequences), tmp_path / "out"
    (tmp_path / "exclude.txt").write_text("i03\n", encoding="utf-8")
    arguments = ["recommend", "--model", str(folder), "--input", str(source), "--k", "3", "--engine", "spark"]
    arguments += ["--exclude-items", str(tmp_path / "exclude.txt")]
    try:
        assert main([*arguments, "--output", str(output)]) == 0
        assert main([*arguments, "--output", str(output)]) == 2
        assert "is there already" in capsys.readouterr().err
        (tmp_path / "bad").mkdir()
        other = [*arguments[:4], str(tmp_path / "bad" / "in.parquet"), *arguments[5:], "--output", str(tmp_path / "no")]
        for histories, message in (
            ([["i01"], [None]], "history of user 'u1': item 1 is None: expected an id; correct or remove the row"),
            ([["i01"], ["x", "y"]], "2 of 3 item ids (67%) are unknown to the model, the first one 'x'"),
        ):
            pq.write_table(pa.table({"user_id": ["u0", "u1"], "history": histories}), tmp_path / "bad" / "in.parquet")
            assert main(other) == 2
            assert message in capsys.readouterr().err and not (tmp_path / "no").exists()
    finally:
        session = sql.SparkSession.getActiveSession()
        if session is not None:
            session.stop()
    users = [f"u{user}" for user in range(23)]
    expected = recommender.recommend(sequences, 3, exclude=["i03"], user_ids=users)
    found = pq.read_table(output)
    assert found.schema.equals(expected.table.schema)
    rows = sorted((tuple(row.values()) for row in found.to_pylist()), key=lambda row: (users.index(row[0]), row[3]))
    assert same(rows, rows_of(expected))


@pytest.mark.heavy
def test_spark_sends_the_model_to_worker_processes(
    folder: Path,
    recommender: Recommender,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'slmrec[spark]'")
    if shutil.which("java") is None:
        pytest.skip("Spark takes java, which is not on the PATH")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    sequences = sequences_of_many(23)
    (tmp_path / "in").mkdir()
    for part in range(4):
        pq.write_table(
            pa.table({"user_id": [f"u{user}" for user in range(part, 23, 4)], "history": sequences[part::4]}),
            tmp_path / "in" / f"{part}.parquet",
        )
    sent = Path(shutil.copytree(folder, tmp_path / "sent"))
    source, output = ((tmp_path / name).as_uri() for name in ("in", "out"))
    arguments = ["recommend", "--model", str(sent), "--k", "3", "--engine", "spark"]
    session = sql.SparkSession.builder.master("local-cluster[2,1,1024]").config("spark.ui.enabled", "false")
    session = session.config("spark.sql.files.maxPartitionBytes", "1k").getOrCreate()
    try:
        assert main([*arguments, "--input", source, "--output", output]) == 0
        assert main([*arguments, "--input", source, "--output", output]) == 2
        assert f"{output}: is there already" in capsys.readouterr().err
        assert main([*arguments, "--input", f"{source}-none", "--output", f"{output}2"]) == 2
        assert f"{source}-none: Spark cannot read it as Parquet" in capsys.readouterr().err
        assert main([*arguments, "--input", source, "--output", "none://there"]) == 2
        assert "none://there: Spark cannot write it" in capsys.readouterr().err
    finally:
        session.stop()
    assert (tmp_path / "out" / "_SUCCESS").is_file()
    users = [f"u{user}" for user in range(23)]
    rows = [tuple(row.values()) for row in pq.read_table(tmp_path / "out").to_pylist()]
    rows.sort(key=lambda row: (users.index(row[0]), row[3]))
    assert same(rows, rows_of(recommender.recommend(sequences, 3, user_ids=users)))


def test_spark_that_is_not_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)
    files = ["--input", str(write(tmp_path / "in.parquet", [["i01"]])), "--output", str(tmp_path / "out")]
    assert main(["recommend", "--model", str(folder), *files, "--engine", "spark"]) == 2
    assert "pip install 'slmrec[spark]'" in capsys.readouterr().err


def test_the_device_can_be_chosen(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.parquet", [["i01", "i02"]])
    options = ["recommend", "--model", str(folder), "--input", str(source), "--output", str(tmp_path / "out.parquet")]
    assert main([*options, "--device", "cpu"]) == 0
    assert main([*options, "--device", "tpu"]) == 2
    assert "device is 'tpu', which is not available on this machine; choose one of: cpu" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*options, "--device", "cpu", "--engine", "spark"])
    assert "--device does not apply to --engine spark" in capsys.readouterr().err


def test_reasons_are_shown_and_written(
    folder: Path, recommender: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = ["i01", "i02", "i03", "i04"]
    expected = recommender.recommend([history], 4, because=True, user_ids=["ann"]).table
    assert any(expected["because"].to_pylist())
    model = ["recommend", "--model", str(folder), "--k", "4"]
    assert main([*model, "--history", ",".join(history), "--explain"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for reasons in expected["because"].to_pylist():
        assert all(f"{each['item_id']}: {each['share']:.0%}" in shown for each in reasons)
    pq.write_table(pa.table({"user_id": ["ann"], "history": [history]}), tmp_path / "in.parquet")
    for name in ("out.parquet", "out.jsonl", "out.csv"):
        files = ["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / name)]
        assert main([*model, *files, "--because"]) == 0
    assert pq.read_table(tmp_path / "out.parquet")["because"].to_pylist() == expected["because"].to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["because"] for line in lines] == expected["because"].to_pylist()
    cells = pa_csv.read_csv(tmp_path / "out.csv")["because"].to_pylist()
    assert [json.loads(cell) for cell in cells] == expected["because"].to_pylist()
    with pytest.raises(SystemExit):
        main([*model, *files, "--because", "--engine", "spark"])
    assert "--because does not apply to --engine spark; leave out one of them" in capsys.readouterr().err
