"""Model folders and backbones of strangers: no code of theirs runs, no hub is asked, no memory is taken for claims."""

import json
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artefacts import LLAMA, adapted_student, decoder, ensemble, sasrec
from safetensors.torch import load_file, save_file

from slmrec.commands.main import main
from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.backbone import load_backbone, load_decoder, random_decoder, read_architecture
from slmrec.models.baselines import Cooccurrence, CooccurrenceConfig
from slmrec.models.loader import load_model, save_model
from slmrec.models.model import Model

MODELS: dict[str, Callable[[], Model]] = {
    "sasrec": sasrec,
    "decoder": decoder,
    "adapters": lambda: decoder(lora=True),
    "adapted student": adapted_student,
    "ensemble": ensemble,
}
CODE = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel", "AutoTokenizer": ["evil.Evil", None]}
EVIL = "from pathlib import Path\nPath({!r}).touch()\n"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asks for an address"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks the user"))


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model; the backbone of adapters, `tiny`, lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    random_decoder(LLAMA).save_pretrained("tiny")
    (tmp_path / "model").mkdir()
    save_model(MODELS[request.param](), tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def innermost(config: dict[str, Any]) -> dict[str, Any]:
    """The most deeply nested configuration of a model."""
    below = [value for value in config.values() if isinstance(value, dict) and value]
    return innermost(below[0]) if below else config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"auto_map": CODE}, "auto_map asks to run code of its author, which is never run"),
        ({"trust_remote_code": True}, "trust_remote_code asks to run code"),
        ({"attn_implementation": "stranger/kernel"}, r"attn_implementation is 'stranger/kernel', which asks to downl"),
        ({"_attn_implementation": "a/b@v1:f"}, r"_attn_implementation is .* asks to download code"),
        ({"use_kernels": True}, r"use_kernels is True, which asks to download code"),
    ],
)
@pytest.mark.parametrize("where", [lambda config: config, innermost], ids=["top", "nested"])
def test_a_folder_that_brings_code_is_refused(
    setting: dict[str, Any], message: str, where: Callable[[dict[str, Any]], Any], folder: Path
) -> None:
    marker = folder.parent / "ran"
    (folder / "evil.py").write_text(EVIL.format(str(marker)), encoding="utf-8")
    change(folder / "config.json", lambda config: where(config).update(setting))
    with pytest.raises(CheckpointError, match=rf"config\.json: makes no model \({message}") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and not marker.exists()
    assert main(["recommend", "--model", str(folder), "--history", "1"]) == 2


@pytest.mark.parametrize("folder", ["adapters"], indirect=True)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_backbone_that_brings_code_is_refused(file: str, folder: Path) -> None:
    marker, backbone = folder.parent / "ran", folder.parent / "tiny"
    (backbone / "evil.py").write_text(EVIL.format(str(marker)), encoding="utf-8")
    (backbone / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    change(backbone / file, lambda config: config.update(auto_map=CODE))
    with pytest.raises(CheckpointError, match="auto_map asks to run code of its author, which is never run"):
        load_model(folder)
    change(backbone / "config.json", lambda config: config.update(auto_map=CODE, model_type="evil"))
    for opening in (load_decoder, load_backbone, read_architecture):
        with pytest.raises(CheckpointError, match=r"backbone is .*tiny', which cannot be loaded \(auto_map asks"):
            opening(str(backbone))  # type: ignore[operator]
    assert not marker.exists()


def test_a_named_backbone_with_an_architecture_of_transformers_is_opened_without_its_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random_decoder(LLAMA).save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL.format(str(tmp_path / "ran")), encoding="utf-8")
    change(tmp_path / "config.json", lambda config: config.update(auto_map=CODE))
    assert type(load_decoder(str(tmp_path))).__module__.startswith("transformers.")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", ["adapters"], indirect=True)
@pytest.mark.parametrize("name", ["stranger/llm", "https://example.org/llm", "no-such-folder"])
def test_a_hub_is_not_asked_for_what_a_folder_names(name: str, folder: Path) -> None:
    change(folder / "config.json", lambda config: config.update(backbone=name))
    with pytest.raises(CheckpointError, match=rf"'{name}' is neither a folder nor in the cache .*nothing: if"):
        load_model(folder)


@pytest.mark.parametrize("folder", ["adapters"], indirect=True)
def test_a_backbone_that_is_an_adapter_of_another_model_is_refused(folder: Path) -> None:
    adapter = folder.parent / "tiny" / "adapter_config.json"
    adapter.write_text(json.dumps({"base_model_name_or_path": "stranger/llm", "peft_type": "LORA"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds adapters of another model; merge them into that model first"):
        load_model(folder)


@pytest.mark.parametrize("folder", ["adapters"], indirect=True)
def test_settings_of_adapters_are_those_of_slmrec(folder: Path) -> None:
    change(folder / "config.json", lambda config: config["lora"].update(megatron_core="evil", megatron_config={}))
    with pytest.raises(CheckpointError, match=r"makes no model .*megatron_core Extra inputs are not permitted"):
        load_model(folder)


@pytest.mark.parametrize("folder", ["adapters"], indirect=True)
def test_a_backbone_without_some_of_its_weights_is_refused(folder: Path) -> None:
    path = folder.parent / "tiny" / "model.safetensors"
    weights = load_file(path)
    del weights["layers.0.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'tiny', which lacks weights, the first layers\.0\.mlp\.up_proj"):
        load_model(folder)


HUGE: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "items": ("sasrec", lambda config: config.update(num_items=10**12)),
    "items of a decoder": ("decoder", lambda config: config.update(num_items=10**15)),
    "more items than fit a number": ("sasrec", lambda config: config.update(num_items=10**30)),
    "history": ("sasrec", lambda config: config.update(max_history_items=10**11)),
    "history with a filter": ("sasrec", lambda config: config.update(max_history_items=10**6, low_pass={})),
    "history of a decoder": ("decoder", lambda config: config.update(max_history_items=10**11)),
    "layers": ("sasrec", lambda config: config.update(num_hidden_layers=10**9)),
    "layers as a float": ("sasrec", lambda config: config.update(num_hidden_layers=1e9)),
    "layers of a decoder": ("decoder", lambda config: config["decoder"].update(num_hidden_layers=10**9)),
    "layers that are listed": (
        "decoder",
        lambda config: config["decoder"].update(model_type="qwen2", num_hidden_layers=10**9),
    ),
    "layers of an ensemble": ("ensemble", lambda config: innermost(config).update(num_hidden_layers=10**9)),
    "width": ("decoder", lambda config: config["decoder"].update(hidden_size=10**9)),
    "prefix": ("decoder", lambda config: config.update(num_prefix_tokens=10**12)),
    "heads": ("decoder", lambda config: config["decoder"].update(head_dim=10**12)),
    "adapters": ("adapters", lambda config: config["lora"].update(r=10**10)),
    "an infinite number": ("sasrec", lambda config: config.update(dropout=1e999)),
}


@pytest.mark.parametrize(("folder", "case"), [(kind, case) for case, (kind, _) in HUGE.items()], indirect=["folder"])
def test_sizes_are_compared_before_memory_is_taken(folder: Path, case: str) -> None:
    load_model(folder)  # opens, and what is imported the first time counts for nothing
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    change(folder / "config.json", HUGE[case][1])
    with pytest.raises(CheckpointError, match=r"makes no model|weights missing, unknown or of another shape") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_header_with_a_million_tensors_is_not_read(tmp_path: Path) -> None:
    save_model(sasrec(), tmp_path)
    header = json.dumps(
        {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(10**5)}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cut off .*its header has [\d,]+ bytes, at most"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", ["model.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize("folder", ["adapters"], indirect=True)
def test_weights_that_are_not_finite_are_refused(value: float, file: str, folder: Path) -> None:
    weights = load_file(folder / file)
    name = max(weights)
    weights[name].view(-1)[0] = value
    save_file(weights, folder / file)
    with pytest.raises(CheckpointError, match=rf"{file}: the weights {name} contain NaN or infinity"):
        load_model(folder)


def test_other_kinds_of_numbers_are_refused(tmp_path: Path) -> None:
    save_model(sasrec(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    halved = {name: value.bfloat16() for name, value in weights.items()}
    save_file(halved, tmp_path / "model.safetensors")
    load_model(tmp_path)
    save_file(halved | {"norm.weight": halved["norm.weight"].long()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"of another shape: norm\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("offsets", [0, 9, 1, 2], "offsets are not those"),
        ("neighbours", [1, 7], "neighbours has an item outside 1 to 2"),
    ],
)
def test_indices_that_lead_astray_are_refused(name: str, values: list[int], message: str, tmp_path: Path) -> None:
    model = Cooccurrence(CooccurrenceConfig(num_items=2, num_pairs=2))
    model.offsets.copy_(torch.tensor([0, 0, 1, 2]))
    model.neighbours.copy_(torch.tensor([2, 1]))
    save_model(model, tmp_path)
    load_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {name: torch.tensor(values, dtype=weights[name].dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_random_decoder_is_a_causal_decoder() -> None:
    with pytest.raises(ConfigError, match=r"makes no decoder \('detr' is no causal decoder of transformers\)"):
        random_decoder({"model_type": "detr", "backbone": "stranger/model", "use_pretrained_backbone": True})
