"""Settings: all faults at once, unknown keys with a suggestion, every recipe valid."""

from pathlib import Path

import pytest

from slmrec.config import Config, load_config
from slmrec.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_valid(path: Path) -> None:
    config = load_config(path, [])
    assert config.distill.num_layers * 2 <= config.finetune.num_layers


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


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretrain.train.loss=sampled_softmax"], "loss is sampled_softmax and num_sampled is None"),
        (["finetune.train.num_sampled=8"], "loss is ce and num_sampled is 8; num_sampled belongs to loss"),
        (["pretrain.train.gradient_checkpointing=true"], "unknown key 'pretrain.train.gradient_checkpointing'"),
    ],
)
def test_settings_of_training_that_do_not_fit_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)
