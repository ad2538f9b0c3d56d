"""The efficiency table on tiny models, with given times."""

import json
from pathlib import Path

import bench
import efficiency
import numpy as np
import pytest

TINY = bench.LLAMA | {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}


def decoder(num_layers: int) -> bench.DecoderRecommender:
    return bench._model(bench.random_decoder(TINY | {"num_hidden_layers": num_layers}), num_layers, bench.LORA, 30)


def test_hours_are_those_of_all_users_at_the_best_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def paired(steps: dict[tuple[str, int], bench.Step], rounds: int) -> dict[tuple[str, int], float]:
        for step in steps.values():
            step()
        return {side: {256: 2.0, 4: 9.0, 2: 8.0}[side[1]] for side in steps}

    monkeypatch.setattr(bench, "NUM_ITEMS", 50)
    monkeypatch.setattr(bench, "PROMPT", (5, 2))
    monkeypatch.setattr(bench, "lengths_of", lambda data: np.tile([3, 7], 3600))
    monkeypatch.setattr(bench, "paired", paired)
    monkeypatch.setattr(efficiency, "growth_mb", lambda step: 512.0)
    sasrec, _, _, student, small = efficiency.ROWS
    rows = (sasrec, student._replace(build=lambda: decoder(2), padded=(4, 2)), small)
    monkeypatch.setattr(efficiency, "ROWS", tuple(row._replace(num_users=8) for row in rows))
    entries = efficiency.main(None, tmp_path / "out.json", rounds=1)
    assert [(entry["model"], entry["engine"], entry["train_batch"]) for entry in entries] == [
        ("SASRec, width 128", "ours", 256),
        ("student, 4 layers", "ours", 256),
        ("student, 4 layers", "padded, sorted", 2),
        ("student of SASRec's size", "ours", 256),
    ]
    assert [entry["epoch_h"] for entry in entries] == [2 * 7200 / 8 / 3600] * 2 + [8 * 7200 / 8 / 3600, 0.5]
    adapted = entries[1]
    kept = (4 * adapted["parameters"] + 8 * adapted["trained"]) / 2**30
    assert adapted["trained"] < adapted["parameters"] and adapted["train_gb"] == pytest.approx(0.5 + kept)
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["rows"] == entries
    lines = (tmp_path / "out.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + 4 and lines[4].startswith(
        "| student, 4 layers | padded, sorted | 2 / 2 | 2.0000 | 2.00000"
    )
