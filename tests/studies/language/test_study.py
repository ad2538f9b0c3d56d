"""`slmrec ablate --what language`: shared trainings, answers against the ranks, cold items, resumption, the report."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from runs import read_json, refused

from slmrec.commands.main import main
from slmrec.evaluation.metrics import user_metrics
from slmrec.evaluation.statistics import compare_means, holm
from slmrec.report.language import language
from slmrec.report.parts import Grid
from slmrec.report.states import open_run
from slmrec.studies.cold_report import user_values
from slmrec.studies.language.report import SEED_NOISE

TRAIN = {"learning_rate": 1e-2, "num_train_epochs": 1, "per_device_train_batch_size": 32, "warmup_steps": 0}
ENCODER = {"hidden_size": 8, "num_hidden_layers": 1, "dropout": 0.1}
ROWS = ["full", "shuffled", "no_text", "id_model", "cross_entropy"]


@pytest.fixture(scope="module")
def recipe(shop_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model beside a SASRec, mixed into a teacher without decoder, and a student of SASRec's size."""
    folder = tmp_path_factory.mktemp("recipe")
    titles = [f"i{item:02d},{('red', 'blue', 'green')[item % 3]} thing {item // 3}" for item in range(40)]
    (folder / "items.csv").write_text("item_id,title\n" + "\n".join(titles) + "\n", encoding="utf-8")
    base = {**ENCODER, "max_history_items": 10, "supervision": "every_position", "train": TRAIN}
    content: dict[str, Any] = {
        "seed": 3,
        "prepare": {"input": str(shop_file), "items": str(folder / "items.csv")},
        "item_text": {"words": {"required": False}},
        "pretrain": {
            "sasrec": {"kind": "sasrec", "positions": "relative", **base},
            "text": {"kind": "text", "adaptor_size": 8, **base},
        },
        "finetune": {"backbone": None, "ensemble": ["sasrec", "text"], "max_history_items": 10},
        "distill": {
            "student": {"kind": "sasrec", **ENCODER},
            "weights": {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0, "kl": 1},
            "train": TRAIN,
        },
        "evaluate": {"protocols": ["full_history_excluded"], "timing_users": 10},
        "cold": {"share": 0.2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("language")
    assert main(["ablate", "--what", "language", "--config", str(recipe), "--output", str(output)]) == 0
    return output / "language"


@pytest.fixture(scope="module")
def content(finished: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(finished / "language.json")
    return found


def values(finished: Path, row: str, model: str) -> np.ndarray[Any, Any]:
    file = finished / row / "seed3" / "evaluate" / "per_user_valid.parquet"
    return user_metrics(pq.read_table(file, filters=[("model", "==", model)])["rank"].to_numpy())["ndcg@10"]


def cold_file(finished: Path, row: str) -> Path:
    return finished / row / "seed3" / "cold" / "cold.json"


def test_each_training_is_executed_once(finished: Path) -> None:
    def number(folder: str) -> int:
        return len([path for path in (finished / "steps" / folder).iterdir() if path.is_dir()])

    assert number("prepare") == number("pretrain/sasrec") == 2  # with all items, and without the withheld ones
    assert number("pretrain/text") == 5  # own texts and shuffled ones with and without these items, and IDs
    assert number("finetune") == 7 and number("distill") == 3
    for row in ROWS:
        assert (finished / row / "seed3" / "pretrain" / "sasrec").is_symlink()
    assert not list(finished.glob("*/seed*/evaluate/per_user.parquet"))  # no test item was ranked


def test_the_answers_are_those_of_the_ranks(finished: Path, content: dict[str, Any]) -> None:
    assert (content["split"], content["num_users"], content["seeds"]) == ("valid", 80, [3])
    assert list(content["rows"]) == ROWS
    pairs = {
        "text": (("no_text", "teacher"), ("full", "teacher")),
        "text against a second ID model": (("id_model", "teacher"), ("full", "teacher")),
        "the items' own texts": (("shuffled", "teacher"), ("full", "teacher")),
        "distillation": (("cross_entropy", "student"), ("full", "student")),
        "student against teacher": (("full", "teacher"), ("full", "student")),
    }
    assert [answer["title"] for answer in content["questions"]] == list(pairs)
    p_values = []
    for answer in content["questions"]:
        control, row = (values(finished, *side) for side in pairs[answer["title"]])
        expected, found = compare_means(control, row), answer["slices"]["all users"]
        assert (found["difference"], found["low"], found["high"]) == (
            expected.difference, expected.low, expected.high
        )  # fmt: skip
        shown = abs(expected.difference) >= SEED_NOISE and not expected.low <= 0 <= expected.high
        assert (answer["verdict"] != "not shown") == shown
        assert answer["sentence"].startswith(answer[{"not shown": "none"}.get(answer["verdict"], answer["verdict"])])
        p_values.append(expected.p_value)
    corrected = [answer["slices"]["all users"]["p_holm"] for answer in content["questions"]]
    assert corrected == holm(p_values)
    text = (finished / "language.md").read_text(encoding="utf-8")
    assert all(f"- {answer['sentence']}" in text for answer in content["questions"])
    assert "One seed: another seed alone can move NDCG@10" in text


def test_slices_and_cold_items_are_those_of_the_users(finished: Path, content: dict[str, Any]) -> None:
    users = pq.read_table(finished / "full" / "seed3" / "evaluate" / "users_valid.parquet")
    short = users["history_length"].to_numpy() <= 5
    text = content["questions"][0]["slices"]
    difference = values(finished, "full", "teacher") - values(finished, "no_text", "teacher")
    assert text["history_length 1-5 (short)"]["difference"] == pytest.approx(difference[short].mean())
    own, without = (
        user_values(finished / row / "seed3" / "cold" / "valid")["teacher"]["withheld"] for row in ("full", "no_text")
    )
    assert text["cold items"]["difference"] == pytest.approx((own - without).mean())
    assert content["cold"]["no_text"]["teacher"]["withheld"] == content["cold"]["no_text"]["teacher"]["floor"]
    origins = {name: model["origin"] for name, model in read_json(cold_file(finished, "full"))["models"].items()}
    assert "their texts, which the model reads" in origins["teacher"] or "most similar texts" in origins["teacher"]
    assert origins["student"] == "rows learned from the teacher's scores"
    without_text = read_json(cold_file(finished, "no_text"))["models"]["teacher"]["origin"]
    assert without_text == "the mean of all rows, since no text is known"
    [first, *_] = content["slices"]["student of full"]["history_length"]
    assert first["mean"] == pytest.approx(values(finished, "full", "student")[short].mean())


def test_the_teachers_are_an_ablation(finished: Path) -> None:
    found = read_json(finished / "ablation.json")
    assert list(found["variants"]) == ROWS[:-1]
    assert found["variants"]["no_text"]["changes"]["pretrain.text"] is None
    assert found["variants"]["shuffled"]["changes"] == {"item_text.words.shuffled": True}


def test_finished_steps_are_skipped(
    finished: Path, recipe: Path, content: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    command = ["ablate", "--what", "language", "--config", str(recipe), "--output", str(finished.parent)]
    assert main([*command, "ablate.cold=false"]) == 0
    assert ": done in" not in caplog.text
    without_cold = read_json(finished / "language.json")
    assert without_cold["cold"] == {} and "cold items" not in without_cold["questions"][0]["slices"]
    assert main(command) == 0
    assert ": done in" not in caplog.text and read_json(finished / "language.json") == content


def test_the_report_has_the_answers(finished: Path, content: dict[str, Any]) -> None:
    section = language(open_run(finished))
    answers, controls = section.blocks
    assert answers.rows == [(one["title"], one["sentence"]) for one in content["questions"]]  # type: ignore[union-attr]
    assert isinstance(controls, Grid) and len(controls.rows) == sum(len(one["slices"]) for one in content["questions"])
    cold = language(open_run(finished / "full" / "seed3")).blocks
    assert [block.name for block in cold if isinstance(block, Grid)] == ["cold"]


def test_mistakes_are_one_line(
    recipe: Path, shop_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", "--what", "language", "--config", str(recipe), "--output", str(tmp_path / "out")]
    error = refused([*command, "prepare.items=null"], capsys)
    assert "the items have no texts for item_text.words, so the study has nothing to compare; give a table" in error
    changes = ["item_text={}", "pretrain={sasrec: {}}", "finetune.ensemble=[sasrec]", "finetune.max_history_items=50"]
    assert "no model of the teacher reads item text" in refused([*command, *changes], capsys)
