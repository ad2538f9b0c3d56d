"""The benchmark of larger backbones, on tiny ones."""

import json
import math
from pathlib import Path

import backbones
import bench
import pytest

TINY = bench.LLAMA | {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24}
TINY |= {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2}


def test_a_dry_run_and_a_step_of_each_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "ARCHITECTURES", {"tiny": TINY})
    monkeypatch.setattr(backbones, "STEPS", (("tiny", 2),))
    monkeypatch.setattr(backbones, "DRY", (("tiny", 1),))
    monkeypatch.setattr(bench, "NUM_ITEMS", 50)
    stepped, dry = backbones.main(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == [stepped, dry]
    layer, items = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16, 51 * bench.ITEM_DIM
    adapters, heads = 3 * bench.LORA["r"] * (16 + 24), 2 * 16 * bench.ITEM_DIM + 16
    assert dry["parameters"] == layer + 16 + adapters + heads + items
    assert dry["whole_parameters"] == 3 * layer + 16 + 50 * 16
    assert stepped["trained_parameters"] == 2 * adapters + heads
    assert math.isfinite(stepped["loss"])
    assert min(stepped["step_s"], stepped["peak_mb"], stepped["estimated_mb"], dry["estimated_mb"]) > 0
    assert "step_s" not in dry
