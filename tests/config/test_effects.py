"""Settings that have no effect without others are refused in one line that names setting, value and need."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from slmrec.commands.main import main
from slmrec.config import Config
from slmrec.config.effects import REQUIREMENTS, Requirement, sections_at
from slmrec.config.load import load_config
from slmrec.errors import ConfigError

Values = dict[str, Any]
LLAMA: Values = {"model_type": "llama", "hidden_size": 8}
LLM: Values = {"item_text": {"llm": {"source": "any"}}}
KL_ONLY: Values = {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0, "kl": 1}
SASREC_STUDENT: Values = {"distill": {"student": {"kind": "sasrec"}, "weights": KL_ONLY}}
SAMPLED: Values = {"train": {"loss": "sampled_softmax", "num_sampled": 8}}
NO_DECODER: Values = {"finetune": {"backbone": None, "ensemble": ["sasrec"]}, **SASREC_STUDENT, **LLM}
DECODER: Values = {"finetune": {"item_vectors": None, "item_text": "llm"}, "distill": {"weights": KL_ONLY}, **LLM}
PRETRAINED: Values = {"kind": "decoder", "backbone": "any", "backbone_config": None}


def text_model(**settings: Any) -> Values:
    return {"pretrain": {"text": {"kind": "decoder", **settings}}, "finetune": {"item_vectors": None}}


def sasrec(**settings: Any) -> Values:
    return {"pretrain": {"sasrec": settings}} | (LLM if "item_text" in settings else {})


def student(**settings: Any) -> Values:
    student = {"kind": "sasrec", "item_text": "llm", **settings}
    return {
        "distill": {"student": student, "weights": KL_ONLY},
        "item_text": {"llm": {"source": "any", "whitening": "pca"}},
    }


def item_text(**settings: Any) -> Values:
    """Return settings with a text that the teacher reads, of the source `words` unless another one is given."""
    return {"item_text": {"llm": settings}, "finetune": {"item_text": "llm"}}


CASES: dict[tuple[str, str], tuple[Values, Values]] = {
    ("finetune", "a backbone"): (NO_DECODER, DECODER),
    ("finetune.train", "finetune.backbone"): (NO_DECODER, DECODER),
    ("pretrain.*", "a backbone with a tokenizer"): (text_model(), text_model(**PRETRAINED)),
    ("finetune", "a backbone with a tokenizer"): (
        {"finetune": {"backbone": "random", "backbone_config": LLAMA, "lora": None}},
        {},
    ),
    ("pretrain.*", "layers: null"): (text_model(layers=[0, 1]), text_model()),
    ("finetune", "layers: null"): ({"finetune": {"layers": list(range(8))}}, {}),
    ("pretrain.*", "item_text"): (text_model(), text_model(item_text="llm") | LLM),
    ("finetune", "item_text"): ({}, {"finetune": {"item_text": "llm"}} | LLM),
    ("pretrain.*", "lora"): (text_model(**PRETRAINED), text_model(**PRETRAINED, lora={})),
    **{
        ("item_text.*", needs): (item_text(**without), item_text(**settings))
        for needs, without, settings in (
            ("a source that reads texts", {"source": "vectors.npy"}, {}),
            ("a source that is a decoder", {"source": "all-minilm-l6-v2"}, {"source": "any"}),
            ("a source that is a language model", {}, {"source": "any", "random_weights": True}),
            ("random_weights or shuffled", {}, {"shuffled": True}),
            ("source: words", {"source": "any"}, {}),
            ("whitening", {"whitening": "none"}, {"whitening": "pca"}),
        )
    },
    ("finetune", "lora"): ({"finetune": {"lora": None}}, {}),
    ("pretrain.*", "item_side: text or both"): (sasrec(), sasrec(item_text="llm", item_side="text")),
    ("pretrain.*", "item_side: both"): (sasrec(), sasrec(item_text="llm", item_side="both")),
    ("pretrain.*", "scores: cosine"): (sasrec(), sasrec(scores="cosine")),
    ("distill.student", "item_side: text or both"): (SASREC_STUDENT, student(item_side="text")),
    ("distill.student", "item_side: both"): (SASREC_STUDENT, student(item_side="both")),
    ("distill.student", "scores: cosine"): (SASREC_STUDENT, student(scores="cosine")),
    ("pretrain.*", "times"): ({"prepare": {"order": "file"}}, {}),
    ("distill.student", "times"): ({"prepare": {"format": "sequences"}, **SASREC_STUDENT}, SASREC_STUDENT),
    ("finetune", "finetune.weights.multiple above 0"): ({}, {"finetune": {"weights": {"multiple": 1}}}),
    ("finetune", "item_vectors: null"): ({}, {"finetune": {"item_vectors": None}}),
    ("pretrain.*.train", "loss: ce"): ({"pretrain": {"sasrec": SAMPLED}}, {}),
    ("finetune.train", "loss: ce"): ({"finetune": SAMPLED}, {}),
    ("distill.train", "loss: ce"): ({"distill": SAMPLED}, {}),
    ("distill.train", "a term that uses cross-entropy"): (
        {"distill": {"weights": {"ce": 0, "multiple": 0}}},
        {"distill": {"weights": {"ce": 0, "multiple": 0}, "mode": "online"}},
    ),
    ("distill.train", "distill.student.kind: decoder"): (SASREC_STUDENT, {}),
    ("distill", "outputs of the teacher that are computed before"): ({"distill": {"mode": "online"}}, {}),
    ("distill", "a term that reads hidden states"): ({"distill": {"weights": KL_ONLY}}, {}),
    ("distill", "distill.weights.kl above 0"): ({}, {"distill": {"weights": {"kl": 0.5}}}),
    ("distill", "distill.weights.kl or stratified_kl or block_kl above 0"): (
        {},
        {"distill": {"weights": {"stratified_kl": 0.5}}},
    ),
    ("distill", "distill.weights.lists above 0"): ({}, {"distill": {"weights": {"lists": 0.5}, "lists": "lists.csv"}}),
    ("distill", "distill.weights.stratified_kl above 0"): ({}, {"distill": {"weights": {"stratified_kl": 0.5}}}),
    ("evaluate", "a sampled protocol"): (
        {"evaluate": {"protocols": ["full_history_excluded"]}},
        {"evaluate": {"protocols": ["full_history_excluded", "sampled_20"]}},
    ),
    ("prepare", "a table"): ({"prepare": {"format": "sequences"}}, {"prepare": {"format": "csv", "min_rating": 1}}),
    ("prepare", "prepare.split: temporal"): ({}, {"prepare": {"split": "temporal"}}),
    ("prepare", "prepare.min_rating"): ({}, {"prepare": {"min_rating": 1}}),
    ("prepare", "prepare.order: time"): ({"prepare": {"order": "file"}}, {}),
    ("prepare", "prepare.engine: duckdb"): ({"prepare": {"engine": "spark"}}, {}),
    ("prepare", "prepare.engine: the URL"): ({}, {"prepare": {"engine": "postgres://ann@host/shop"}}),
}
"""Settings without and with the condition of each requirement, by its section and the beginning of its words."""

VALUES: Values = {
    "columns": ["user_id", "item_id"],
    "engine": "padded",
    "engine_password_file": "password",
    "item_embeddings": "train",
    "item_text": "llm",
    "item_text_side": "input",
    "layers": [0, 1],
    "list_weights": {"position": 0.5},
    "lists": "other.csv",
    "loss": "sampled_softmax",
    "lora": {"r": 2},
    "lr_scheduler_type": "linear",
    "memory_limit": "1GB",
    "num_blocks": 2,
    "num_negatives": 20,
    "positions": "right_aligned",
    "prompt": {"prefix": "Items: "},
    "quantization_config": {"load_in_8bit": True},
    "teacher_device_map": "auto",
    "template": "{brand}",
    "time_gaps": {"num_buckets": 7, "bucket_ratio": 1.35},
    "unseen_items": "left_out",
    "weights": {"multiple": 1.0},
}
"""Values other than the default, of settings for which `other_than` has none."""
INSEPARABLE: dict[str, Values] = {"loss": {"num_sampled": 8}, "num_sampled": {"loss": "sampled_softmax"}}


def other_than(default: Any, name: str) -> Any:
    if name in VALUES:
        return VALUES[name]
    if isinstance(default, bool) or default == "auto":
        return default is False
    if name.endswith("_col"):
        return "some_column"
    return 0.25 if isinstance(default, float) else 7


def merged(values: Values, changes: Values) -> Values:
    """Return nested settings with some of them replaced."""
    result = {**values}
    for key, value in changes.items():
        both_nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both_nested else value
    return result


def case_of(requirement: Requirement) -> tuple[Values, Values]:
    """Return the case whose words are the longest beginning of those of the requirement."""
    fitting = [key for key in CASES if key[0] == requirement.section and requirement.needs.startswith(key[1])]
    return CASES[max(fitting, key=lambda key: len(key[1]))]


EVERY = [
    pytest.param(requirement, name, id=f"{requirement.section}.{name} needs {requirement.needs[:24]}")
    for requirement in REQUIREMENTS
    for name in requirement.settings
]


@pytest.mark.parametrize(("requirement", "name"), EVERY)
def test_a_setting_is_refused_where_it_has_no_effect(
    requirement: Requirement, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without, with_condition = case_of(requirement)
    recipe = tmp_path / "recipe.yaml"

    def written(values: Values) -> tuple[str, Any, Any]:
        """Write settings with one of this requirement, and return its path, its value and its default."""
        config = Config.model_validate(values)
        where, section = next(
            (where, section)
            for where, section in sections_at(config, requirement.section)
            if name in type(section).model_fields
        )
        default = getattr(section, name)
        value = other_than(default, name)
        changes: Values = {name: value, **INSEPARABLE.get(name, {})}
        for part in reversed(where.split(".")):
            changes = {part: changes}
        recipe.write_text(yaml.safe_dump(merged(values, changes)), encoding="utf-8")
        return where, value, default

    is_unread = "item_text" in without and "item_text" not in without["finetune"]
    plain = {key: value for key, value in without.items() if key != "item_text" or not is_unread}
    where, value, default = written(plain)
    assert value != default
    if is_unread:
        recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | LLM), encoding="utf-8")
    assert main(["run", "--config", str(recipe), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    named = next(key for key in (name, *INSEPARABLE.get(name, {})) if f"{where}.{key} is " in error)
    shown = INSEPARABLE.get(name, {}).get(named, value)
    assert f"{where}.{named} is {shown}"[:60] in error or named in (
        "lora",
        "prompt",
        "layers",
        "columns",
        "list_weights",
    )
    assert f"it needs {requirement.needs}" in error and not (tmp_path / "run").exists()

    written(with_condition)
    load_config(recipe, [])


def test_every_case_belongs_to_a_requirement() -> None:
    used = [case_of(requirement) for requirement in REQUIREMENTS]
    assert all(any(case is one for one in used) for case in CASES.values())


def test_an_item_text_that_no_model_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"item_text\.llm has no effect: no model names it"):
        load_config(None, ["item_text.llm.source=any"])


def test_the_teacher_of_another_run_needs_no_decoder_here() -> None:
    given = ["distill.teacher=FOLDER", "distill.student.kind=sasrec", "distill.weights={ce: 0, cosine: 0, norm: 0, "]
    given[-1] += "multiple: 0, kl: 1}"
    assert not load_config(None, given).trains_teacher
