"""Elements of the paper and of its code: each acts on gradients, parameters or outputs, as docs/paper.md lists."""

from pathlib import Path
from typing import Any

import pytest
import torch
from artefacts import LLAMA, LORA, adapted_student
from encoding import encode
from transformers import AutoModel

from slmrec import Recommender
from slmrec.config import Config, DecoderSettings, DecoderStudent, DistillConfig, DistillWeights, LoraSettings
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
from slmrec.training.block_heads import block_heads
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.losses import DistillationLoss, NextItemLoss
from slmrec.training.teacher import LiveTeacher
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
    own = DecoderSettings(backbone=backbone, **{"prompt": "none", "num_layers": 4, "lora": LORA, **settings})
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


class Letters:
    """Stands in for a tokenizer: one token a letter."""

    bos_token_id = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) % LLAMA["vocab_size"] for letter in text]}


OWN_PROMPT = {"prefix": "Items: ", "response": " next:"}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full depth": ({"num_layers": 2}, {"num_layers": 4}),
    "interval": ({"num_layers": 2}, {"num_layers": 2, "layer_step": 2}),
    "listed layers": ({"num_layers": 2}, {"layers": [0, 3], "num_layers": 8}),
    "alpaca": ({"prompt": "none"}, {"prompt": "alpaca"}),
    "own prompt": ({"prompt": "alpaca"}, {"prompt": OWN_PROMPT}),
    "prefix alone": ({"prompt": OWN_PROMPT}, {"prompt": {"prefix": "Items: "}}),
    "response alone": ({"prompt": OWN_PROMPT}, {"prompt": {"response": " next:"}}),
    "right-aligned": (
        {"prompt": OWN_PROMPT, "max_history_items": 6},
        {"prompt": OWN_PROMPT, "max_history_items": 6, "positions": "right_aligned"},
    ),
    "adapters": ({"lora": None}, {"lora": LORA}),
    "adapted maps": ({"lora": LORA}, {"lora": LORA | {"target_modules": ["q_proj"]}}),
    "scale of adapters": ({"lora": LORA}, {"lora": LORA | {"lora_alpha": 8}}),
}
"""Settings of the teacher without and with an element."""


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_an_element_of_the_teacher_changes_its_user_vectors(
    name: str, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmrec.models.backbone.load_tokenizer", lambda *_: Letters())
    one, other = (encode(teacher_of(backbone, **settings), BATCH).users for settings in SETTINGS[name])
    assert one.shape == other.shape and not torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def gradients(loss: torch.nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    loss.train().zero_grad()
    loss(BATCH).total.backward()
    return {name: value.grad.clone() for name, value in loss.named_parameters() if value.grad is not None}


def test_multiple_supervision_of_the_teacher_trains_its_lower_layers_and_its_heads(backbone: str) -> None:
    teacher = teacher_of(backbone)
    plain = gradients(NextItemLoss(teacher))
    supervised = gradients(NextItemLoss(teacher, multiple=1.0, num_blocks=4))
    heads = {name for name in supervised if name.startswith("heads.")}
    assert heads == {f"heads.{number}.weight" for number in range(3)} and not plain.keys() & heads
    changed = {name for name in plain if not torch.allclose(plain[name], supervised[name])}
    assert {int(name.split("layers.")[1][0]) for name in changed if "layers." in name} == {0, 1, 2}


def loss_of(backbone: str, mode: str = "offline", teacher_multiple: float = 0.0, **weights: float) -> DistillationLoss:
    teacher = teacher_of(backbone)
    torch.manual_seed(3)
    heads = block_heads(teacher, 2)
    settings = DistillConfig(
        mode=mode, num_blocks=2, weights=DistillWeights(**{"cosine": 0, "norm": 0, "multiple": 1, **weights})
    )
    student = student_of(teacher, lora=LORA)
    return DistillationLoss(
        student, LiveTeacher(teacher), settings, CatalogueLoss(), teacher_heads=heads, teacher_multiple=teacher_multiple
    )


TERMS = {"cosine": 1.0, "norm": 0.1, "kl": 1.0, "block_kl": 1.0}


@pytest.mark.parametrize("term", TERMS)
def test_a_term_changes_the_gradients_of_an_adapted_student_alone(term: str, backbone: str) -> None:
    without, loss = gradients(loss_of(backbone)), loss_of(backbone, **{term: TERMS[term]})
    added = gradients(loss)
    assert added.keys() == without.keys()
    assert all(name.startswith(("student.", "terms.multiple.")) for name in added)
    changed = {name for name in added if not torch.allclose(added[name], without[name], rtol=1e-3, atol=1e-7)}
    assert any("lora_B" in name for name in changed)
    assert (term == "block_kl") == any(name.startswith("terms.multiple.") for name in changed)


def test_an_online_teacher_learns_by_multiple_supervision_from_itself_alone(backbone: str) -> None:
    plain = gradients(loss_of(backbone, mode="online"))
    supervised = gradients(loss_of(backbone, mode="online", teacher_multiple=1.0, block_kl=1.0))
    assert set(supervised.keys() - plain.keys()) == {"teacher_heads.0.weight"}
    without_kl = gradients(loss_of(backbone, mode="online", teacher_multiple=1.0))
    own = [name for name in plain if name.startswith("teacher.")]
    assert own and any(not torch.allclose(plain[name], supervised[name]) for name in own)
    assert all(torch.allclose(without_kl[name], supervised[name]) for name in [*own, "teacher_heads.0.weight"])


def test_divergence_at_the_blocks_is_none_between_equal_heads_and_states(backbone: str) -> None:
    loss = loss_of(backbone, block_kl=1.0)
    loss.student, heads = loss.teacher.model, loss.terms["block_kl"].heads
    heads[0].load_state_dict(heads[1].state_dict())
    assert loss.eval()(BATCH).parts["block_kl"].item() == pytest.approx(0, abs=1e-6)


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
        (
            ["distill.student={kind: sasrec, lora: {}}"],
            r"unknown key 'distill\.student\.lora' \(only of kind decoder\)",
        ),
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
        (
            ["distill.weights.block_kl=1"],
            r"block_kl is 1\.0, but finetune\.weights\.multiple is 0, so the teacher",
        ),
        (
            ["distill.weights={block_kl: 1, multiple: 0}"],
            r"block_kl is 1\.0, but weights\.multiple is 0, so the st",
        ),
        (
            ["distill.mode=online", "finetune.weights.multiple=1", "finetune.num_blocks=2"],
            r"finetune\.num_blocks is 2 and distill\.num_blocks is 4; .* set both alike",
        ),
        (["finetune.weights.multiple=1", "finetune.num_blocks=3"], r"num_blocks is 3, which does not divide 8 layers"),
    ],
)
def test_settings_without_effect_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_adapters_of_maps_that_do_not_exist_are_refused(backbone: str) -> None:
    with pytest.raises(ConfigError, match=r"distill\.student\.lora\.target_modules has 'other'"):
        student_of(teacher_of(backbone), lora={"target_modules": ["other"]})
    assert Config().distill.student == DecoderStudent() and LoraSettings().r == 16
