"""Users are removed from every file of a run, and nothing else changes."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from artefacts import sasrec

import slmrec
from slmrec import Config, Recommender, Run
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.files import sha256
from slmrec.models.baselines import Cooccurrence, Popularity
from slmrec.models.folder import check_sums, save_recommender
from slmrec.updates.update import update

USERS = [f"secret-{user:02d}" for user in range(20)]
ROWS = [(user, f"i{(n * 7 + k * k) % 40:02d}", 1000 + k) for n, user in enumerate(USERS) for k in range(10)]
EVENTS = pd.DataFrame(ROWS, columns=["user_id", "item_id", "timestamp"])
GONE = ["secret-03", "secret-11", "secret-99"]
NEW_ROWS = [*((user, f"i{n:02d}", 2000) for n, user in enumerate(USERS)), (GONE[2], "i01", 2000)]
NEW = pd.DataFrame(NEW_ROWS, columns=["user_id", "item_id", "timestamp"])
"""Newer events; the last user has too few, and waits for more."""
CONFIG: dict[str, Any] = {
    "pretrain": {},
    "finetune": {"ensemble": []},
    "distill": {"teacher": None},
    "evaluate": {"timing_users": 10, "protocols": ["full_history_excluded", "sampled_9"]},
}
COUNTED = {"popularity": Popularity, "cooccurrence": Cooccurrence}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forget") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmrec.run.write_report", lambda output: None)
        (folder / "raw").mkdir(parents=True)
        EVENTS.to_csv(folder / "raw" / "log.csv", index=False)
        slmrec.fit(folder / "raw" / "log.csv", output=folder, config=Config.model_validate(CONFIG))
        update(folder, NEW)
    dataset = Dataset.load(folder / "prepare")
    save_recommender(sasrec(), dataset, folder / "pretrain" / "extra", "extra", {})
    for name in ("teacher_outputs", "report", ".distill.partial"):
        (folder / name).mkdir()
        (folder / name / "report.json").write_text(GONE[0], encoding="utf-8")
    (folder / "report.html").write_text(GONE[0], encoding="utf-8")
    (folder / "examples.jsonl").write_text("".join(f'{{"user_id": "{user}"}}\n' for user in USERS), encoding="utf-8")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    copied = Path(shutil.copytree(made, tmp_path / "run", symlinks=True))
    for path in copied.rglob("config.yaml"):
        path.write_text(path.read_text(encoding="utf-8").replace(str(made), str(copied)), encoding="utf-8")
    return copied


def content(path: Path) -> str:
    return str(pq.read_table(path).to_pydict()) if path.suffix == ".parquet" else path.read_bytes().decode("latin-1")


def sums(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def test_users_are_in_no_file_any_more(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, records = Dataset.load(folder / "prepare"), sums(folder)
    with caplog.at_level("INFO"):
        assert main(["forget", str(folder), *(f"--user={user}" for user in GONE)]) == 0
    for path in folder.rglob("*"):
        if path.is_file():
            assert not any(user in content(path) for user in GONE), path
            kept = ("users.parquet", "per_user.parquet", "examples.jsonl")
            assert USERS[4] in content(path) or path.name not in kept or "updates" in path.parts
    assert not any(
        (folder / name).exists() for name in ("report", "report.html", "teacher_outputs", ".distill.partial")
    )
    dataset = Dataset.load(folder / "prepare")
    assert dataset.user_ids.to_pylist() == [user for user in USERS if user not in GONE]
    assert dataset.item_ids.equals(before.item_ids)
    left = EVENTS[~EVENTS["user_id"].isin(GONE)]
    expected = Dataset.load(slmrec.prepare(left, tmp_path / "anew"))
    assert [expected.item_ids[int(item) - 1].as_py() for item in expected.flat] == [
        dataset.item_ids[int(item) - 1].as_py() for item in dataset.flat
    ]
    for name, kind in COUNTED.items():
        model = Recommender.from_pretrained(folder / "pretrain" / name).model
        for own, other in zip(model.state_dict().values(), kind.of(dataset).state_dict().values(), strict=True):
            assert torch.equal(own, other)
        check_sums(folder / "pretrain" / name)
    extra = Recommender.from_pretrained(folder / "pretrain" / "extra")
    assert extra.vocabulary.counts.equals(pa.array(dataset.train_counts()[1:]))
    assert sums(folder)["pretrain/extra/model.safetensors"] == records["pretrain/extra/model.safetensors"]
    assert "the weights of pretrain/extra were trained with these users" in caplog.text
    assert "may still hold these users" not in caplog.text  # the only log is in the run, and was cleaned
    run = Run.load(folder)
    assert len(run.best.recommend([["i01"]], k=3).table) == 3
    data = Dataset.load(folder / "updates" / "0001" / "prepare")
    ranked = pq.read_table(folder / "updates" / "0001" / "evaluate" / "per_user.parquet")["user_id"].unique()
    held_out = data.user_ids.take(pa.array(data.held_out("test").users()))
    assert data.user_ids.equals(dataset.user_ids) and held_out.to_pylist() == ranked.to_pylist()
    assert update(folder, NEW[~NEW["user_id"].isin(GONE)]) is None  # nothing new, and the update belongs to the data
    caplog.clear()
    with caplog.at_level("INFO"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmrec.run.write_report", lambda output: None)
        slmrec.fit(folder / "raw" / "log.csv", output=folder, config=run.config)
    assert caplog.text.count("unchanged, nothing to do") == 4  # prepare, two baselines, evaluate


def test_refusals_change_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sums(folder)
    (tmp_path / "all.csv").write_text("user_id\n" + "\n".join(USERS), encoding="utf-8")
    for options, message in (
        ([str(folder), "--user", GONE[0], "--user", "nobody"], "user 'nobody' is unknown (1 unknown in all)"),
        ([str(folder), "--users", str(tmp_path / "all.csv")], "no user would be left; delete the folder"),
        ([str(folder)], "no user is named; give --user ID or --users FILE"),
        ([str(folder / "raw"), "--user", GONE[0]], "neither a run nor a data set"),
        ([str(folder), "--user", ""], "a user is '', expected an id"),
    ):
        assert main(["forget", *options]) == 2
        assert message in capsys.readouterr().err
    assert sums(folder) == before


def test_users_of_a_data_set_alone(tmp_path: Path) -> None:
    numbers = EVENTS.assign(user_id=[int(user[-2:]) for user in EVENTS["user_id"]])
    shop = slmrec.prepare(numbers, tmp_path / "shop")
    (tmp_path / "gone.txt").write_text("3\n11\n", encoding="utf-8")
    assert main(["forget", str(shop), "--users", str(tmp_path / "gone.txt")]) == 0
    assert Dataset.load(shop).user_ids.to_pylist() == [user for user in range(20) if user not in (3, 11)]
