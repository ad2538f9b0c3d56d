"""A new architecture is one module and one row of `KINDS`: trained, distilled, saved, opened and exported."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmrec import Recommender
from slmrec.config import Config
from slmrec.config.kinds import KINDS, Kind
from slmrec.errors import ConfigError
from slmrec.inference.export import export_graph
from slmrec.models.loader import load_model
from slmrec.pipeline.run import run_steps
from slmrec.types import Encoded, Histories

MODULE = '''
"""A recurrent network over item vectors."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from slmrec.config.base_models import StudentSettings
from slmrec.models.model import Model, ModelConfig, register
from slmrec.types import Encoded


class GruSettings(StudentSettings):
    """Architecture of a recurrent network."""

    kind: Literal["gru"] = "gru"
    hidden_size: int = Field(16, ge=1)
    max_history_items: int = Field(50, ge=1)


class GruConfig(ModelConfig):
    """Architecture of a `Gru`."""

    model_type = "test_gru"
    section = GruSettings


class Gru(Model):
    """User vectors from the last hidden state of a recurrent network."""

    config_class = GruConfig

    def __init__(self, config):
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.post_init()

    def item_vectors(self):
        return self.item_embeddings.weight

    def encode(self, histories, *, every_position=False, num_blocks=0):
        states, _ = self.gru(self.item_embeddings(histories.items))
        positions = torch.arange(states.shape[1], device=states.device)
        if every_position:
            return Encoded(states[positions < histories.lengths[:, None]])
        last = (histories.lengths - 1)[:, None, None].expand(-1, 1, states.shape[2])
        return Encoded(states.gather(1, last)[:, 0])


def build(settings, parts):
    return Gru(GruConfig.of(settings, parts.num_items))


register(Gru)
'''
TRAINING = {"learning_rate": 5e-3, "num_train_epochs": 1, "per_device_train_batch_size": 32, "warmup_steps": 0}


@pytest.fixture(scope="module")
def output(shop_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose base model is of the new kind, which teaches a student of the new kind."""
    folder = tmp_path_factory.mktemp("new_architecture")
    (folder / "slmrec_test_gru.py").write_text(MODULE, encoding="utf-8")
    settings = {
        "prepare": {"input": str(shop_file)},
        "pretrain": {"g": {"kind": "gru", "hidden_size": 12, "max_history_items": 20, "train": TRAINING}},
        "finetune": {"backbone": None, "item_vectors": None, "ensemble": ["g"], "max_history_items": 20},
        "distill": {
            "student": {"kind": "gru", "hidden_size": 8, "max_history_items": 20},
            "weights": {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0, "kl": 1},
            "train": TRAINING,
        },
        "evaluate": {"protocols": ["full_history_excluded"], "timing_users": 20},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setitem(KINDS, "gru", Kind("slmrec_test_gru:build", "slmrec_test_gru:GruSettings"))
        config = Config.model_validate(yaml.safe_load(yaml.safe_dump(settings)))
        run_steps(config, folder / "run")
        yield folder / "run"
    sys.modules.pop("slmrec_test_gru")


@pytest.mark.parametrize(("name", "width"), [("pretrain/g", 12), ("distill", 8)])
def test_a_model_of_a_new_kind_is_trained_and_opened(name: str, width: int, output: Path) -> None:
    recommender = Recommender.from_pretrained(output / name)
    assert type(recommender.model).__name__ == "Gru" and recommender.model.hidden_size == width
    first, other = recommender.recommend([["i01", "i02"], ["i07"]], 5).to_lists()
    assert len(first) == 5 and first != other


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
