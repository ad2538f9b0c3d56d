"""Recipes of the package: all are valid, and those of the paper have its values."""

import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest

from slmrec.config import Config, DecoderStudent, SasRecStudent
from slmrec.config.load import load_config
from slmrec.data.public.registry import find_dataset
from slmrec.errors import ConfigError
from slmrec.pipeline.stage import dump
from slmrec.recipes import find_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name: str, tmp_path: Path) -> None:
    config = load_config(name, [])
    student = config.distill.student
    if isinstance(student, DecoderStudent):
        assert student.depth * 2 <= config.finetune.num_layers
    else:
        assert isinstance(student, SasRecStudent) and config.finetune.backbone is None
    assert config == load_config(find_recipe(name), [])
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml", []) == config


def test_an_unknown_recipe_is_refused_with_a_list_of_all() -> None:
    with pytest.raises(
        ConfigError, match=r"nowhere: no such file or recipe; recipes: beauty, demo, .*, sequences, .*tiny, toys, words"
    ):
        load_config("nowhere", [])


PAPER = {
    "prepare.preset": "paper",
    "finetune.backbone": "meta-llama/Llama-2-7b-hf",
    "finetune.num_layers": 8,
    "finetune.lora.r": 16,
    "finetune.lora.lora_alpha": 16,
    "finetune.lora.lora_dropout": 0.05,
    "finetune.lora.target_modules": ("gate_proj", "up_proj", "down_proj"),
    "finetune.prompt": "alpaca",
    "finetune.positions": "right_aligned",
    "finetune.item_embeddings": "fixed",
    "finetune.max_history_items": 30,
    "finetune.supervision": "last_position",
    "finetune.train.learning_rate": 1e-3,
    "finetune.train.num_train_epochs": 3,
    "finetune.train.per_device_train_batch_size": 256,
    "finetune.train.reference_batch_size": 256,
    "finetune.train.warmup_steps": 100,
    "finetune.train.lr_scheduler_type": "cosine",
    "finetune.train.weight_decay": 0,
    "distill.mode": "offline",
    "distill.student.num_layers": 4,
    "distill.student.item_embeddings": "fixed",
    "distill.num_blocks": 4,
    "distill.weights.ce": 1,
    "distill.weights.cosine": 1,
    "distill.weights.norm": 0.1,
    "distill.weights.multiple": 1,
    "distill.weights.kl": 0,
    "distill.train.learning_rate": 1e-3,
    "distill.train.num_train_epochs": 5,
    "distill.train.per_device_train_batch_size": 128,
    "distill.train.reference_batch_size": 128,
    "distill.train.warmup_steps": 50,
    "distill.train.lr_scheduler_type": "cosine",
    "distill.train.weight_decay": 0,
    "evaluate.protocols": ("full_history_excluded", "full", "sampled_999"),
    "evaluate.primary_protocol": "full_history_excluded",
}
"""The published recipe; sources as in docs/paper.md."""


SECTIONS = {*Config.model_fields, "sasrec", "train", "student", "weights", "kind", "item_vectors"}


def lines_without_source(text: str) -> Iterator[str]:
    """Yield the settings that neither have a comment nor stand below a section that has one."""
    commented = None
    for line in text[text.index("\nseed:") :].strip().splitlines():
        indentation = len(line) - len(line.lstrip())
        if commented is not None and indentation > commented:
            continue
        commented = indentation if "#" in line else None
        if commented is None and line.split(":")[0].strip() not in SECTIONS:
            yield line


@pytest.mark.parametrize("name", ["cloth", "movie", "music", "sport"])
def test_recipes_of_the_paper_have_its_values(name: str) -> None:
    path = find_recipe(f"paper_{name}")
    config = load_config(path, [])
    for key, expected in PAPER.items():
        assert reduce(getattr, key.split("."), config) == expected, key
    text = path.read_text(encoding="utf-8")
    fetched = find_dataset(*re.findall(r"slmrec data fetch (\S+)", text))
    assert fetched.about.endswith(f"{name.capitalize()} in the SLMRec paper")
    assert f"--input data/{fetched.events} --items data/{fetched.items}" in text
    assert not list(lines_without_source(text))
    assert "1e-3 the loss exploded" in text and "train.learning_rate=1e-4" in text


def test_recipes_of_the_paper_differ_in_their_data_alone() -> None:
    paper = [load_config(f"paper_{name}", []) for name in ("cloth", "movie", "music", "sport")]
    assert all(config == paper[0] for config in paper)


def test_the_small_recipe_of_the_paper_has_its_form() -> None:
    config = load_config("paper_small", [])
    sized = {"backbone", "train.learning_rate", "train.num_train_epochs", "train.per_device_train_batch_size"}
    for key, expected in PAPER.items():
        section, _, name = key.partition(".")
        if section in ("finetune", "distill") and name not in sized:
            assert reduce(getattr, key.split("."), config) == expected, key
    for train in (config.finetune.train, config.distill.train):
        assert 64 * train.gradient_accumulation_steps == train.reference_batch_size
    student = config.distill.student
    assert student == DecoderStudent(num_layers=4, lora=config.finetune.lora)
    assert (config.finetune.backbone, config.ablate.learning_rates) == ("smollm2-135m", (1e-4, 3e-4, 1e-3))
    assert "sampled_999" in config.evaluate.protocols


def test_the_small_recipe_says_where_each_setting_comes_from() -> None:
    assert not list(lines_without_source(find_recipe("paper_small").read_text(encoding="utf-8")))


def test_the_recipe_of_a_small_modern_backbone_fits_any_gpu_and_says_that_it_is_unmeasured() -> None:
    path = find_recipe("qwen3")
    config = load_config(path, [])
    assert config.finetune.backbone == "Qwen/Qwen3-0.6B"
    assert {part.train.per_device_train_batch_size for part in (config.finetune, config.distill)} == {"auto"}
    assert "NOT MEASURED YET" in path.read_text(encoding="utf-8")
