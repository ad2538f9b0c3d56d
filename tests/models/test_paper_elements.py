"""Elements of the paper and of its code: each acts on gradients, parameters or outputs, as docs/paper.md lists."""

from pathlib import Path
from typing import Any

import pytest
import torch
from artefacts import LLAMA, LORA, adapted_student
from encoding import encode
from transformers import AutoModel

from slmrec import Recommender
from slmrec.config import Config, DecoderSettings, DecoderStudent, LoraSettings
from slmrec.config.load import load_config
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError
from slmrec.inference.freeze import freeze
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder, build_decoder_student, open_backbone
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import save_recommender
from slmrec.models.loader import load_model, save_model
from slmrec.models.model import ModelParts
from slmrec.training.losses import NextItemLoss
from slmrec.types import Batch, Histories

NUM_ITEMS = 40
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
}
BATCH = Batch(Histories(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])), torch.tensor([5, 6]), False)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a decoder of four layers, which stands in for a pretrained one."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    random_decoder(LLAMA | {"num_hidden_layers": 4}).save_pretrained(folder)
    return str(folder)


def teacher_of(backbone: str, **settings: Any) -> DecoderRecommender:
    """Return a teacher whose adapters, if it has any, change its outputs."""
    own = DecoderSettings(backbone=backbone, prompt="none", **{"num_layers": 4, "lora": LORA, **settings})
    torch.manual_seed(1)
    vectors = torch.cat([torch.zeros(1, 8), torch.randn(NUM_ITEMS, 8)])
    model = build_decoder(own, open_backbone(own, "finetune"), vectors, None, section="finetune", train_items=False)
    return with_random_adapters(model)


def with_random_adapters(model: DecoderRecommender) -> DecoderRecommender:
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def student_of(teacher: DecoderRecommender, **settings: Any) -> DecoderRecommender:
    own = DecoderStudent(**{"num_layers": 2, **settings})
    return build_decoder_student(own, ModelParts(NUM_ITEMS, section="distill.student", teacher=teacher))


def trained(model: DecoderRecommender) -> set[str]:
    """Return the names of the parameters that get a gradient in a training step."""
    model.train().zero_grad()
    NextItemLoss(model)(BATCH).total.backward()
    return {name for name, value in model.named_parameters() if value.grad is not None}


def share_of_smollm2(**settings: Any) -> tuple[float, float]:
    """Return the shares of the parameters that train, of a teacher of 8 layers and of a student of 4."""
    own = DecoderSettings(backbone="x", num_layers=8, **settings)
    with torch.device("meta"):
        nothing = torch.zeros(0, SMOLLM2["hidden_size"])
        whole = Backbone(random_decoder(SMOLLM2), nothing, nothing)
        teacher = build_decoder(own, whole, torch.zeros(12_001, 64), None, section="finetune", train_items=False)
        student = student_of(teacher, num_layers=4, lora=own.lora)
    shares = [
        sum(value.numel() for value in model.parameters() if value.requires_grad) / model.num_parameters()
        for model in (teacher, student)
    ]
    return shares[0], shares[1]


def test_adapters_and_heads_are_a_small_share_of_the_parameters() -> None:
    adapted, whole = share_of_smollm2(), share_of_smollm2(lora=None)
    assert all(0.005 < share < 0.05 for share in adapted)
    assert all(0.9 < share < 1 for share in whole)


@pytest.mark.parametrize("init", ["teacher", "pretrained"])
def test_of_an_adapted_student_adapters_and_heads_train(backbone: str, init: str) -> None:
    student = student_of(teacher_of(backbone), lora=LORA, init=init)
    names = trained(student)
    assert names == {name for name, value in student.named_parameters() if value.requires_grad}
    heads = {name for name in names if not name.startswith("decoder.")}
    assert heads == {"input_proj.weight", "input_proj.bias", "score.weight"}
    assert names - heads and all("lora_" in name for name in names - heads)
    everything = trained(student_of(teacher_of(backbone), init=init))
    assert "decoder.layers.1.self_attn.q_proj.weight" in everything


def test_a_student_starts_from_the_tuned_layers_or_from_the_pretrained_ones(backbone: str) -> None:
    teacher, pretrained = teacher_of(backbone), AutoModel.from_pretrained(backbone)
    name = "mlp.up_proj.weight"
    tuned = student_of(teacher).state_dict()
    untuned = student_of(teacher, init="pretrained", layers=[3, 1]).state_dict()
    assert not torch.equal(tuned[f"decoder.layers.1.{name}"], pretrained.state_dict()[f"layers.1.{name}"])
    assert torch.equal(tuned["score.weight"], teacher.score.weight)
    for own, source in ((0, 3), (1, 1)):
        assert torch.equal(untuned[f"decoder.layers.{own}.{name}"], pretrained.state_dict()[f"layers.{source}.{name}"])
    assert not torch.equal(untuned["score.weight"], teacher.score.weight)
    for part in ("item_embeddings.weight", "prefix", "response"):
        assert torch.equal(untuned[part], teacher.state_dict()[part])


def test_a_pretrained_student_may_have_layers_that_its_pruned_teacher_lacks(backbone: str) -> None:
    teacher = teacher_of(backbone, num_layers=2, layer_step=2)
    assert student_of(teacher, init="pretrained", num_layers=3).num_layers == 3
    with pytest.raises(ConfigError, match=r"num_layers is 3 but there are 2 layers"):
        student_of(teacher, num_layers=3)
    with pytest.raises(ConfigError, match=r"init is pretrained, but the teacher was not made from a pretrained backbo"):
        student_of(student_of(teacher), init="pretrained")


@pytest.mark.parametrize("init", ["teacher", "pretrained"])
@torch.no_grad()
def test_a_saved_student_with_adapters_gives_the_same_scores_merged_or_not(
    backbone: str, init: str, tmp_path: Path
) -> None:
    student = with_random_adapters(student_of(teacher_of(backbone), lora=LORA, init=init))
    save_model(student, tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, DecoderRecommender) and loaded.has_adapters
    expected = encode(student, BATCH).users
    assert torch.equal(encode(loaded, BATCH).users, expected)
    for model in (loaded.merged(), freeze(loaded), freeze(loaded.merged())):
        torch.testing.assert_close(model.encode(BATCH.histories).users, expected, rtol=1e-4, atol=1e-5)


def test_the_folder_of_an_adapted_student_recommends_without_a_backbone(tiny_dataset: Dataset, tmp_path: Path) -> None:
    student, histories = adapted_student(), [["i01", "i02"], ["i30"]]
    for name, model in (("adapted", student), ("merged", student.merged())):
        save_recommender(model, tiny_dataset, tmp_path / name, "tiny", {})
    one, other = (
        Recommender.from_pretrained(tmp_path / name).recommend(histories, 5) for name in ("adapted", "merged")
    )
    assert one.table["item_id"].equals(other.table["item_id"])
    assert (tmp_path / "adapted" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["distill.student={kind: sasrec, lora: {}}"], r"unknown key 'distill\.student\.lora'"),
        (["distill.student={kind: sasrec, init: pretrained}"], r"distill\.student\.init"),
        (
            [
                "finetune={backbone: random, backbone_config: {model_type: llama}, lora: null}",
                "distill.student.init=pretrained",
            ],
            r"init is pretrained, but finetune\.backbone is 'random', which has no pretrained layers",
        ),
        (
            ["distill.student={init: pretrained, layers: influence}"],
            r"layers: influence is measured on the tuned layers",
        ),
        (["distill.student.lora.r=0"], r"distill\.student\.lora\.r"),
    ],
)
def test_settings_without_effect_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_adapters_of_maps_that_do_not_exist_are_refused(backbone: str) -> None:
    with pytest.raises(ConfigError, match=r"distill\.student\.lora\.target_modules has 'other'"):
        student_of(teacher_of(backbone), lora={"target_modules": ["other"]})
    assert Config().distill.student == DecoderStudent() and LoraSettings().r == 16
