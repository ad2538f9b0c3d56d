"""The teacher: some layers of a pretrained decoder, tuned to recommend over the item vectors of pretrain."""

from pathlib import Path

import torch
from torch import Tensor

from slmrec.checkpoint import item_vectors_of, load_recommender, save_recommender
from slmrec.config import Config, FinetuneConfig, PromptTemplate
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError
from slmrec.evaluation import validate
from slmrec.losses import NextItemLoss
from slmrec.models.backbone import Backbone, choose_layers, load_backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.sasrec import SasRec
from slmrec.models.titles import Titles
from slmrec.stages.folders import Stage, Task
from slmrec.stages.learning import (
    EVAL_BATCH,
    adjust_decoder,
    cross_entropy_settings,
    forget_training_state,
    learn,
    training_samples,
    validation_sample,
)
from slmrec.stages.titles import titles_of
from slmrec.training import MONITORED

ALPACA = PromptTemplate(
    prefix=(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Predict the item that the user will choose next, given the items chosen so far, oldest first.\n\n### Input:\n"
    ),
    response="\n\n### Response:\n",
)


def build(task: Task) -> dict[str, float]:
    """Builds and trains the teacher."""
    settings = task.config.finetune
    dataset = Dataset.load(task.output / "prepare")
    vectors, titles = item_vectors_of(task.output / "pretrain"), titles_of(settings, dataset)
    torch.manual_seed(task.config.seed)
    model = assemble(settings, _backbone(settings), vectors, titles)
    adjust_decoder(model, settings.train)
    loss = NextItemLoss(model, **cross_entropy_settings(dataset, settings.train))
    data = training_samples(dataset, settings.supervision, model)
    metrics = learn(task, "finetune", model, loss, data, dataset, settings.train)
    if settings.sasrec_weight:
        metrics |= _join_sasrec(task, model, dataset)
    forget_training_state(task)
    return metrics | {"num_layers": model.num_layers}


def assemble(
    settings: FinetuneConfig, backbone: Backbone, item_vectors: Tensor, titles: Titles | None
) -> DecoderRecommender:
    """The decoder of the teacher, untrained."""
    depth = backbone.decoder.config.num_hidden_layers
    return build_decoder(
        backbone,
        choose_layers(depth, settings.num_layers, settings.layer_step, settings.layers, "finetune"),
        item_vectors,
        source=settings.backbone,
        lora=settings.lora.model_dump(mode="json") if settings.lora else None,
        positions=settings.positions,
        max_history_items=settings.max_history_items,
        item_dropout=settings.item_dropout,
        layer_dropout=settings.layer_dropout,
        train_items=settings.item_table == "trained",
        quantization=settings.quantization_config,
        titles=titles,
    )


def _join_sasrec(task: Task, model: DecoderRecommender, dataset: Dataset) -> dict[str, float]:
    """Saves the ensemble of the decoder and of pretrain's SASRec in the decoder's place; its metrics on validation."""
    settings, (sasrec, _) = task.config.finetune, load_recommender(task.output / "pretrain")
    if not isinstance(sasrec, SasRec):
        raise CheckpointError(f"{task.output / 'pretrain'}: a {sasrec.config.model_type} model; run pretrain again")
    teacher = Ensemble.of(model, sasrec.to(model.device), settings.sasrec_weight)
    found = validate(teacher, validation_sample(task, dataset, settings.train), EVAL_BATCH)
    weight = settings.sasrec_weight
    print(f"finetune: with weight {weight} on SASRec's scores: valid NDCG@10 {found[MONITORED]:.4f}", flush=True)
    save_recommender(teacher, dataset, task.folder, "SLMRec finetune", found)
    return {f"valid/{key}": value for key, value in found.items()} | {"num_parameters": teacher.num_parameters()}


def _backbone(settings: FinetuneConfig) -> Backbone:
    if settings.backbone_config is not None:
        decoder = random_decoder(settings.backbone_config)
        nothing = torch.zeros(0, decoder.config.hidden_size)
        return Backbone(decoder, nothing, nothing)  # random weights have no words to prompt with
    prompt = prompt_of(settings)
    return load_backbone(settings.backbone, prompt.prefix, prompt.response, settings.quantization_config)


def prompt_of(settings: FinetuneConfig) -> PromptTemplate:
    """The text before and after the items."""
    named = {"alpaca": ALPACA, "none": PromptTemplate()}
    return named[settings.prompt] if isinstance(settings.prompt, str) else settings.prompt


def _sources(config: Config) -> tuple[str | None, ...]:
    """Backbones that are files here; one of a hub is known by its id, which is among the settings."""
    titles = config.finetune.titles
    given = (config.finetune.backbone, titles.source if titles else None)
    return tuple(source for source in given if source and Path(source).exists())


STAGE = Stage("finetune", lambda config: ("prepare", "pretrain"), build, _sources)
