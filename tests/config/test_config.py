"""Settings: all faults at once, unknown keys with a suggestion, every recipe valid."""

import re
from functools import reduce
from pathlib import Path

import pytest

from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.data.public.registry import find_dataset
from slmrec.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_valid(path: Path) -> None:
    config = load_config(path, [])
    assert config.distill.num_layers * 2 <= config.finetune.num_layers


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
    "finetune.item_table": "frozen",
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
    "distill.num_layers": 4,
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
    "evaluate.protocols": ("full_history_excluded", "full", "sampled"),
    "evaluate.num_negatives": 999,
}
"""The published recipe; sources as in docs/paper.md."""


@pytest.mark.parametrize("name", ["cloth", "movie", "music", "sport"])
def test_recipes_of_the_paper_have_its_values(name: str) -> None:
    path = RECIPES[0].parent / f"paper_{name}.yaml"
    config = load_config(path, [])
    for key, expected in PAPER.items():
        assert reduce(getattr, key.split("."), config) == expected, key
    text = path.read_text(encoding="utf-8")
    fetched = find_dataset(*re.findall(r"slmrec data fetch (\S+)", text))
    assert fetched.about.endswith(f"{name.capitalize()} in the SLMRec paper")
    assert f"--input data/{fetched.events} --items data/{fetched.items}" in text
    values = text[text.index("\nseed:") :].strip().splitlines()
    assert all(
        "#" in line or line.strip().split(":")[0] in {*Config.model_fields, "train", "weights"} or line[:4] == "    "
        for line in values
    )  # a value without a source stands under one that has it
    assert "1e-3 the loss exploded" in text and "train.learning_rate=1e-4" in text


def test_recipes_of_the_paper_differ_in_their_data_alone() -> None:
    paper = [load_config(path, []) for path in RECIPES if path.name.startswith("paper_")]
    assert len(paper) == 4 and all(config == paper[0] for config in paper)


def test_the_recipe_of_a_small_modern_backbone_fits_any_gpu_and_says_that_it_is_unmeasured() -> None:
    path = RECIPES[0].parent / "qwen3.yaml"
    config = load_config(path, [])
    assert config.finetune.backbone == "Qwen/Qwen3-0.6B"
    assert {part.train.per_device_train_batch_size for part in (config.finetune, config.distill)} == {"auto"}
    assert "NOT MEASURED YET" in path.read_text(encoding="utf-8")


def test_defaults_are_those_of_the_paper() -> None:
    config = Config()
    lora = config.finetune.lora
    assert lora is not None
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (16, 16, 0.05)
    assert set(lora.target_modules) == {"gate_proj", "up_proj", "down_proj"}
    assert (config.finetune.num_layers, config.distill.num_layers, config.distill.num_blocks) == (8, 4, 4)
    assert (config.distill.weights.cosine, config.distill.weights.norm) == (1.0, 0.1)
    assert config.evaluate.num_negatives == 999


def test_overrides_reach_any_depth_and_keep_the_other_defaults() -> None:
    overrides = ["distill.train.learning_rate=1e-4", "finetune.lora.r=4", "finetune.layers=[0, 1, 5, 6]"]
    config = load_config(None, overrides)
    assert config.distill.train.learning_rate == 1e-4
    assert config.distill.train.num_train_epochs == 5
    assert config.finetune.lora is not None and (config.finetune.lora.r, config.finetune.lora.lora_alpha) == (4, 16)
    assert config.finetune.layers == (0, 1, 5, 6)


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["distil.num_layers=2", "finetune.lora.rr=2", "finetune.num_layers=0"])
    message = str(caught.value)
    assert "unknown key 'distil' (did you mean 'distill'?)" in message
    assert "unknown key 'finetune.lora.rr' (did you mean 'r'?)" in message
    assert "finetune.num_layers is 0" in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["finetune.supervision=every_position"], "the prompt must have no response"),
        (["finetune.backbone=random"], "backbone_config belongs to backbone: random"),
        (["finetune.backbone=random", "finetune.backbone_config={model_type: llama}"], "LoRA on random weights"),
        (["distill.backbone_config={hidden_size: 8}"], "belongs to init: fresh"),
        (["pretrain.low_pass={}", "pretrain.supervision=every_position"], "low_pass sees later items, so"),
        (
            ["pretrain.low_pass.frequencies=11", "pretrain.max_history_items=20"],
            "low_pass.frequencies is 11, but max_history_items is 20, which has 11 frequencies: nothing would be held",
        ),
        (["pretrain.low_pass.weight=1"], r"pretrain\.low_pass\.weight is 1: Input should be less than 1"),
        (["distill.init=fresh", "distill.layers=[1]"], "layers belongs to init: teacher"),
        (["distill.weights={ce: 0, cosine: 0, norm: 0, multiple: 0}"], "all weights are 0"),
        (["distill.kl_temperature=2"], "belongs to weights.kl, which is 0"),
        (["distill.num_blocks=1"], r"num_blocks is 1, so .*; set distill\.weights\.multiple=0, or num_blocks to 2"),
        (["distill.num_blocks=3"], r"^the command line: distill\.num_blocks is 3, but the student has 4 layers"),
        (["finetune.layers=[0, 1, 2, 3, 4, 5]"], r"num_blocks is 4, .* 4 layers and the teacher 6; choose a number th"),
        (["distill.mode=online", "distill.teacher_states=/tmp"], "teacher_states belongs to mode: offline"),
        (["finetune.lora=null", "finetune.quantization_config={load_in_4bit: true}"], "give lora as well"),
        (["finetune.layers=[0, 3]", "finetune.num_layers=3"], "lists 2 layers but num_layers is 3"),
        (["finetune.layers=[0"], "is not a YAML value"),
        (
            [
                "finetune.backbone=random",
                "finetune.backbone_config={}",
                "finetune.lora=null",
                "finetune.prompt={prefix: x}",
            ],
            "no words to prompt with",
        ),
        (["seed"], "expected key.path=value"),
        (["seed.x=1", "seed.y=2"], "seed"),
        (["finetune.train.eval_steps=3"], "unknown key 'finetune.train.eval_steps'"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(None, overrides)


@pytest.mark.parametrize("override", ["distill.teacher=FOLDER", "distill.weights={cosine: 0, norm: 0, multiple: 0}"])
def test_blocks_are_not_compared_where_they_are_not_known_or_not_used(override: str) -> None:
    assert load_config(None, ["distill.num_blocks=3", override]).distill.num_blocks == 3


def test_a_fault_names_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("sed: 1\nfinetune: {num_layer: 2}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["distill.num_layer=1", "distill.num_blocks=1", "prepare={imput: x}", "seed=2"])
    assert str(caught.value).split("; ") == [
        "override 'prepare={imput: x}': unknown key 'prepare.imput' (did you mean 'input'?)",
        f"{path}: unknown key 'finetune.num_layer' (did you mean 'num_layers'?)",
        "unknown key 'sed' (did you mean 'seed'?)",
        "override 'distill.num_layer=1': unknown key 'distill.num_layer' (did you mean 'num_layers'?)",
    ]
    path.write_text("distill: {weights: {multiple: 1}}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"recipe\.yaml and the command line: distill: num_blocks is 1, so"):
        load_config(path, ["distill.num_blocks=1"])


def test_a_section_that_the_recipe_leaves_out_is_begun_by_its_first_setting(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("finetune: {lora: null}", encoding="utf-8")
    lora = load_config(path, ["finetune.lora.r=8"]).finetune.lora
    assert lora is not None and (lora.r, lora.lora_alpha) == (8, 16)
    with pytest.raises(ConfigError, match=r"override 'seed\.x=1': 'seed' is 42, which has no settings of its own"):
        path.write_text("seed: 42", encoding="utf-8")
        load_config(path, ["seed.x=1"])


def test_a_brought_teacher_needs_no_sasrec_of_its_own() -> None:
    brought = ["pretrain.item_vectors=x.npy", "distill.teacher=out/finetune"]
    assert load_config(None, [*brought, "finetune.ensemble=[sasrec]"]).finetune.ensemble == ("sasrec",)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretrain.train.loss=sampled_softmax"], "loss is sampled_softmax and num_sampled is None"),
        (["finetune.train.num_sampled=8"], "loss is ce and num_sampled is 8; num_sampled belongs to loss"),
        (
            ["finetune.train.per_device_train_batch_size=auto"],
            "is auto and reference_batch_size is not set; give the",
        ),
        (
            [
                "finetune.train.per_device_train_batch_size=auto",
                "finetune.train.reference_batch_size=8",
                "finetune.train.gradient_accumulation_steps=2",
            ],
            "gradient_accumulation_steps is 2; auto divides a step itself",
        ),
        (["distill.train.per_device_train_batch_size=0"], "got 0, expected a whole number from 1, or auto"),
        (["distill.train.per_device_train_batch_size=large"], "got 'large', expected a whole number from 1, or auto"),
        (["distill.train.per_device_train_batch_size=1.5"], "got 1.5, expected a whole number from 1, or auto"),
        (
            ["finetune.train={loss: sampled_softmax, num_sampled: 8, label_smoothing_factor: 0.1}"],
            "label_smoothing_factor spreads labels over the whole catalogue; it belongs to loss: ce",
        ),
        (
            ["distill.weights.norm=0", "distill.normalized_states=true"],
            "normalized_states belongs to weights.norm, which is 0",
        ),
        (
            ["finetune={backbone: random, backbone_config: {model_type: llama}, lora: null, titles: {}}"],
            "a random backbone cannot read titles; give titles.source",
        ),
        (
            ["finetune.ensemble=[sasrec]", "pretrain.item_vectors=x.npy"],
            "finetune.ensemble names sasrec, but pretrain.item_vectors brings vectors alone",
        ),
        (["finetune.ensemble=[companion]"], "finetune.ensemble names companion, but there is no section of that name"),
        (["finetune.ensemble=[sasrec, sasrec]"], r"ensemble is \['sasrec', 'sasrec'\]; name each once"),
        (
            [
                "finetune.ensemble=[companion]",
                "companion={lora: {r: 2}, backbone: smollm2-135m, backbone_config: null}",
            ],
            "adapters of a companion cannot be kept with the teacher",
        ),
        (["evaluate.models=[companion]"], "evaluate.models names companion, but there is no section of that name"),
        (["distill.keep_ensemble=true"], "keep_ensemble is true, but finetune.ensemble names no other model"),
        (
            ["finetune.ensemble=[sasrec]", "pretrain.max_history_items=20"],
            "finetune reads the newest 50 items and sasrec 20; in an ensemble all read alike",
        ),
        (["distill.layers=middle"], "distill.layers"),
        (["pretrain.train.gradient_checkpointing=true"], "unknown key 'pretrain.train.gradient_checkpointing'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)
