"""Fused layers: which decoders they run."""

from typing import Any

import pytest
import torch

from slmrec.models import fused_llama
from slmrec.models.backbone import random_decoder

LLAMA = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 11,
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "norms of queries": {"model_type": "qwen3", "head_dim": 8},
    "another architecture": {"model_type": "mistral"},
    "biases": {"attention_bias": True},
    "positions that depend on the call": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0},
        "max_position_embeddings": 64,
    },
}


class QuantizedLinear(torch.nn.Linear):
    """Stands in for a quantised layer, which is of a class of its own."""


def test_a_plain_llama_can_be_fused() -> None:
    assert fused_llama.can_fuse(random_decoder(LLAMA))


@pytest.mark.parametrize("settings", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_other_decoders_cannot_be_fused(settings: dict[str, Any]) -> None:
    assert not fused_llama.can_fuse(random_decoder(LLAMA | settings))


def test_other_layers_and_precisions_cannot_be_fused() -> None:
    decoder = random_decoder(LLAMA)
    assert not fused_llama.can_fuse(decoder.bfloat16())
    assert fused_llama.can_fuse(decoder.float())
    decoder.layers[1].mlp.up_proj = QuantizedLinear(24, 40, bias=False)
    assert not fused_llama.can_fuse(decoder)


def test_large_decoders_cannot_be_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_llama, "MAX_WEIGHTS", 100)
    assert not fused_llama.can_fuse(random_decoder(LLAMA))
