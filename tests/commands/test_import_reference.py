"""A checkpoint of the original code becomes a folder that answers as the original does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_golden import Recorded, interval_state_dict, state_dict_of
from torch import Tensor

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.state_dicts import read_state_dict
from slmrec.errors import DataError

RELATIVE = 1e-4
VARIANTS: dict[str, Callable[[Recorded], dict[str, Tensor]]] = {
    "teacher": lambda recorded: state_dict_of(recorded, "teacher"),
    "student": lambda recorded: state_dict_of(recorded, "student"),
    "interval": interval_state_dict,
}


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Recorded:
    with np.load(shared / "golden" / "reference.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared / "golden" / "reference.json").read_text(encoding="utf-8"))
    return content


def imported(
    tmp_path: Path, recorded: Recorded, facts: dict[str, Any], weights: dict[str, Any], name: str, *more: str
) -> int:
    file = tmp_path / name
    own = {key: value.contiguous() if isinstance(value, Tensor) else value for key, value in weights.items()}
    save_file(own, file) if file.suffix == ".safetensors" else torch.save(own, file)
    (tmp_path / "C.json").write_text(json.dumps(facts["llama_config"]), encoding="utf-8")
    for ids, key in (("P.json", "io/instruct_ids"), ("R.json", "io/response_ids")):
        (tmp_path / ids).write_text(json.dumps(recorded[key].tolist()), encoding="utf-8")
    files = ["--weights", str(file), "--backbone-config", str(tmp_path / "C.json")]
    prompt = ["--prompt-ids", str(tmp_path / "P.json"), "--response-ids", str(tmp_path / "R.json")]
    shape = ["--max-history-items", str(facts["max_len"]), "--output", str(tmp_path / "model")]
    return main(["import-reference", *files, *prompt, *shape, *more])


def assert_close(ours: Tensor, theirs: np.ndarray) -> None:
    expected = torch.from_numpy(theirs)
    assert ours.shape == expected.shape
    assert float((ours - expected).norm() / expected.norm()) <= RELATIVE


@pytest.mark.parametrize("name", ["W.safetensors", "W.bin", "W.pt"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_vectors_and_logits_are_the_references(
    variant: str, name: str, recorded: Recorded, facts: dict[str, Any], tmp_path: Path
) -> None:
    assert imported(tmp_path, recorded, facts, VARIANTS[variant](recorded), name) == 0
    recommender = Recommender.from_pretrained(tmp_path / "model")
    histories = [[int(item) for item in row if item] for row in recorded["io/inputs"]]
    users = recommender.encode(histories)
    assert_close(users, recorded[f"{variant}_out/user_vector"])
    if variant != "interval":
        candidates = torch.from_numpy(np.concatenate([recorded["io/answers"], recorded["io/negatives"]], axis=1))
        logits = torch.einsum("bd,bcd->bc", users, recommender.model.item_vectors()[candidates])
        assert_close(logits.detach(), recorded[f"{variant}_out/sampled_logits"])
    found = recommender.recommend(histories, k=1000, filter_seen=False).table
    assert set(found["item_id"].to_pylist()) == set(range(1, facts["n_items"] + 1))


def test_alpha_scales_the_adapters(recorded: Recorded, facts: dict[str, Any], tmp_path: Path) -> None:
    weights = VARIANTS["student"](recorded)
    assert imported(tmp_path, recorded, facts, weights, "W.bin", "--lora-alpha", "8") == 0
    doubled = Recommender.from_pretrained(tmp_path / "model").encode([[1, 2]])
    by_hand = {key: value * 2 if ".lora_B." in key else value for key, value in weights.items()}
    (tmp_path / "model").rename(tmp_path / "earlier")
    assert imported(tmp_path, recorded, facts, by_hand, "W.bin") == 0
    torch.testing.assert_close(doubled, Recommender.from_pretrained(tmp_path / "model").encode([[1, 2]]))


class Planted:
    """Writes a file when it is unpickled by a reader that runs what it reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kept", ["score.weight", "optimizer"])
def test_a_checkpoint_that_would_run_something_is_refused(
    kept: str, recorded: Recorded, facts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "ran"
    weights = VARIANTS["student"](recorded) | {kept: Planted(mark)}
    assert imported(tmp_path, recorded, facts, weights, "W.bin") == 2
    message = capsys.readouterr().err
    assert "W.bin: only named tensors are loaded" in message and message.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "model").exists()


LAYER = "llama_model.base_model.model.layers.3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score.weight": None}, "score.weight is missing"),
        ({f"{LAYER}.mlp.up_proj.base_layer.weight": None}, "layers.3.mlp.up_proj.weight is missing (1 names"),
        ({f"{LAYER}.mlp.up_proj.lora_A.default.weight": None}, "lora_A.default.weight is missing (1 names"),
        ({"gate.weight": torch.zeros(2)}, "gate.weight is unknown"),
        ({"score.weight": torch.zeros(3, 4)}, "score.weight has shape (3, 4), expected (24, 48)"),
        ({"llama_model.base_model.model.layers.9.input_layernorm.weight": torch.zeros(48)}, "layers 0, 1, 2, 3, 9,"),
        ({"epoch": 7}, "'epoch' is a int, expected a tensor"),
    ],
)
def test_other_weights_are_refused_by_name(
    change: dict[str, Any],
    message: str,
    recorded: Recorded,
    facts: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = {key: value for key, value in (VARIANTS["student"](recorded) | change).items() if value is not None}
    assert imported(tmp_path, recorded, facts, weights, "W.pt") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_other_files_are_refused(
    recorded: Recorded, facts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(name: str, content: str | None = None, **changes: Any) -> str:
        code = imported(
            tmp_path, recorded, facts | changes, VARIANTS["student"](recorded), "W.bin", *more(name, content)
        )
        assert code == 2
        return capsys.readouterr().err

    def more(option: str, content: str | None) -> list[str]:
        if content is None:
            return []
        (tmp_path / "other.json").write_text(content, encoding="utf-8")
        return [option, str(tmp_path / "other.json")]

    assert "other.json: expected a JSON list of token ids" in said("--prompt-ids", '["a"]')
    assert "response ids: 97 is outside the checkpoint's token table (0-96)" in said("--response-ids", "[3, 97]")
    assert "other.json: is not valid JSON" in said("--backbone-config", "{")
    assert "weights are read from .safetensors, .bin, .pt, .pth; got '.json'" in said("--weights", "{}")
    assert "--max-history-items is 0" in said("", max_len=0)
    wider = json.dumps(facts["llama_config"] | {"intermediate_size": 99})
    assert "gate_proj.weight has shape (112, 48), expected (99, 48)" in said("--backbone-config", wider)
    (tmp_path / "W.bin").write_bytes(b"no checkpoint")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").touch()
    assert "model exists; choose another --output" in said("")


def test_a_damaged_archive_of_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(3)}, path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02")] = 0  # the central directory
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"weights\.pt: only named tensors are loaded"):
        read_state_dict(path)
