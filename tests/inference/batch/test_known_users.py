"""Recommendations for all users of the data set of a model, without a file of histories."""

import shutil
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from artefacts import sasrec

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.models.folder import save_recommender


def test_all_users_get_what_their_histories_give(
    tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(tiny_dataset.users, Path)
    out, answers = tmp_path / "out", tmp_path / "recs.parquet"
    shutil.copytree(tiny_dataset.users.parent, out / "prepare")
    save_recommender(sasrec(), tiny_dataset, out / "pretrain" / "sasrec", "sasrec", {})
    (out / "best").symlink_to("pretrain/sasrec")
    monkeypatch.setattr("slmrec.inference.batch.recommend_file.CHUNK_USERS", 30)
    monkeypatch.setattr("slmrec.inference.batch.known_users._USERS_AT_ONCE", 7)
    flat, offsets = tiny_dataset.flat, tiny_dataset.offsets
    histories = [
        tiny_dataset.item_ids.take(pa.array(flat[first:last] - 1)).to_pylist() for first, last in pairwise(offsets)
    ]
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {do: exclude, column: item_id, values: [i01, i02]}\n", encoding="utf-8")
    command = ["recommend", "--output", str(answers), "--k", "5", "--all-users", "--model"]
    recommender, users = Recommender.from_pretrained(out / "best"), tiny_dataset.user_ids.to_pylist()
    expected = recommender.recommend(histories, 5, user_ids=users, exclude=["i01", "i02"]).table
    for model in ("best", "pretrain/sasrec"):
        assert main([*command, str(out / model), "--rules", str(rules)]) == 0
        found = pq.read_table(answers)
        assert found.drop(["score"]).equals(expected.drop(["score"]))
    copied = Path(shutil.copytree(out / "best", tmp_path / "elsewhere" / "a" / "model"))
    capsys.readouterr()
    assert main([*command, str(copied)]) == 2
    assert f"which is not beside {copied}; give --data OUT/prepare" in capsys.readouterr().err
    for data in (out, out / "prepare"):
        answers.unlink()
        assert main([*command, str(copied), "--data", str(data)]) == 0
        assert pq.read_metadata(answers).num_rows == 5 * tiny_dataset.num_users
    assert main([*command, str(copied), "--data", str(tmp_path)]) == 2
    assert "not a prepared data set" in capsys.readouterr().err
    for options in (["--input", "a.csv"], ["--engine", "spark"], ["prepare.user_col=x"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, str(copied), *options])
