"""Every trained parameter of the recipes' models gets a gradient, which training on several processes needs."""

from typing import Any

import pytest
import torch
from torch import nn

from slmrec.config import Config
from slmrec.config.kinds import KINDS, load_object
from slmrec.config.load import load_config
from slmrec.data.batching import pad_histories
from slmrec.models.build import build_decoder, open_backbone
from slmrec.models.ensemble import Ensemble
from slmrec.models.model import Model, ModelParts
from slmrec.models.text.item_text import ItemText
from slmrec.pipeline.distill import build_student
from slmrec.recipes import recipe_names
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.losses import DistillationLoss, NextItemLoss
from slmrec.training.teacher import LiveTeacher
from slmrec.types import Batch

NUM_ITEMS = 40
HISTORIES = pad_histories([[1, 2, 3, 4], [5, 6], [7, 8, 9]], 20)
LLAMA = {"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def small(settings: Any) -> Any:
    """Return the settings of a decoder on random layers of width 16; other settings stay as they are."""
    if getattr(settings, "backbone", None) in (None, "random"):
        return settings
    decoder = LLAMA | {"num_hidden_layers": settings.num_layers * settings.layer_step}
    return settings.model_copy(update={"backbone": "random", "backbone_config": decoder})


def models_of(config: Config, text: ItemText) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for name, settings in config.pretrain.items():
        parts = ModelParts(NUM_ITEMS, text if getattr(settings, "item_text", None) else None, name)
        models[name] = load_object(KINDS[settings.kind].build)(small(settings), parts)
    finetune = small(config.finetune)
    if finetune.backbone is None:
        names = list(finetune.ensemble)
        return models | {"teacher": Ensemble.of({name: models[name] for name in names}, dict.fromkeys(names, 0.5))}
    vectors = models[str(finetune.item_vectors)].item_vectors().detach()
    own_text = text if finetune.item_text else None
    train_items, backbone = finetune.item_embeddings != "fixed", open_backbone(finetune, "finetune")
    decoder = build_decoder(finetune, backbone, vectors, own_text, section="finetune", train_items=train_items)
    return models | {"teacher": decoder}


def without_gradient(loss: nn.Module, every_position: bool) -> list[str]:
    """Return the names of trainable parameters that a training step leaves alone, and of empty ones."""
    inside = torch.arange(HISTORIES.items.shape[1]) < HISTORIES.lengths[:, None]
    targets = HISTORIES.items[inside] if every_position else torch.tensor([1, 2, 3])
    loss.train()(Batch(HISTORIES, targets, every_position)).total.backward()
    parameters = {name: value for name, value in loss.named_parameters() if value.requires_grad}
    assert parameters
    return [name for name, value in parameters.items() if value.grad is None or not value.numel()]


@pytest.mark.parametrize("name", recipe_names())
def test_no_parameter_of_a_recipe_is_left_alone(name: str) -> None:
    config, text = load_config(name, []), ItemText(torch.randn(NUM_ITEMS + 1, 8))
    models = models_of(config, text)
    for base, settings in config.pretrain.items():
        assert without_gradient(NextItemLoss(models[base]), settings.supervision == "every_position") == [], base
    teacher, every_position = models["teacher"], config.finetune.supervision == "every_position"
    if config.finetune.backbone is not None:
        assert without_gradient(NextItemLoss(teacher), every_position) == []
    settings = config.distill
    student = build_student(settings, NUM_ITEMS, teacher, HISTORIES, text if settings.item_text else None)
    loss = DistillationLoss(student, LiveTeacher(teacher), settings, CatalogueLoss())
    assert without_gradient(loss, every_position) == []


@pytest.mark.parametrize("term", ["cosine", "multiple"])
def test_a_student_of_hidden_states_alone_says_that_its_head_is_left_alone(term: str) -> None:
    values = dict.fromkeys(("ce", "cosine", "norm", "multiple", "kl"), 0.0) | {term: 1.0}
    config = load_config("tiny", [f"distill.weights={values}"])
    teacher = models_of(config, ItemText(torch.randn(NUM_ITEMS + 1, 8)))["teacher"]
    student = build_student(config.distill, NUM_ITEMS, teacher, HISTORIES)
    loss = DistillationLoss(student, LiveTeacher(teacher), config.distill, CatalogueLoss())
    assert without_gradient(loss, True) and loss.may_skip_parameters
