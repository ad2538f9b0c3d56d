"""Keys of version 0.1 are refused with the keys that replace them; names of base models are no old keys."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.config.old_keys import old_keys
from slmrec.errors import ConfigError

OLD: dict[str, tuple[Any, str]] = {
    "pretrain.hidden_size": (64, "use 'pretrain.sasrec.hidden_size'"),
    "pretrain.low_pass": ({"weight": 0.5}, "use 'pretrain.sasrec.low_pass'"),
    "pretrain.low_pass.weight": (0.5, "use 'pretrain.sasrec.low_pass'"),
    "pretrain.supervision": ("every_prefix", "use 'pretrain.sasrec.supervision'"),
    "pretrain.train": ({"num_train_epochs": 2}, "use 'pretrain.sasrec.train'"),
    "pretrain.train.average_decay": (0.9, "use 'pretrain.sasrec.train.ema_decay'"),
    "pretrain.item_vectors": ("vectors.npy", "use 'finetune.item_vectors'"),
    "companion": ({"num_layers": 2}, "declare a base model: pretrain.NAME with kind: decoder"),
    "companion.train.average_decay": (0.9, "declare a base model: pretrain.NAME with kind: decoder"),
    "finetune.titles": ({"source": "any"}, "declare 'item_text.NAME', and set finetune.item_text to that name"),
    "pretrain.text.titles": ({"source": "any"}, "declare 'item_text.NAME', and set pretrain.text.item_text to that"),
    "finetune.ensemble": (["sasrec", "companion"], "'companion', which is not a base model of pretrain"),
    "finetune.item_table": ("trained", "use 'finetune.item_embeddings' with fixed, train or reinitialise for frozen,"),
    "finetune.train.average_decay": (0.9, "use 'finetune.train.ema_decay'"),
    "distill.init": ("teacher", "use 'distill.student.init'"),
    "distill.layers": ([0, 1], "use 'distill.student.layers'"),
    "distill.num_layers": (2, "use 'distill.student.num_layers'"),
    "distill.item_table": ("trained", "use 'distill.student.item_embeddings' with fixed, train or reinitialise"),
    "distill.item_dropout": (0.5, "use 'distill.student.item_dropout'"),
    "distill.train.average_decay": (0.9, "use 'distill.train.ema_decay'"),
    "distill.teacher_states": (
        "FOLDER",
        "it was removed: the outputs of the teacher are cached in OUT/teacher_outputs",
    ),
    "distill.normalized_states": (True, "it was removed"),
    "distill.layer_dropout": (0.1, "it was removed"),
    "distill.backbone_config": ({"hidden_size": 8}, "it was removed: a student of another size has another kind"),
    "evaluate.protocols": (["full_history_excluded", "sampled"], "name the protocol 'sampled_999'"),
    "evaluate.primary_protocol": ("sampled", "'sampled', which is not one of protocols"),
    "ablate.variants": ({"half": {"distill.num_layers": 2}}, "use 'distill.student.num_layers'"),
}


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


@pytest.mark.parametrize("key", OLD)
def test_an_old_key_is_refused_with_the_new_one(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value, expected = OLD[key]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(nested(key, value)), encoding="utf-8")
    assert main(["run", "--config", str(recipe), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(recipe) in error and expected in error
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{key}={json.dumps(value)}"])
    assert expected in str(caught.value)


def test_all_old_keys_are_reported_together(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("pretrain: {hidden_size: 8, train: {warmup_steps: 0}}\ndistill: {num_layers: 2}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, ["finetune.item_table=frozen"])
    keys = ("pretrain.hidden_size", "pretrain.train", "distill.num_layers", "finetune.item_table")
    assert [part.split("'")[1] for part in str(caught.value).split(f"{recipe}: ")[1].split("; ")[::2]] == list(keys)


NAMES = (
    "train",
    "hidden_size",
    "low_pass",
    "supervision",
    "item_vectors",
    "titles",
    "item_table",
    "companion",
    "layers",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_model_may_have_the_name_of_an_old_key(name: str) -> None:
    recipe = {"pretrain": {name: {"kind": "sasrec"}}, "finetune": {"item_vectors": name}}
    assert not list(old_keys(recipe))
    config = load_config(None, [f"pretrain={{{name}: {{kind: sasrec}}}}", f"finetune.item_vectors={name}"])
    assert list(config.pretrain) == [name]


@pytest.mark.parametrize("name", ["titles", "item_table", "average_decay", "companion"])
def test_an_item_text_may_have_the_name_of_an_old_key(name: str) -> None:
    given = [f"item_text.{name}.source=any", f"finetune.item_text={name}"]
    assert list(load_config(None, given).item_text) == [name]


def test_a_variant_may_have_the_name_of_an_old_key() -> None:
    variants = {"distill": {"distill.weights.kl": 1}, "num_layers": {"distill.student.num_layers": 2}, "full": {}}
    config = load_config(None, [f"ablate.variants={json.dumps(variants)}"])
    assert list(config.ablate.variants or ()) == list(variants)


def test_settings_of_this_version_are_no_old_keys() -> None:
    given = [
        "pretrain.hidden_size={hidden_size: 8}",
        "pretrain.sasrec.train.ema_decay=0.9",
        "distill.student={num_layers: 2, item_dropout: 0.1}",
    ]
    config = load_config(None, [*given, "distill.num_blocks=2"])
    assert list(config.pretrain) == ["hidden_size", "sasrec"]
