"""The verdict of a real run: its file, the link to the model, what is printed, and runs without a verdict."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from runs import read_json, refused

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.errors import CheckpointError
from slmrec.evaluation.metrics import user_metrics
from slmrec.pipeline.evaluate import model_folders
from slmrec.pipeline.verdict import read_verdict, write_verdict
from slmrec.serving.loading import load

KEYS = ["ship", "folder", "against", "metric", "protocol", "difference", "interval", "seconds_per_1000_users"]
KEYS += ["reasons", "warnings", "test"]
PROTOCOL = "full_history_excluded"


def ndcg(path: Path, model: str) -> float:
    rows = pq.read_table(path).to_pandas()
    ranks = rows[(rows["model"] == model) & (rows["protocol"] == PROTOCOL)]["rank"].to_numpy()
    return float(user_metrics(ranks)["ndcg@10"].mean())


def test_the_file_has_the_figures_of_the_evaluation(finished: Path, config: Path) -> None:
    content, folder = read_json(finished / "verdict.json"), finished / "evaluate"
    assert list(content) == KEYS
    assert (content["metric"], content["protocol"]) == ("ndcg@10", PROTOCOL)
    folders = model_folders(load_config(config, []), finished)
    ship, against = content["ship"], content["against"]
    assert finished / content["folder"] == folders[ship]
    assert against in {"popularity", "cooccurrence", "sasrec"} - {ship}
    for path, difference, (low, high) in (
        (folder / "validation_ranks.parquet", content["difference"], content["interval"]),
        (folder / "per_user.parquet", content["test"]["difference"], content["test"]["interval"]),
    ):
        assert difference == pytest.approx(ndcg(path, ship) - ndcg(path, against))
        assert low <= difference <= high and low < high
    models = read_json(folder / "metrics.json")["protocols"][PROTOCOL]["models"]
    assert list(content["seconds_per_1000_users"]) == list(models)
    for name, seconds in content["seconds_per_1000_users"].items():
        assert seconds == pytest.approx(1000 / models[name]["users_per_second"], abs=1e-6)
    assert content["reasons"][0].startswith(f"On validation ({PROTOCOL}, 80 users), ")
    assert any(f"{content['test']['difference']:+.4f}" in reason for reason in content["reasons"])


def test_best_leads_to_the_model_which_can_be_opened_served_and_changed(finished: Path, tmp_path: Path) -> None:
    output = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    best, folder = output / "best", output / read_json(output / "verdict.json")["folder"]
    assert best.readlink().as_posix() == read_json(output / "verdict.json")["folder"]
    expected = Recommender.from_pretrained(folder).recommend([["i01", "i02"]], k=5).to_lists()
    assert Recommender.from_pretrained(best).recommend([["i01", "i02"]], k=5).to_lists() == expected
    assert load(best).fingerprint == load(folder).fingerprint
    table = tmp_path / "gone.csv"
    table.write_text(f"item_id\n{expected[0][0][0]}\n", encoding="utf-8")
    assert main(["items", "remove", "--model", str(best), "--items", str(table)]) == 0
    assert best.is_symlink() and [path.name for path in output.glob(".best*")] == []
    fewer = Recommender.from_pretrained(folder).recommend([["i01", "i02"]], k=4).to_lists()
    assert fewer == [[pair for pair in expected[0] if pair[0] != expected[0][0][0]]]


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_the_verdict_is_printed_last(
    common: list[str], output: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    capsys.readouterr()
    assert main([command, *common]) == 0
    shown, content = capsys.readouterr().out, read_json(output / "verdict.json")
    headline, *lines = shown[shown.index("\nShip ") :].strip().splitlines()
    assert headline == f"Ship {content['ship']}, in {output / 'best'}:"
    entries = [*content["reasons"], *(f"Warning: {warning}" for warning in content["warnings"])]
    assert "".join("".join(lines).split()) == "".join("".join(f"-{entry}" for entry in entries).split())


def test_a_folder_of_something_else_is_refused_before_anything_runs(
    output: Path, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(output / "best")
    shutil.rmtree(output / "evaluate")
    (output / "best").mkdir()
    (output / "best" / "photo.jpg").write_text("kept", encoding="utf-8")
    for command in ("run", "evaluate"):
        error = refused([command, *common], capsys)
        assert f"{output / 'best'} exists and is no output of slmrec" in error and "rename it" in error
        assert not (output / "evaluate").exists()
    shutil.rmtree(output / "best")
    (output / "best").write_text("a file", encoding="utf-8")
    assert "exists and is no output of slmrec" in refused(["run", *common], capsys)
    assert (output / "best").read_text(encoding="utf-8") == "a file"


def test_a_copy_of_the_model_stays_until_another_one_is_shipped(output: Path, config: Path) -> None:
    """`output` is a copy in which `best` is no link but a folder, as other copies of a run have it."""
    ship, settings = read_json(output / "verdict.json")["ship"], load_config(config, [])
    marked = output / "best" / "mark"
    marked.touch()
    (output / "evaluate" / "stage.json").touch()  # a new evaluation
    write_verdict(settings, output)
    assert marked.exists() and not (output / "best").is_symlink()
    path = output / "evaluate" / "validation_ranks.parquet"
    ranks = pq.read_table(path).to_pandas()
    other = "teacher" if ship != "teacher" else "sasrec"
    ranks["rank"] = np.where(ranks["model"] == other, 0, ranks["rank"] + 1)
    ranks.to_parquet(path)
    verdict = write_verdict(settings, output)
    assert verdict is not None and verdict.ship == other and read_verdict(output) == verdict
    assert (output / "best").resolve() == (output / verdict.folder).resolve()


def test_where_there_are_no_links_the_model_is_copied(
    output: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    shutil.rmtree(output / "best")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    verdict = write_verdict(load_config(config, []), output)
    assert verdict is not None and not (output / "best").is_symlink()
    assert load(output / "best").fingerprint == load(output / verdict.folder).fingerprint


def test_without_a_baseline_there_is_no_verdict(
    output: Path, common: list[str], messages: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *common, "evaluate.models=[student, teacher]"]) == 0
    assert "verdict: none, since teacher, student alone were evaluated" in messages.text
    assert "leave evaluate.models out, or name one of these there" in messages.text
    assert f"{output / 'best'} stays as it was" in messages.text
    assert not (output / "verdict.json").exists() and "Ship " not in capsys.readouterr().out
    assert Recommender.from_pretrained(output / "best").recommend([["i01"]], k=2).table.num_rows == 2


def test_a_run_that_does_not_read_the_test_split_has_a_verdict(output: Path, common: list[str]) -> None:
    before = read_json(output / "verdict.json")
    assert main(["evaluate", *common, "evaluate.splits=[valid]"]) == 0
    content = read_json(output / "verdict.json")
    assert content["test"] is None and not [reason for reason in content["reasons"] if "test" in reason]
    if content["ship"] == before["ship"]:  # speeds are measured anew
        assert content["difference"] == pytest.approx(before["difference"])


def test_without_ranks_of_validation_items_the_command_that_makes_them_is_named(
    output: Path, common: list[str], messages: pytest.LogCaptureFixture
) -> None:
    for file in ("evaluate/validation_ranks.parquet", "verdict.json"):
        (output / file).unlink()
    assert main(["run", *common]) == 0
    assert "has no ranks of validation items; make them with: slmrec evaluate --config" in messages.text
    assert not (output / "verdict.json").exists()
    assert main(["evaluate", *common, "--force"]) == 0
    assert (output / "verdict.json").exists()


def test_a_model_of_another_run_is_named_by_its_whole_path(finished: Path, config: Path, tmp_path: Path) -> None:
    output, outside = shutil.copytree(finished, tmp_path / "run", symlinks=True), tmp_path / "elsewhere"
    (output / "finetune").rename(outside)
    path = output / "evaluate" / "validation_ranks.parquet"
    ranks = pq.read_table(path).to_pandas()
    ranks["rank"] = np.where(ranks["model"] == "teacher", 0, ranks["rank"] + 1)
    ranks.to_parquet(path)
    verdict = write_verdict(load_config(config, [f"distill.teacher={outside}"]), output)
    assert verdict is not None and verdict.folder == str(outside)
    assert (output / "best").readlink() == outside


def test_a_verdict_stays_as_long_as_the_evaluation_does(
    output: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_config(config, [])
    (output / "verdict.json").write_text("{", encoding="utf-8")  # damaged: it is made again
    made = write_verdict(settings, output)
    assert made is not None and made == read_verdict(output)
    for name in ("decide", "link_in_place"):
        monkeypatch.setattr(f"slmrec.pipeline.verdict.{name}", lambda *_: pytest.fail("decided again"))
    assert write_verdict(settings, output) == made
    for touched in ("evaluate/stage.json", "choice.json"):
        (output / touched).touch()
        with pytest.raises(pytest.fail.Exception, match="decided again"):
            write_verdict(settings, output)
        (output / "verdict.json").touch()
    shutil.rmtree(output / "best")
    with pytest.raises(pytest.fail.Exception, match="decided again"):
        write_verdict(settings, output)


@pytest.mark.parametrize("content", ["{", "[1]", '{"ship": "student"}', json.dumps(dict.fromkeys(KEYS, 1))])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    assert read_verdict(tmp_path) is None
    (tmp_path / "verdict.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"verdict\.json: is damaged .*; remove it and run again"):
        read_verdict(tmp_path)
