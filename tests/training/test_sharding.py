"""A teacher whose layers lie on several devices computes what it computes on one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import tiny_decoder

from slmrec.errors import ConfigError
from slmrec.inference.freeze import freeze
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training.sharding import DeviceMap, spread
from slmrec.types import Encoded, Histories

HISTORIES = Histories(torch.tensor([[3, 7, 0], [5, 0, 0], [1, 2, 9]]), torch.tensor([2, 1, 3]))
ON_DISK: DeviceMap = {"layers.0": "cpu", "layers.1": "disk", "norm": "cpu", "rotary_emb": "cpu", "embed_tokens": "cpu"}


def a_teacher() -> DecoderRecommender:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    architecture = {"model_type": "llama", "vocab_size": 8, "num_hidden_layers": 2, **sizes}
    return tiny_decoder(architecture, 10, prompt=(4, 2), max_history_items=5)


def outputs(model: DecoderRecommender) -> Encoded:
    return freeze(model, fused=False).encode(HISTORIES, num_blocks=2)


@pytest.mark.parametrize("device_map", [None, ON_DISK], ids=["by free memory", "a layer on disk"])
def test_outputs_are_those_of_one_device(device_map: DeviceMap | None, tmp_path: Path) -> None:
    teacher, expected = a_teacher(), outputs(a_teacher())
    spread(teacher, device_map, tmp_path)
    assert device_map is None or teacher.decoder.layers[1].mlp.up_proj.weight.is_meta
    found = outputs(teacher)
    for own, other in zip((found.users, *found.hidden_states), (expected.users, *expected.hidden_states), strict=True):
        assert torch.allclose(own, other, atol=1e-6)


def test_what_cannot_be_spread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="teacher_device_map is auto, but the teacher has no decoder"):
        spread(SasRec(SasRecConfig(num_items=8, hidden_size=8)))
    teacher = a_teacher()
    monkeypatch.setattr("slmrec.processes.num_processes", lambda: 2)
    with pytest.raises(ConfigError, match="but 2 processes share the GPUs"):
        spread(teacher)
    teacher.decoder.is_quantized = True
    with pytest.raises(ConfigError, match="the layers of the teacher are quantised"):
        spread(teacher)
