"""The benchmark of the GPU runs through on a CPU, and tells where the rule of `engine: auto` is wrong."""

import json
from pathlib import Path
from typing import Any

import bench
import gpu
import pytest
import torch


def test_the_script_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "NUM_ITEMS", 50)
    monkeypatch.setattr(bench, "PROMPT", (5, 2))
    output = tmp_path / "gpu.json"
    sizes = ["--batch-size", "8", "--rounds", "1", "--users", "40"]
    gpu.main(["--device", "cpu", "--shapes", "tiny", *sizes, "--output", str(output)])
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["tiny"]["auto"] == "flex" and report["torch"] == torch.__version__
    speeds = [f"{kind}_{side}_users_per_s" for kind in ("train", "infer") for side in ("flex", "groups", "padded")]
    assert all(report["tiny"][name] > 0 for name in speeds)
    assert report["sasrec"]["epoch_s_batches_ahead"] > 0 and report["sasrec"]["epoch_s_batches_when_needed"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="no GPU on this machine"):
        gpu.main([])


def test_a_rule_that_takes_the_slower_side_is_an_error() -> None:
    speeds: dict[str, Any] = {"train_flex_users_per_s": 50, "train_padded_users_per_s": 80}
    speeds |= {"infer_flex_users_per_s": 50, "infer_padded_users_per_s": 54}
    gpu.check({"small": speeds | {"auto": "padded"}}, ["small"])
    with pytest.raises(SystemExit, match="slower side: small, train: flex 50 users/s, padded 80"):
        gpu.check({"small": speeds | {"auto": "flex"}}, ["small"])
