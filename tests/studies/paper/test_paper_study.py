"""`slmrec ablate --what paper`: its rows, learning rates, resumption, claims against the ranks, and refusals."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from runs import read_json, refused

from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.data.dataset import Dataset
from slmrec.studies.evaluated import read_evaluated
from slmrec.studies.paper.rows import check_recipe, paper_rows
from slmrec.studies.paper.study import _Cells, study_paper

TRAIN = {"num_train_epochs": 1, "per_device_train_batch_size": 64, "warmup_steps": 0}
ROWS = ["sasrec", "shallow", "teacher", "student", "ce", "cosine", "norm", "kl"]
ROWS += ["teacher_multiple", "student_of_multiple", "block_kl", "ties", "online", "file_order"]
ROWS += ["full_depth", "student_of_full_depth"]
OF_TEACHERS = ("shallow", "teacher", "teacher_multiple", "full_depth")


@pytest.fixture(scope="module")
def recipe(tiny_recipe: str, shop_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe `tiny` with one epoch, whose teacher has two of the four layers, on a log that is sorted by item."""
    content = yaml.safe_load(tiny_recipe)
    walks = [line.split() for line in shop_file.read_text(encoding="utf-8").splitlines()]
    events = sorted((item, user, time) for user, *items in walks for time, item in enumerate(items))
    log = tmp_path_factory.mktemp("log") / "shop.csv"
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"{user},{item},{time}\n" for item, user, time in events))
    content["prepare"] = {"input": str(log)}
    content["finetune"] |= {"num_layers": 2, "train": TRAIN, "layer_step": 2}
    content["finetune"]["backbone_config"]["hidden_size"] = 16
    content["distill"] |= {"train": TRAIN, "weights": {"ce": 1, "cosine": 1, "norm": 0.1, "multiple": 1}}
    content["distill"]["student"] = {"kind": "decoder", "num_layers": 2}
    content["pretrain"]["sasrec"]["train"] |= TRAIN
    content["evaluate"] = {"protocols": ["full_history_excluded", "sampled_19"], "timing_users": 5}
    content["ablate"] = {"seeds": [1, 2], "learning_rates": [0.001, 0.01], "full_depth_steps": 2}
    path = tmp_path_factory.mktemp("paper") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out")
    command = ["ablate", "--what", "paper", "--config", str(recipe), "--output", str(output), "--split", "test"]
    assert main(command) == 0
    return output


def test_every_row_has_metrics_of_both_protocols_and_its_cost(finished: Path) -> None:
    content = read_json(finished / "paper" / "paper.json")
    assert list(content["rows"]) == ROWS and content["num_missing"] == 0
    for name, row in content["rows"].items():
        assert row["seeds"] == ([1, 2] if name in ("sasrec", "shallow", "teacher", "student") else [1])
        assert list(row["by_seed"]) == ["full_history_excluded", "sampled_19"]
        own = "sasrec" if name == "sasrec" else "teacher" if name in OF_TEACHERS else "student"
        for protocol, by_seed in row["by_seed"].items():
            evaluated = read_evaluated(finished / "paper" / name / "seed1", own, protocol, "test")
            assert by_seed["ndcg@10"]["1"] == pytest.approx(evaluated.metrics["ndcg@10"].mean())
        assert 0 < row["num_trained"] <= row["num_parameters"]
    text = (finished / "paper" / "paper.md").read_text(encoding="utf-8")
    assert "## sampled_19: 80 users, test split; means over the seeds" in text
    assert "| multiple supervision helps | student - norm | 1 |" in text


def test_the_best_learning_rate_on_validation_is_used(finished: Path) -> None:
    rates = read_json(finished / "paper" / "paper.json")["learning_rates"]
    for model, section in (("teacher", "finetune"), ("student", "distill")):
        best = max(rates[model], key=rates[model].get)
        folder = finished / "paper" / "student" / "seed2" / section
        used = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        assert f"{used[section]['train']['learning_rate']:g}" == best
        chosen = (finished / "paper" / f"{model}_{best}" / "seed1" / section).resolve()
        assert (finished / "paper" / model / "seed1" / section).resolve() == chosen


def test_a_claim_is_the_difference_of_its_rows(finished: Path) -> None:
    claims = read_json(finished / "paper" / "paper.json")["claims"]
    [claim] = [
        one
        for one in claims
        if (one["row"], one["protocol"]) == ("teacher", "sampled_19")
        if one["baseline"] == "sasrec"
    ]
    runs = {name: [finished / "paper" / name / f"seed{seed}" for seed in (1, 2)] for name in ("teacher", "sasrec")}
    means = {
        name: np.mean([read_evaluated(run, name, "sampled_19", "test").metrics["ndcg@10"].mean() for run in own])
        for name, own in runs.items()
    }
    assert claim["seeds"] == [1, 2] and claim["difference"] == pytest.approx(means["teacher"] - means["sasrec"])
    assert claim["low"] <= claim["difference"] <= claim["high"]
    [ties] = [one for one in claims if one["row"] == "ties" and one["protocol"] == "full_history_excluded"]
    assert ties["difference"] >= 0


def test_rows_with_heads_at_the_blocks_share_a_teacher(finished: Path) -> None:
    folders = {name: finished / "paper" / name / "seed1" for name in ROWS}
    of_heads = ("teacher_multiple", "student_of_multiple", "block_kl")
    teachers = {(folders[name] / "finetune").resolve() for name in of_heads}
    assert len(teachers) == 1 and (folders["teacher"] / "finetune").resolve() not in teachers
    assert (teachers.pop() / "block_heads.safetensors").is_file()
    used = yaml.safe_load((folders["block_kl"] / "distill" / "config.yaml").read_text(encoding="utf-8"))["distill"]
    assert {name: used["weights"][name] for name in ("cosine", "kl", "block_kl")} == {
        "cosine": 1,
        "kl": 1,
        "block_kl": 1,
    }


def test_the_order_of_the_file_gives_other_histories_of_the_same_users(finished: Path) -> None:
    runs = {name: finished / "paper" / name / "seed1" for name in ("student", "file_order")}
    by_time, by_file = (Dataset.load(run / "prepare") for run in runs.values())
    assert by_time.offsets.tolist() == by_file.offsets.tolist()
    assert by_time.flat.tolist() != by_file.flat.tolist() and sorted(by_time.flat) == sorted(by_file.flat)
    claims = read_json(finished / "paper" / "paper.json")["claims"]
    [claim] = [one for one in claims if one["row"] == "file_order" and one["protocol"] == "full_history_excluded"]
    means = {name: read_evaluated(run, "student", split="test").metrics["ndcg@10"].mean() for name, run in runs.items()}
    assert claim["difference"] == pytest.approx(means["file_order"] - means["student"]) and claim["seeds"] == [1]


@pytest.mark.parametrize(
    ("is_prepared", "reason"),
    [(False, "the log has no times"), (True, "the data set is taken as it is; name the log with --input")],
)
def test_the_order_of_the_file_is_no_row_without_another_order(
    is_prepared: bool,
    reason: str,
    recipe: Path,
    shop_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="slmrec")
    output = tmp_path / "out"
    if is_prepared:
        assert main(["prepare", "--config", str(recipe), "--output", str(output)]) == 0
    config = load_config(recipe, ["prepare.input=null" if is_prepared else f"prepare.input={shop_file}"])
    rows = paper_rows(config, 2)
    kept = _Cells(output, force=False, split="valid").possible(rows, 1)
    assert [row.name for row in rows if row not in kept] == ["file_order"]
    assert f"ablate: there is no row file_order, since {reason}" in caplog.messages


def test_finished_rows_are_kept(finished: Path, recipe: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "again", symlinks=True))
    shutil.rmtree(again / "paper" / "kl")
    evaluated = again / "paper" / "student" / "seed1" / "evaluate" / "metrics.json"
    before, steps = evaluated.stat().st_mtime_ns, sorted((again / "paper" / "steps").rglob("stage.json"))
    trained = {path: path.stat().st_mtime_ns for path in steps}
    study_paper(load_config(recipe, []), again, split="test")
    assert evaluated.stat().st_mtime_ns == before
    assert {
        path: path.stat().st_mtime_ns for path in sorted((again / "paper" / "steps").rglob("stage.json"))
    } == trained
    assert read_json(again / "paper" / "paper.json") == read_json(finished / "paper" / "paper.json")


def test_the_recipe_of_the_study_has_every_row() -> None:
    config = load_config("paper_small", [])
    check_recipe(config)
    rows = {row.name: row.config for row in paper_rows(config, config.ablate.full_depth_steps)}
    assert set(rows) == {*ROWS, "untuned"}
    assert [name for name, row in rows.items() if row.finetune.weights.multiple] == [
        "teacher_multiple",
        "student_of_multiple",
        "block_kl",
    ]
    assert rows["file_order"].prepare.order == "file"
    depths = {name: rows[name].finetune.num_layers for name in ("shallow", "teacher", "full_depth", "student")}
    assert depths == {"shallow": 4, "teacher": 8, "full_depth": 30, "student": 8}
    assert rows["student_of_full_depth"].distill.num_blocks == 2  # divides 30 and 4
    assert rows["student"].distill.student.lora is not None and rows["untuned"].distill.student.init == "pretrained"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.ensemble=[sasrec]"], "finetune.ensemble mixes base models into the teacher"),
        (["distill.mode=online"], "distill.mode is online, which is a row of its own"),
        (["finetune.item_vectors=null"], "finetune.item_vectors names no base model"),
        (
            [
                "distill.student={kind: sasrec}",
                "distill.weights={multiple: 0, cosine: 0, norm: 0}",
                "distill.num_blocks=4",
            ],
            "decoder",
        ),
        (["ablate.learning_rates=[0.1, 0.1]"], "name each rate once"),
        (["evaluate.protocols=[full_history_excluded,sampled_20]"], "evaluate.num_negatives is 20"),
    ],
)
def test_another_experiment_is_refused(
    overrides: list[str], message: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", "--what", "paper", "--config", str(recipe), "--output", str(tmp_path / "out")]
    assert message in refused([*command, *overrides], capsys)
