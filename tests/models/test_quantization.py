"""A teacher whose frozen layers are kept in 4 or 8 bits: trained, saved, loaded, distilled from."""

import importlib.util

import pytest
import torch
from encoding import encode
from transformers import LlamaConfig, LlamaModel

from slmrec.config import DecoderSettings
from slmrec.errors import ConfigError
from slmrec.models import backbone
from slmrec.models.backbone import load_backbone
from slmrec.models.build import build_decoder, student_from
from slmrec.models.loader import load_model, save_model
from slmrec.types import Batch, Histories

LORA = {"r": 2, "lora_alpha": 2, "lora_dropout": 0.0, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
NF4, INT8 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}
BATCH = Batch(Histories(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])), torch.tensor([1, 1]), False)
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="pip install 'slmrec[quantization]'"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=11, num_hidden_layers=3, **sizes)).save_pretrained(folder)
    return str(folder)


def teacher_of(source, quantization):
    torch.manual_seed(1)
    backbone = load_backbone(source, quantization=quantization)
    settings = DecoderSettings(
        backbone=source, num_layers=2, lora=LORA, max_history_items=5, quantization_config=quantization
    )
    model = build_decoder(settings, backbone, torch.randn(8, 4), None, section="finetune", train_items=False).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def users_of(model):
    with torch.no_grad():
        return encode(model, BATCH).users


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "kind", "close"), [(NF4, torch.uint8, 2e-3), (INT8, torch.int8, 0.02)])
def test_the_layers_are_kept_in_few_bits_and_the_student_in_all(source, quantization, kind, close):
    teacher = teacher_of(source, quantization)
    assert teacher.decoder.layers[0].self_attn.q_proj.weight.dtype == kind
    student = student_from(teacher, (0, 1), item_dropout=0.0, train_items=False).eval()
    assert all(value.dtype == torch.float32 for value in student.state_dict().values())
    expected = users_of(teacher)
    # The quantised products also round what goes in, which the student does not.
    torch.testing.assert_close(users_of(student), expected, rtol=close, atol=close)
    assert teacher.num_parameters() == student.num_parameters() + 2 * 3 * 2 * (64 + 128)  # and the adapters
    exact = users_of(teacher_of(source, None))
    assert 1e-4 < (expected - exact).abs().max() < 0.3


@needs_bitsandbytes
def test_only_adapters_and_heads_are_trained_and_saved(source, tmp_path):
    teacher = teacher_of(source, NF4)
    encode(teacher, BATCH).users.sum().backward()
    learning = [name for name, value in teacher.named_parameters() if value.grad is not None and value.grad.any()]
    assert any("lora_A" in name for name in learning)
    assert all("lora_" in name or name.startswith(("input_proj", "score")) for name in learning)
    save_model(teacher, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.decoder.layers[1].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    assert torch.equal(users_of(loaded), users_of(teacher))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_typ": "nf4"}, "bnb_4bit_quant_typ is no setting"),
        ({"bnb_4bit_quant_type": "nf4"}, "neither load_in_4bit nor load_in_8bit is true"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float31"}, "float31"),
    ],
)
def test_settings_that_do_nothing_are_refused(source, settings, message):
    with pytest.raises(ConfigError, match=rf"quantization_config is .*{message}.*for example"):
        load_backbone(source, quantization=settings)


def test_the_missing_package_is_named(source, monkeypatch):
    monkeypatch.setattr(backbone.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'slmrec\[quantization\]'"):
        load_backbone(source, quantization=NF4)
