"""Stages on two processes (gloo): they write what one process with the same samples per step writes."""

import json
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import Ended, launch
from runs import contents, read_json, weights
from transformers import LlamaConfig, LlamaModel

from slmrec.commands.main import main
from slmrec.locks import run_locked

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
ATOL, LOSS_ATOL = 1e-5, 1e-4
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "dropout": 0.0, "max_history_items": 20}


def training(size: int | str = 32, **settings: Any) -> dict[str, Any]:
    """Twenty steps; the last one of an epoch has 16 of the 80 samples."""
    fixed = {"learning_rate": 3e-3, "num_train_epochs": 7, "max_steps": 20, "warmup_steps": 0, "bf16": False}
    return fixed | {"early_stopping_patience": 9, "per_device_train_batch_size": size} | settings


def recipe(tiny_recipe: str, size: int | str = 32, **settings: Any) -> dict[str, Any]:
    """Return the recipe `tiny` without dropout, with three kinds of base models."""
    content = yaml.safe_load(tiny_recipe)
    train, decoder = training(size, **settings), {"model_type": "llama", "vocab_size": 8, **LLAMA}
    content["item_text"] = {"words": {"source": "words", "num_components": 8}}
    text = {"kind": "text", "item_text": "words", "text_dropout": 0.0, "supervision": "every_position"}
    content["pretrain"] = {
        "sasrec": {"kind": "sasrec", "supervision": "every_position", "positions": "relative", **SIZES, "train": train},
        "text": {**text, **SIZES, "positions": "relative", "train": train},
        "decoder_1": {
            **{"kind": "decoder", "backbone": "random", "backbone_config": decoder, "num_layers": 2, "item_dim": 8},
            **{"item_dropout": 0.0, "layer_dropout": 0.0, "max_history_items": 20, "train": train},
        },
    }
    content["finetune"] |= {"backbone_config": decoder, "num_layers": 2, "item_dropout": 0.0, "train": train}
    content["finetune"]["ensemble"] = ["sasrec"]
    content["distill"]["student"] |= {"num_layers": 1, "item_dropout": 0.0}
    content["distill"] |= {"num_blocks": 1, "train": train}
    content["distill"]["weights"] = {"ce": 1.0, "cosine": 1.0, "norm": 0.1, "multiple": 0.0, "kl": 1.0}
    return content | {"evaluate": {"protocols": ["full_history_excluded", "full", "sampled_19"], "timing_users": 20}}


def with_adapters(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Change a recipe to adapters on a saved decoder, and a student that is distilled online."""
    torch.manual_seed(0)
    LlamaModel(LlamaConfig(vocab_size=8, **LLAMA)).save_pretrained(folder)
    content["pretrain"] = {"sasrec": content["pretrain"]["sasrec"]}
    content["finetune"] |= {"backbone": str(folder), "prompt": "none", "ensemble": []}
    content["finetune"]["lora"] = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0}
    del content["finetune"]["backbone_config"], content["item_text"]
    content["distill"] |= {"mode": "online"}
    return content


@pytest.fixture
def items(tmp_path: Path) -> Path:
    file = tmp_path / "items.csv"
    file.write_text("item_id,title\n" + "".join(f"i{item:02d},Thing {item % 7} of {item % 5}\n" for item in range(40)))
    return file


def write(content: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def finished(ended: list[Ended]) -> list[Ended]:
    """Check that all processes ended well, and that the main process alone wrote to the terminal."""
    assert [one.exit_code for one in ended] == [0] * len(ended), ended
    assert all(one.output == "" and one.error == "" for one in ended[1:]), ended[1:]
    return ended


def same_training(one: Path, other: Path) -> None:
    """Check that two folders hold the same model, and that its losses were the same."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith("key.bias"):  # adds the same to all scores of a query: its gradient is rounding error alone
            continue
        assert abs(ours[name] - theirs[name]).max(initial=0) <= ATOL, (one, name)
    logs = [[json.loads(line) for line in (each / "training" / "log.jsonl").open()] for each in (one, other)]
    assert len(logs[0]) == len(logs[1])
    for ours, theirs in zip(*logs, strict=True):
        losses = [key for key in ours if key.startswith("train/")]
        assert losses and ours["step"] == theirs["step"]
        for key in losses:
            assert ours[key] == pytest.approx(theirs[key], abs=LOSS_ATOL), (one, key)


def without_report(rank: int) -> None:
    from slmrec import run

    run.write_report = lambda output, always=False: None  # type: ignore[assignment]


@pytest.mark.parametrize("fsdp", [False, True], ids=["DDP", "FSDP"])
@pytest.mark.parametrize("kind", ["full, offline", "LoRA, online"])
def test_two_processes_take_the_steps_of_one(
    kind: str, fsdp: bool, tiny_recipe: str, items: Path, tmp_path: Path
) -> None:
    outputs, models = [tmp_path / "one", tmp_path / "two"], ["pretrain/sasrec", "finetune", "distill"]
    models += ["pretrain/text", "pretrain/decoder_1"] if kind == "full, offline" else ["distill/teacher"]
    for number, output in enumerate(outputs, 1):
        content = recipe(tiny_recipe, 32 // number, fsdp=fsdp)
        if kind != "full, offline":
            content = with_adapters(content, tmp_path / "llama")
        common = ["--config", str(write(content, tmp_path / f"{number}.yaml")), "--output", str(output)]
        common += ["--items", str(items)] if kind == "full, offline" else []
        if number == 1:
            assert main(["run", *common]) == 0
        else:
            finished(launch(["run", *common], tmp_path, without_report))
    for model in models:
        if model != "distill/teacher":
            same_training(outputs[0] / model, outputs[1] / model)
    teachers = [weights(output / models[-1]) for output in outputs]
    assert all(abs(teachers[0][name] - teachers[1][name]).max(initial=0) <= ATOL for name in teachers[0])
    names = [{str(file.relative_to(output)) for file in output.rglob("*")} for output in outputs]
    caches = {name for name in names[0] | names[1] if name.startswith("teacher_outputs/")}
    assert names[0] - caches == names[1] - caches
    assert not list(outputs[1].rglob(".*"))
    results = [read_json(output / "evaluate" / "metrics.json")["protocols"]["full"]["models"] for output in outputs]
    assert results[0].keys() == results[1].keys()
    for model in results[0]:
        assert results[0][model]["ndcg@10"] == pytest.approx(results[1][model]["ndcg@10"], abs=0.02)


@pytest.fixture(scope="module")
def base(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one process, and its recipe."""
    folder = tmp_path_factory.mktemp("base")
    content = recipe(tiny_recipe)
    content["pretrain"] = {"sasrec": content["pretrain"]["sasrec"]}
    del content["item_text"]
    assert main(["run", "--config", str(write(content, folder / "recipe.yaml")), "--output", str(folder / "run")]) == 0
    return folder


def test_evaluate_ranks_every_user_once(base: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(base / "run", tmp_path / "run"))
    shutil.rmtree(output / "evaluate")
    common = ["--config", str(base / "recipe.yaml"), "--output", str(output)]
    ended = finished(launch(["evaluate", *common], tmp_path))
    assert "full_history_excluded: " in ended[0].output
    ours, theirs = (contents(folder / "evaluate") for folder in (output, base / "run"))
    assert ours == theirs
    metrics = [read_json(folder / "evaluate" / "metrics.json") for folder in (output, base / "run")]
    for content in metrics:
        for protocol in content["protocols"].values():
            for model in protocol["models"].values():
                assert model.pop("users_per_second") > 0
    assert metrics[0] == metrics[1]


def unequal(rank: int) -> None:
    """Let the processes find other sizes that fit, after trying different numbers of sizes."""

    def find(step: Any, *arguments: Any) -> int:
        for size in range(1, 3 + rank):
            step(size)
        return [6, 4][rank]

    from slmrec.training import trainer

    trainer.largest_that_fits = find  # type: ignore[assignment]


def test_auto_takes_the_smallest_size_that_fits(base: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((base / "recipe.yaml").read_text())
    content["pretrain"]["sasrec"]["train"] = training("auto", reference_batch_size=32)
    output = tmp_path / "run"
    shutil.copytree(base / "run" / "prepare", output / "prepare")
    common = ["--config", str(write(content, tmp_path / "auto.yaml")), "--output", str(output)]
    finished(launch(["pretrain", "--model", "sasrec", *common], tmp_path, unequal))
    metrics = read_json(output / "pretrain" / "sasrec" / "metrics.json")
    assert (metrics["samples_at_once"], metrics["samples_per_step"]) == (4, 32)
    same_training(output / "pretrain" / "sasrec", base / "run" / "pretrain" / "sasrec")


def die(rank: int) -> None:
    """Kill one process in the second epoch of any training."""
    from slmrec.training.trainer import _Trainer

    record = _Trainer._record

    def recorded(trainer: _Trainer, *arguments: Any) -> None:
        if rank == 1 and trainer.progress.epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        record(trainer, *arguments)

    _Trainer._record = recorded  # type: ignore[method-assign]


@pytest.mark.parametrize("number, fsdp", [(1, False), (2, False), (1, True), (2, True)])
def test_a_run_goes_on_after_the_death_of_a_process(number: int, fsdp: bool, base: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((base / "recipe.yaml").read_text())
    for section in (content["pretrain"]["sasrec"], content["finetune"], content["distill"]):
        section["train"] |= {"per_device_train_batch_size": 16, "fsdp": fsdp}
    output = tmp_path / "run"
    shutil.copytree(base / "run" / "prepare", output / "prepare")
    common = ["--config", str(write(content, tmp_path / "recipe.yaml")), "--output", str(output)]
    pretrain = ["pretrain", "--model", "sasrec", *common]
    main_process, killed = launch(pretrain, tmp_path, die)
    assert killed.exit_code == -signal.SIGKILL
    assert main_process.exit_code == 1
    assert main_process.error.splitlines()[-1:] == [
        "slmrec: another process of this run has ended; run the same command again to continue where it stopped"
    ]
    assert not (output / "pretrain" / "sasrec").exists()
    ended = finished(launch(pretrain, tmp_path, number=number))
    assert re.search(r"pretrain\.sasrec: resumed after epoch [23]\n", ended[0].output)
    assert ("steps keep the 32 samples that they had before" in ended[0].output) == (number == 1)
    assert ("one process, so fsdp shards nothing" in ended[0].output) == (fsdp and number == 1)
    same_training(output / "pretrain" / "sasrec", base / "run" / "pretrain" / "sasrec")
    assert not list(output.rglob(".*"))


def counting(rank: int, folder: Path) -> None:
    """Write down how many parameters of a sharded training a process holds: between steps, and at most."""
    from torch import nn
    from torch.distributed.tensor import DTensor

    from slmrec.training import trainer
    from slmrec.training.sharding import ShardedCopy

    def held(module: nn.Module) -> int:
        return sum((one.to_local() if isinstance(one, DTensor) else one).numel() for one in module.parameters())

    class Counting(ShardedCopy):
        def __init__(self, loss: nn.Module) -> None:
            super().__init__(loss)
            self.most = 0
            for part in self.module.modules():
                part.register_forward_hook(lambda *_: self.count())

        def count(self) -> None:
            self.most = max(self.most, held(self.module))

        def gather(self) -> None:
            super().gather()
            total = sum(one.numel() for one in self.module.parameters())
            counts = {"total": total, "between": held(self.module), "most": self.most}
            (folder / f"counts.{rank}").write_text(json.dumps(counts))

    trainer.ShardedCopy = Counting  # type: ignore[misc]


def test_a_process_holds_its_shard_and_one_layer(base: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((base / "recipe.yaml").read_text())
    sizes = LLAMA | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8}
    decoder = {"backbone": "random", "backbone_config": {"model_type": "llama", "vocab_size": 8, **sizes}}
    train = training(16, fsdp=True, max_steps=2)
    content["pretrain"] = {"decoder_1": {"kind": "decoder", "num_layers": 8, "item_dim": 8, **decoder, "train": train}}
    content |= {"finetune": {}, "distill": {"teacher": None}}
    output = tmp_path / "run"
    shutil.copytree(base / "run" / "prepare", output / "prepare")
    common = ["--config", str(write(content, tmp_path / "recipe.yaml")), "--output", str(output)]
    finished(launch(["pretrain", "--model", "decoder_1", *common], tmp_path, partial(counting, folder=tmp_path)))
    counts = [read_json(tmp_path / f"counts.{rank}") for rank in range(2)]
    for one in counts:
        assert one["between"] == pytest.approx(one["total"] / 2, rel=0.01)
        assert one["between"] < one["most"] <= 0.6 * one["total"]


def no_samples(rank: int) -> None:
    """Let one process find a fault of the user."""
    from slmrec.errors import DataError
    from slmrec.pipeline import pretrain

    def refuse(*arguments: Any) -> None:
        raise DataError("history.csv: not here, but there")

    if rank == 1:
        pretrain.training_samples = refuse  # type: ignore[assignment]


def test_a_fault_of_one_process_ends_all_with_one_line(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(base / "run" / "prepare", output / "prepare")
    common = ["--config", str(base / "recipe.yaml"), "--output", str(output)]
    ended = launch(["pretrain", "--model", "sasrec", *common], tmp_path, no_samples)
    assert [one.exit_code for one in ended] == [2, 2]
    assert "".join(one.error for one in ended) == "slmrec: history.csv: not here, but there\n"
    assert not (output / "pretrain" / "sasrec").exists()
    with run_locked(output):
        refused = launch(["pretrain", *common], tmp_path)
    assert [one.exit_code for one in refused] == [2, 2]
    assert re.fullmatch(r"slmrec: .* is being written by .*\n", "".join(one.error for one in refused))
    unknown = launch(["pretrain", *common, "pretrain.sasrec.widht=3"], tmp_path)
    assert [one.exit_code for one in unknown] == [2, 2]
    assert sum(one.error.count("\n") for one in unknown) == 1 and "widht" in unknown[0].error + unknown[1].error
