"""What the teacher and its companion share: a decoder is put together from its settings, and trained."""

from pathlib import Path

import torch
from torch import Tensor

from slmrec.config import DecoderConfig, PromptTemplate
from slmrec.data.dataset import Dataset
from slmrec.models.backbone import Backbone, choose_layers, load_backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import item_vectors_of
from slmrec.models.titles import Titles
from slmrec.pipeline.learning import adjust_decoder, cross_entropy_settings, learn, training_samples
from slmrec.pipeline.stage import Task
from slmrec.pipeline.titles import titles_of
from slmrec.training.losses import NextItemLoss

ALPACA = PromptTemplate(
    prefix=(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Predict the item that the user will choose next, given the items chosen so far, oldest first.\n\n### Input:\n"
    ),
    response="\n\n### Response:\n",
)


FRESH_STD = 0.02
"""Of random item vectors. Source: the initialisation of SASRec's embeddings."""


def train_decoder(task: Task, name: str, settings: DecoderConfig) -> tuple[DecoderRecommender, dict[str, float]]:
    """Builds and trains the decoder of a section, and writes its folder; the decoder, and its metrics on validation.

    The state of the training stays, for the caller to drop once all is done.
    """
    dataset = Dataset.load(task.output / "prepare")
    vectors, titles = item_vectors_of(task.output / "pretrain"), titles_of(name, settings, dataset)
    torch.manual_seed(task.config.seed)
    model = assemble(name, settings, _backbone(settings), vectors, titles)
    adjust_decoder(model, settings.train)
    loss = NextItemLoss(model, **cross_entropy_settings(dataset, settings.train))
    data = training_samples(dataset, settings.supervision, model)
    metrics = learn(task, name, model, loss, data, dataset, settings.train)
    return model, metrics | {"num_layers": model.num_layers}


def assemble(
    name: str, settings: DecoderConfig, backbone: Backbone, item_vectors: Tensor, titles: Titles | None
) -> DecoderRecommender:
    """The decoder of a section, untrained."""
    depth = backbone.decoder.config.num_hidden_layers
    if settings.item_table == "fresh":
        item_vectors = FRESH_STD * torch.randn_like(item_vectors)
        item_vectors[0] = 0
    return build_decoder(
        backbone,
        choose_layers(depth, settings.num_layers, settings.layer_step, settings.layers, name),
        item_vectors,
        source=settings.backbone,
        lora=settings.lora.model_dump(mode="json") if settings.lora else None,
        positions=settings.positions,
        max_history_items=settings.max_history_items,
        item_dropout=settings.item_dropout,
        layer_dropout=settings.layer_dropout,
        train_items=settings.item_table != "frozen",
        quantization=settings.quantization_config,
        titles=titles,
    )


def backbone_files(settings: DecoderConfig) -> tuple[str | None, ...]:
    """Backbones that are files here; one of a hub is known by its id, which is among the settings."""
    given = (settings.backbone, settings.titles.source if settings.titles else None)
    return tuple(source for source in given if source and Path(source).exists())


def _backbone(settings: DecoderConfig) -> Backbone:
    if settings.backbone_config is not None:
        decoder = random_decoder(settings.backbone_config)
        nothing = torch.zeros(0, decoder.config.hidden_size)
        return Backbone(decoder, nothing, nothing)  # random weights have no words to prompt with
    prompt = prompt_of(settings)
    return load_backbone(settings.backbone, prompt.prefix, prompt.response, settings.quantization_config)


def prompt_of(settings: DecoderConfig) -> PromptTemplate:
    """The text before and after the items."""
    named = {"alpaca": ALPACA, "none": PromptTemplate()}
    return named[settings.prompt] if isinstance(settings.prompt, str) else settings.prompt
