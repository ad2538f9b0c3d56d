"""`slmrec depth`: models of several depths alike, the deepest read early, what is done is skipped, and faults first."""

import csv
import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from encoding import encode

from slmrec.commands.main import main
from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.errors import ConfigError
from slmrec.evaluation.metrics import user_metrics
from slmrec.models.folder import load_recommender
from slmrec.studies.depth import _points

DEPTHS = ("1", "2", "4")
PROTOCOL = "sampled_20"
"""The primary protocol of the recipe, by which the study decides."""


@pytest.fixture(scope="module")
def recipe(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = yaml.safe_load(tiny_recipe)
    content["finetune"]["ensemble"] = ["sasrec"]
    content["finetune"]["train"] |= {"learning_rate": 1e-2, "eval_max_users": 60}
    content["evaluate"] = {"protocols": ["full", PROTOCOL], "primary_protocol": PROTOCOL}
    content["depth"] = {"layer_steps": [2], "drop_users": 30, "quality_loss": 0.5, "similarity_users": 50}
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("study")
    assert main(["depth", "--config", str(recipe), "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def found(finished: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((finished / "depth" / "depth.json").read_text(encoding="utf-8"))
    return content


def quality(reading: dict[str, object]) -> float:
    value: float = reading["metrics"][PROTOCOL]["ndcg@10"]  # type: ignore[index]
    return value


def metrics_of(finished: Path, name: str) -> dict[str, float]:
    values: dict[str, float] = json.loads((finished / "depth" / name / "finetune" / "metrics.json").read_text())
    return values


def test_every_depth_is_trained_and_validated_alike(finished: Path, found: dict[str, object]) -> None:
    trained = {point["name"]: point for point in found["trained"]}  # type: ignore[attr-defined]
    assert list(trained) == [*DEPTHS, "step2"]
    assert [trained[name]["layers"] for name in ("2", "4", "step2")] == [[0, 1], [0, 1, 2, 3], [0, 2]]
    for name, point in trained.items():
        own = metrics_of(finished, name)
        assert point["num_layers"] == len(point["layers"]) == own["num_layers"]
        assert point["num_parameters"] == own["num_parameters"]
        assert "weight/sasrec" not in own  # alone, though the recipe has an ensemble
        best = {key.removeprefix("valid/"): value for key, value in own.items() if key.startswith("valid/")}
        assert point["metrics"][PROTOCOL] == best  # the validation of the training, to the last bit
        table = pq.read_table(finished / "depth" / name / "validate" / "per_user.parquet")
        assert len(table) == 60 and quality(point) == user_metrics(table[PROTOCOL].to_numpy())["ndcg@10"].mean()
    assert len({quality(point) for point in trained.values()}) > 1


def test_the_exit_after_all_layers_is_the_model_itself(found: dict[str, object]) -> None:
    [deepest] = [point for point in found["trained"] if point["name"] == "4"]  # type: ignore[attr-defined]
    early = {(one["num_layers"], one["head"]): one["metrics"] for one in found["early_exit"]}  # type: ignore[attr-defined]
    assert sorted(early) == sorted((depth, head) for depth in (1, 2, 3, 4) for head in ("final", "fitted"))
    assert early[4, "final"] == deepest["metrics"]
    assert early[1, "final"] != deepest["metrics"]


def test_states_are_those_of_the_layers(finished: Path) -> None:
    from slmrec.types import Batch, Histories

    model, _ = load_recommender(finished / "depth" / "4" / "finetune")
    items, lengths = torch.tensor([[3, 9, 4], [5, 0, 0]]), torch.tensor([3, 1])
    for every_position in (False, True):
        targets = torch.ones(4 if every_position else 2, dtype=torch.int64)
        batch = Batch(Histories(items, lengths), targets, every_position)
        with torch.inference_mode():
            states = model.hidden_states_of_layers(batch.histories, every_position=every_position)
            encoded = encode(model, batch, num_blocks=4)
            assert states.shape == (5, len(targets), 32)
            read = model.item_inputs(torch.tensor([3, 9, 4, 5] if every_position else [4, 5]))
            torch.testing.assert_close(states[0], read)
            for state, block in zip(states[1:-1], encoded.hidden_states, strict=False):
                assert torch.equal(state, block)
            assert torch.equal(model.final_norm(states[-1]), encoded.hidden_states[-1])
            assert torch.equal(model.early_exit(states[-1]), encoded.users)


def test_layers_are_compared_and_left_out(finished: Path, found: dict[str, object]) -> None:
    similarity = found["similarity"]
    assert similarity["num_users"] == 50 and len(similarity["cosine"]) == 4  # type: ignore[index]
    matrix = torch.tensor(similarity["cka"])  # type: ignore[index]
    assert matrix.shape == (5, 5) and torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(5))
    dropped = found["dropped"]
    assert [(one["without"], one["num_users"]) for one in dropped] == [(layer, 30) for layer in range(4)]  # type: ignore[attr-defined]
    assert len({quality(one) for one in dropped}) > 1  # type: ignore[attr-defined]
    ranks = pq.read_table(finished / "depth" / "4" / "validate" / "per_user.parquet")[PROTOCOL].to_numpy()[:30]
    whole = {one["whole"][PROTOCOL]["ndcg@10"] for one in dropped}  # type: ignore[attr-defined]
    assert whole == {user_metrics(ranks)["ndcg@10"].mean()}


def test_it_ends_with_the_report(finished: Path, found: dict[str, object]) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "recommended" in page.lower()
    with (finished / "report" / "efficiency.csv").open(encoding="utf-8") as stream:
        rows = {row["model"]: row for row in csv.DictReader(stream)}
    for point in found["trained"]:  # type: ignore[attr-defined]
        row = rows[f"depth {point['name']}"]
        assert (row["split"], row["parameters"]) == ("valid", str(point["num_parameters"]))
        weights = finished / "depth" / point["name"] / "finetune" / "model.safetensors"
        assert float(row["weights on disk [MB]"]) == pytest.approx(weights.stat().st_size / 1e6)


def test_the_recommended_depth_is_the_smallest_that_is_good_enough(found: dict[str, object]) -> None:
    trained = {point["name"]: point for point in found["trained"]}  # type: ignore[attr-defined]
    best = max(trained.values(), key=quality)
    enough = [point["num_layers"] for point in trained.values() if quality(point) >= 0.5 * quality(best)]
    chosen = found["recommended"]
    assert chosen["num_layers"] == min(enough) and chosen["best"] == best["name"]  # type: ignore[index]
    assert best["difference"] is None
    others = [point for point in trained.values() if point is not best]
    for point in others:
        assert point["difference"]["difference"] == pytest.approx(quality(point) - quality(best))
        assert point["difference"]["low"] <= point["difference"]["difference"] <= point["difference"]["high"]


def test_what_is_done_is_skipped_and_new_points_are_added(
    finished: Path, recipe: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    before = (finished / "depth" / "depth.json").read_bytes()
    assert main(["depth", "--config", str(recipe), "--output", str(finished)]) == 0
    assert ": done in" not in caplog.text and "recommended depth: " in capsys.readouterr().out
    assert (finished / "depth" / "depth.json").read_bytes() == before
    (finished / "depth" / "4" / "without2" / "stage.json").unlink()
    (finished / "depth" / "4" / "without2" / "measurements.json").unlink()
    for path in (finished / "depth" / "4" / "without2").iterdir():
        path.unlink()
    more = ["depth.num_layers=[1, 2, 3, 4]", "depth.quality_loss=0.01"]
    assert main(["depth", "--config", str(recipe), "--output", str(finished), *more]) == 0
    assert caplog.text.count(": done in") == 3  # depth 3 trained and validated, and the layer whose reading was lost
    for name in ("prepare", "pretrain/sasrec"):
        assert (finished / "depth" / "3" / name).is_symlink()
    assert not (finished / "pretrain" / "popularity").exists()  # the study does not need it


def test_by_default_the_depths_double_up_to_the_whole_backbone(recipe: Path) -> None:
    settings = ["finetune.backbone_config={model_type: llama, num_hidden_layers: 6}", "depth={}"]
    deepest, points = _points(load_config(recipe, settings))
    assert deepest == 6 and list(points) == ["1", "2", "4", "6"]
    one: Config = points["1"]
    assert one.finetune.num_layers == 1 and one.finetune.ensemble == () and one.depth.layer_steps == ()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "depth.num_layers=[2, 9]",
            r"depth.num_layers is \[2, 9\], but the backbone .random. has 4 layers; choose from",
        ),
        ("depth.num_layers=[2, 2]", r"num_layers is \[2, 2\]; name each number once, from 1"),
        ("depth.num_layers=[0]", r"num_layers is \[0\]; name each number once, from 1"),
        ("depth.layer_steps=[1]", r"layer_steps is \[1\]; name each number once, from 2"),
        ("depth.similarity_users=3", "similarity_users"),
    ],
)
def test_faults_are_told_first(recipe: Path, tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        _points(load_config(recipe, [override]))


def test_a_teacher_without_backbone_is_refused() -> None:
    weights = "distill.weights={ce: 0, cosine: 0, norm: 0, multiple: 0, kl: 1}"
    student = "distill.student={kind: sasrec}"
    config = load_config(None, ["finetune={backbone: null, ensemble: [sasrec]}", weights, student])
    with pytest.raises(ConfigError, match=r"finetune\.backbone is null"):
        _points(config)


def test_the_command_line_tells_it_in_one_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["depth", "--config", str(recipe), "--output", str(tmp_path / "out"), "depth.num_layers=[9]"]
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
