"""`run --dry-run` writes nothing, shows pending steps and counts parameters; a missing backbone is reported first."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from slmrec.auto import dry_run as plan
from slmrec.auto.estimate import (
    SHARE_OF_PRODUCTS,
    Rates,
    Sizes,
    Work,
    measure_rates,
    padded_tokens_of,
    reading_seconds,
    sizes_of,
    tokens_of,
    training_bytes,
    training_seconds,
)
from slmrec.commands.main import main
from slmrec.config import SasRecSettings
from slmrec.config.training import DistillTraining
from slmrec.errors import CheckpointError
from slmrec.models.model import ModelParts
from slmrec.models.sasrec import build_sasrec

SIZES = Sizes(1000, 100, 2, 600, 60, 50, 8, 4, 540)
TRAINED = ("pretrain/sasrec", "finetune", "distill")
BASELINES = ("pretrain/popularity", "pretrain/cooccurrence")
STEPS = ("prepare", *BASELINES, *TRAINED, "evaluate")


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmrec.auto.estimate.MEASURED_S", 0.002)


@pytest.fixture(scope="module")
def recipe(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = yaml.safe_load(tiny_recipe) | {"evaluate": {"protocols": ["full_history_excluded"], "timing_users": 20}}
    for section in (content["pretrain"]["sasrec"], content["finetune"], content["distill"]):
        section["train"]["num_train_epochs"] = 1
    path = tmp_path_factory.mktemp("plan") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def planned(
    recipe: Path | str, output: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[dict[str, list[str]], str]:
    """The cells of each step, and the whole output."""
    capsys.readouterr()
    assert main(["run", "--config", str(recipe), "--output", str(output), "--dry-run", *more]) == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}, said


def test_without_data_the_models_are_still_counted(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, said = planned(recipe, tmp_path / "run", capsys)
    assert {name: row[0] for name, row in rows.items()} == dict.fromkeys(STEPS, "would run")
    assert all(rows[stage][1] != "?" and rows[stage][3:] == ["?"] * 5 for stage in TRAINED)
    assert "not prepared: run `slmrec prepare` first for figures of the data" in said
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_what_the_run_then_counts(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config", str(recipe), "--output", str(tmp_path)]
    assert main(["prepare", *common]) == 0
    before, said = planned(recipe, tmp_path, capsys)
    assert [row[0] for row in before.values()] == ["done"] + ["would run"] * (len(STEPS) - 1)
    assert f"data: 80 users, 40 items, 716 events (measured, {tmp_path / 'prepare'})" in said
    assert all(before[stage][6].startswith("~") and before[stage][7].startswith("~") for stage in TRAINED)
    for stage in ("pretrain", "finetune", "distill", "evaluate"):  # `run` would draw the report as well
        assert main([stage, *common]) == 0
    for stage in TRAINED:
        metrics = json.loads((tmp_path / stage / "metrics.json").read_text(encoding="utf-8"))
        counts = [int(cell.replace(",", "")) for cell in before[stage][1:3]]
        assert counts == [metrics["num_parameters"], metrics["num_trainable_parameters"]], stage
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    after, _ = planned(recipe, tmp_path, capsys)
    assert [row[0] for row in after.values()] == ["done"] * len(STEPS)
    changed, _ = planned(recipe, tmp_path, capsys, "finetune.train.learning_rate=1e-4")
    assert [row[0] for row in changed.values()] == ["done"] * 4 + ["would run"] * 3
    forced, _ = planned(recipe, tmp_path, capsys, "--force")
    assert [row[0] for row in forced.values()] == ["would run"] * len(STEPS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


@pytest.mark.parametrize("side", ["input", "both"])
def test_titles_are_counted_where_the_data_have_them(
    side: str, recipe: Path, tmp_path: Path, titled_items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["item_text={any: {source: any, num_components: 2, required: false}}", "finetune.item_text=any"]
    given += ["finetune.item_text_width=4", f"finetune.item_text_side={side}"]
    bare = ["--config", str(recipe), "--output", str(tmp_path / "bare")]
    assert main(["prepare", *bare, *given]) == 0
    without, said = planned(recipe, tmp_path / "bare", capsys, *given)
    assert "the items have no titles" in said
    given.append(f"prepare.items={titled_items}")
    common = ["--config", str(recipe), "--output", str(tmp_path / "run"), *given]
    assert main(["prepare", *common]) == 0
    found, _ = planned(recipe, tmp_path / "run", capsys, *given)
    assert main(["pretrain", *common]) == 0
    for stage in ("finetune", "distill"):
        assert main([stage, *common]) == 0
        metrics = json.loads((tmp_path / "run" / stage / "metrics.json").read_text(encoding="utf-8"))
        counts = [int(cell.replace(",", "")) for cell in found[stage][1:3]]
        assert counts == [metrics["num_parameters"], metrics["num_trainable_parameters"]], stage
        assert int(without[stage][1].replace(",", "")) < counts[0]


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_files_of_vectors_are_planned_by_their_width(
    suffix: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, path = torch.randn(40, 6), tmp_path / f"vectors{suffix}"
    if suffix == ".npy":
        np.save(path, values.numpy())
    else:
        ids = [f"i{number:02}" for number in range(1, 41)]
        pq.write_table(pa.table({"item_id": ids, "vector": values.tolist()}), path)
    given = [f"item_text={{mine: {{source: {path}}}}}", "finetune.item_text=mine", "finetune.item_text_width=4"]
    given += ["pretrain.text={kind: text, item_text: mine, hidden_size: 8, item_dim: 6}"]
    unprepared, said = planned(recipe, tmp_path / "none", capsys, *given)
    assert "data: not prepared" in said and unprepared["finetune"][1] != "?"
    common = ["--config", str(recipe), "--output", str(tmp_path / "run"), *given]
    assert main(["prepare", *common]) == 0
    rows, said = planned(recipe, tmp_path / "run", capsys, *given)
    assert "titles" not in said and "item texts" not in said  # there are none to read
    assert main(["pretrain", "--model", "text", *common]) == 0
    metrics = json.loads((tmp_path / "run" / "pretrain" / "text" / "metrics.json").read_text(encoding="utf-8"))
    assert rows["pretrain/text"][1] == f"{metrics['num_parameters']:,}"


def test_a_large_backbone_out_of_reach_is_counted_from_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(source: str) -> dict[str, object]:
        raise CheckpointError(f"{source} cannot be reached")

    monkeypatch.setattr(plan, "read_architecture", unreachable)
    monkeypatch.setattr(plan, "count_tokens", lambda *arguments: pytest.fail("the hub was asked again"))
    rows, said = planned("paper_cloth", tmp_path / "run", capsys)
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11_008 + 2 * 4096
    adapters, heads = 8 * 3 * 16 * (4096 + 11_008), 2 * 128 * 4096 + 4096
    assert rows["finetune"][1] == f"{8 * layer + 4096 + adapters + heads + 128:,}"
    assert rows["finetune"][2] == f"{adapters + heads:,}"
    assert rows["distill"][1] == f"{4 * layer + 4096 + heads + 128:,}"
    assert "meta-llama/Llama-2-7b-hf cannot be reached: its sizes are taken from a built-in table" in said
    assert "tokens estimated as characters / 4" in said
    assert "the whole backbone is read: 6,607,343,616 parameters, 24.6 GiB" in said
    rows, _ = planned("qwen3", tmp_path / "run", capsys)
    attention = 1024 * (2048 + 2 * 1024) + 2048 * 1024 + 2 * 128
    ends = 2 * (64 + 64) * 1024 + 1024 + 128 * 64  # what items and titles enter by and are scored by
    assert rows["distill"][1] == f"{4 * (attention + 3 * 1024 * 3072 + 2 * 1024) + 1024 + ends + 64:,}"


@pytest.mark.parametrize(
    ("backbone", "whole"),
    [
        ("Qwen/Qwen3-0.6B", "596,049,920 parameters, 2.2 GiB"),
        ("meta-llama/Llama-3.2-1B", "1,235,814,400 parameters, 4.6 GiB"),
        ("meta-llama/Llama-2-7b-hf", "6,607,343,616 parameters, 24.6 GiB"),
    ],
)
def test_a_large_backbone_states_parameters_and_memory(
    backbone: str,
    whole: str,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(source: str) -> dict[str, object]:
        raise CheckpointError(f"{source} cannot be reached")

    monkeypatch.setattr(plan, "read_architecture", unreachable)
    assert main(["prepare", "--config", str(recipe), "--output", str(tmp_path / "run")]) == 0
    given = [
        f"finetune.backbone={backbone}",
        "finetune.backbone_config=null",
        "finetune.lora={}",
        "finetune.prompt=none",
    ]
    rows, said = planned(recipe, tmp_path / "run", capsys, *given)
    assert f"the whole backbone is read: {whole}" in said
    for step in ("finetune", "distill"):
        assert re.fullmatch(r"[\d,]{9,}", rows[step][1]) and re.fullmatch(r"~[\d.]+ [MG]iB", rows[step][6]), rows[step]


def test_tokens_by_hand() -> None:
    work = Work(samples=10, items=50, positions=10, largest=30)
    assert tokens_of(work, (47, 6), batch_size=4) == 50 + 10 * 6 + 3 * 47
    assert padded_tokens_of(work, (47, 6), max_history_items=30) == 10 * (47 + 30 + 6)


def test_time_by_hand() -> None:
    rates, share = Rates(flop=1e4, scores=100), SHARE_OF_PRODUCTS
    assert training_seconds(SIZES, 7, 50, rates) == pytest.approx(2 * 7 * (2 * 600 + 60) / 1e4 / share + 0.5)
    assert reading_seconds(SIZES, 7, 50, rates) == pytest.approx(2 * 7 * 600 / 1e4 / share + 0.5)
    measured = measure_rates(SIZES, 50, bf16=False)
    assert measured.flop > 0 and measured.scores > 0


def test_memory_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # without what a CPU's program takes besides
    settings = DistillTraining()

    def taken(settings: DistillTraining, bits: int | None = None, with_kl: bool = False, bf16: bool = False) -> int:
        return training_bytes(SIZES, 7, 30, settings, bits=bits, bf16=bf16, with_kl=with_kl)

    whole = 4 * 1000 + 3 * 4 * 100 + 7 * 50 * 4 + 12 * 30
    assert taken(settings) == whole
    assert taken(settings, bits=4) == whole - 540 * 28 // 8
    assert taken(settings, with_kl=True) == whole + 8 * 30
    assert taken(settings, bf16=True) == whole - 7 * 50
    less = settings.model_copy(update={"gradient_checkpointing": True})
    assert taken(less) == whole - 7 * 50 * 4 + 7 * (25 + 2 * 8) * 4


def test_sizes_are_those_of_the_model() -> None:
    with torch.device("meta"):
        sizes = sizes_of(build_sasrec(SasRecSettings(hidden_size=8, max_history_items=5), ModelParts(9)))
    assert (sizes.layers, sizes.hidden, sizes.item_width) == (2, 8, 8)
    assert sizes.products == sizes.trained_products == 2 * (4 * 8 * 8 + 2 * 8 * 32)
    assert sizes.frozen_layer_entries == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["finetune.backbone={0}/nowhere"], r"finetune\.backbone is '.*/nowhere', which cannot be loaded .*; give a"),
        (["finetune.backbone={0}/no.gguf"], r"finetune\.backbone is '.*/no\.gguf': no such file"),
        (
            ["finetune.quantization_config={{load_in_4bits: true}}"],
            r"finetune\.quantization_config is .*: load_in_4bits is no setting of transformers",
        ),
        (["finetune.quantization_config={{bnb_4bit_quant_type: nf4}}"], "neither load_in_4bit nor load_in_8bit is"),
    ],
)
def test_a_backbone_that_cannot_be_had_is_told_before_the_first_stage(
    shop_file: Path, tmp_path: Path, overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [override.format(tmp_path) for override in overrides]
    (tmp_path / "defaults.yaml").write_text("seed: 42", encoding="utf-8")
    common = ["--config", str(tmp_path / "defaults.yaml"), "--input", str(shop_file), "--output", str(tmp_path / "run")]
    assert main(["run", *common, *given]) == 2
    error = capsys.readouterr().err
    assert re.search(expected, error), error
    assert not (tmp_path / "run").exists()


def test_a_brought_teacher_is_not_counted(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, said = planned(recipe, tmp_path / "run", capsys, "distill.teacher=somewhere")
    assert "finetune" not in rows and rows["distill"][1:] == [""] * 7
    assert "distill.teacher is somewhere: sizes of teacher and student are not read" in said
