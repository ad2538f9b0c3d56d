"""An architecture and a loss term in a file of the user's: trained, distilled, saved, opened and exported."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import yaml
from runs import read_json
from torch import nn
from transformers import CONFIG_MAPPING

from slmrec import Recommender, Run
from slmrec.config import Config, StudentSettings
from slmrec.config.distill import OWN_TERMS
from slmrec.config.kinds import KINDS
from slmrec.config.load import load_config
from slmrec.errors import CheckpointError, ConfigError, SlmrecError
from slmrec.inference.export import export_graph
from slmrec.models import Model, ModelConfig, register
from slmrec.models.loader import load_model
from slmrec.models.sasrec import SasRec
from slmrec.pipeline.run import run_stage
from slmrec.training.terms import TERMS, CrossEntropy, register_term
from slmrec.types import Encoded, Histories

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The example, imported; what it registers is forgotten afterwards."""
    registries: tuple[dict[str, Any], ...] = (KINDS, TERMS, OWN_TERMS)
    before = [registry.copy() for registry in registries]
    spec = importlib.util.spec_from_file_location("own_model", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture(scope="module")
def output(example: ModuleType, shop_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the example."""
    folder = tmp_path_factory.mktemp("own_model") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmrec.run.write_report", lambda output: None)
        patch.setattr(sys, "argv", ["own_model.py", str(shop_file), str(folder)])
        example.main()
    return folder


def test_a_student_of_the_users_own_is_trained_and_opened(output: Path) -> None:
    recommender = Recommender.from_pretrained(output / "distill")
    assert type(recommender.model).__name__ == "Gru" and recommender.model.hidden_size == 16
    first, other = recommender.recommend([["i01", "i02"], ["i07"]], 5).to_lists()
    assert len(first) == 5 and first != other
    models = read_json(output / "evaluate" / "metrics.json")["protocols"]["full_history_excluded"]["models"]
    assert models["student"]["ndcg@10"] > 0
    assert read_json(output / "distill" / "config.json")["architectures"] == ["Gru"]


def test_a_term_of_the_users_own_teaches(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = (output / "distill" / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = (yaml.safe_load(line)["train/target_margin"] for line in (log[0], log[-1]))
    assert 0 < last < first
    settings = output / "distill" / "config.yaml"
    assert load_config(settings, []).distill.weights.model_dump()["target_margin"] == 0.1
    monkeypatch.delitem(OWN_TERMS, "target_margin")
    with pytest.raises(ConfigError, match=r"unknown key 'distill\.weights\.target_margin'"):
        load_config(settings, [])


def test_a_base_model_of_the_users_own(output: Path, shop_file: Path) -> None:
    values = yaml.safe_load((output / "prepare" / "config.yaml").read_text(encoding="utf-8"))
    values["pretrain"] = {"g": {"kind": "gru", "hidden_size": 12, "train": {"num_train_epochs": 0}}}
    values["finetune"]["ensemble"] = ["g"]
    [folder] = run_stage("pretrain", Config.model_validate(values), output, model="g")
    assert load_model(folder).hidden_size == 12


def test_an_unknown_class_is_named_and_may_be_handed_in(
    example: ModuleType, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "own_gru")
    with pytest.raises(
        CheckpointError, match=r"the architecture Gru .* is not part of slmrec; if you trust it, import"
    ):
        Recommender.from_pretrained(output / "distill")
    with pytest.raises(CheckpointError, match="holds a Ensemble, but model_class is Gru; leave model_class out"):
        Recommender.from_pretrained(output / "finetune", model_class=example.Gru)
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "own_gru", raising=False)
    recommender = Recommender.from_pretrained(output / "distill", model_class=example.Gru)
    assert isinstance(recommender.model, example.Gru)
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "own_gru", raising=False)
    assert isinstance(Run.load(output, model_class=example.Gru).models["student"].model, example.Gru)


class UnusedConfig(ModelConfig):
    model_type = "own_unused"


@pytest.mark.parametrize(
    ("model_class", "expected"),
    [
        (nn.GRU, "model_class: GRU is no class with a config_class that derives from slmrec"),
        ("Gru", "model_class: 'Gru' is no class"),
        (Model, "model_class: Model is no class with a config_class"),
        (type("Taken", (Model,), {"config_class": SasRec.config_class}), "'slmrec_sasrec' is taken by SasRecConfig"),
        (type("Unused", (Model,), {"config_class": UnusedConfig}), "holds a Gru, but model_class is Unused"),
    ],
)
def test_classes_that_open_nothing(model_class: Any, expected: str, output: Path) -> None:
    with pytest.raises(SlmrecError, match=expected):
        Recommender.from_pretrained(output / "distill", model_class=model_class)
    assert isinstance(Recommender.from_pretrained(output / "pretrain" / "sasrec").model, SasRec)


class OtherSettings(StudentSettings):
    kind: Literal["other"] = "other"


class OtherConfig(ModelConfig):
    model_type = "own_other"
    section = OtherSettings


class Other(Model):
    config_class = OtherConfig


class Taken(Model):
    config_class = type("TakenConfig", (OtherConfig,), {"model_type": "llama"})


@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        (Other, "sasrec", "kind 'sasrec' is taken by an architecture of slmrec"),
        (Other, "third", "OtherSettings: the settings of kind 'third' must derive from StudentSettings and have"),
        (Taken, "other", "model_type 'llama' is taken by LlamaConfig"),
        (SasRec, "mine", "SasRecSettings: the settings of kind 'mine' must derive"),
    ],
)
def test_a_name_that_is_taken_is_refused(model: type[Model], kind: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        register(model, kind)
    assert kind == "sasrec" or kind not in KINDS


@pytest.mark.parametrize("name", ["kl", "my term"])
def test_a_term_with_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"the name of a loss term is '{name}', expected an identifier other than"):
        register_term(type("Mine", (CrossEntropy,), {"name": name}))


def test_a_model_of_a_new_kind_gets_new_items(output: Path, tmp_path: Path) -> None:
    from slmrec.inference.items import add_items

    (tmp_path / "new.jsonl").write_text('{"item_id": "new", "like": ["i03"]}\n', encoding="utf-8")
    add_items(output / "distill", tmp_path / "new.jsonl", tmp_path / "more")
    answer = Recommender.from_pretrained(tmp_path / "more").recommend([["i01"]], 40).to_lists()[0]
    scores = dict(answer)
    assert scores["new"] == pytest.approx(scores["i03"])


def test_operations_that_torch_cannot_trace_are_refused(output: Path, tmp_path: Path) -> None:
    """`torch.export` fixes the length of the sequences that `nn.GRU` reads."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    with pytest.raises(ConfigError, match=r"torch\.export cannot trace Gru with histories of any length .*use its"):
        export_graph(output / "distill", tmp_path / "student.onnx", int8=False)


@pytest.mark.heavy
def test_a_model_of_a_new_kind_is_exported(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")

    def mean_vector(model: Any, histories: Histories, **_: object) -> Encoded:
        return Encoded(model.item_embeddings(histories.items).sum(dim=1) / histories.lengths[:, None])

    monkeypatch.setattr(type(load_model(output / "distill")), "encode", mean_vector)
    export_graph(output / "distill", tmp_path / "student.onnx", int8=False)
    assert (tmp_path / "student.onnx").is_file()
