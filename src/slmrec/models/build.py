"""Construction of decoders: a teacher or base model from a backbone, a student from its teacher."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slmrec.config import DecoderModel, DecoderSettings, DecoderStudent, LoraSettings, PromptTemplate
from slmrec.errors import ConfigError
from slmrec.models.backbone import Backbone, load_backbone, load_decoder, random_decoder, read_architecture
from slmrec.models.decoder import DecoderRecommender, DecoderRecommenderConfig
from slmrec.models.layers import choose_layers, evenly_spaced, keep_layers, linear_names
from slmrec.models.model import ModelParts
from slmrec.models.packed.interface import check_attention
from slmrec.models.text.item_text import ItemText
from slmrec.models.weights import add_adapters, with_layers
from slmrec.types import Histories

_LOG = logging.getLogger(__name__)
INFLUENCE_USERS = 256
"""Number of users on whom the influence of layers is measured."""
ALPACA = PromptTemplate(
    prefix=(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Predict the item that the user will choose next, given the items chosen so far, oldest first.\n\n### Input:\n"
    ),
    response="\n\n### Response:\n",
)
"""Prompt in the reference's instruction form; the wording is ours."""
INITIAL_STD = 0.02
"""Standard deviation of random item vectors. Source: initialisation of SASRec's embeddings."""


def build_decoder_model(settings: DecoderModel, parts: ModelParts) -> DecoderRecommender:
    """Return a decoder as base model: its item vectors are random and train."""
    backbone = open_backbone(settings, parts.section)
    vectors = random_item_vectors(parts.num_items, settings.item_dim)
    model = build_decoder(settings, backbone, vectors, parts.item_text, section=parts.section, train_items=True)
    model.apply_training_options(settings.train)
    return model


def build_decoder_student(settings: DecoderStudent, parts: ModelParts) -> DecoderRecommender:
    """Return a student that starts from layers of the teacher's decoder, or of the pretrained backbone below it.

    Raises:
        ConfigError: The teacher has no decoder, or not these layers, or no pretrained backbone.
    """
    teacher = getattr(parts.teacher, "decoder_part", None)
    if teacher is None:
        raise ConfigError(
            "distill.student.kind is 'decoder', but the teacher has no decoder whose layers it could start from; "
            "choose another kind, such as sasrec"
        )
    train_items = settings.item_embeddings == "train"
    if settings.init == "pretrained":
        return _pretrained_student(settings, teacher, parts, train_items)
    layers = _student_layers(settings, teacher.num_layers, teacher, parts)
    _LOG.info("distill: the student starts from layers %s of the teacher (from 0)", ", ".join(map(str, layers)))
    return student_from(
        teacher, layers, item_dropout=settings.item_dropout, train_items=train_items, lora=settings.lora
    )


def _pretrained_student(
    settings: DecoderStudent, teacher: DecoderRecommender, parts: ModelParts, train_items: bool
) -> DecoderRecommender:
    """Return a student from untuned layers of the teacher's backbone, with new heads and the teacher's item vectors.

    Source: the reference, whose student and teacher start from the same pretrained layers.
    """
    config, source = teacher.config, teacher.config.backbone
    if not source or source == "random":
        raise ConfigError(
            f"{parts.section}.init is pretrained, but the teacher was not made from a pretrained backbone; set "
            f"{parts.section}.init=teacher"
        )
    is_plan = teacher.device.type == "meta"
    decoder = (
        random_decoder(read_architecture(source)) if is_plan else load_decoder(source, setting="finetune.backbone")
    )
    layers = _student_layers(settings, decoder.config.num_hidden_layers, teacher, parts)
    _LOG.info("distill: the student starts from layers %s of %s (from 0)", ", ".join(map(str, layers)), source)
    titles, text, sides = teacher.titles, None, {}
    if titles is not None:
        text = ItemText(titles.vectors, titles.reader)
        sides = {"item_text_width": config.titles["width"], "item_text_side": teacher.title_side}
    values = {name: getattr(config, name) for name in ("positions", "max_history_items")} | sides
    own = DecoderSettings(
        backbone=source, layers=layers, lora=settings.lora, item_dropout=settings.item_dropout, **values
    )
    backbone = Backbone(decoder, teacher.prefix, teacher.response)
    vectors = teacher.item_embeddings.weight.detach()
    return build_decoder(own, backbone, vectors, text, section=parts.section, train_items=train_items)


def _student_layers(
    settings: DecoderStudent, depth: int, teacher: DecoderRecommender, parts: ModelParts
) -> tuple[int, ...]:
    num_layers = settings.num_layers
    if not isinstance(settings.layers, str):
        return choose_layers(depth, num_layers, 1, settings.layers, parts.section)
    first = choose_layers(depth, num_layers, 1, None, parts.section)
    if settings.layers == "evenly_spaced":
        return evenly_spaced(depth, num_layers)
    if settings.layers == "influence" and parts.histories is not None:
        influence = layer_influence(teacher, parts.histories.select(slice(INFLUENCE_USERS)))
        return tuple(sorted(np.argsort(-influence.numpy(), kind="stable")[:num_layers].tolist()))
    return first


def open_backbone(settings: DecoderSettings, section: str) -> Backbone:
    """Return the backbone of a decoder, with the vectors of its prompt.

    Args:
        settings: Settings of the decoder.
        section: Path of the settings in the YAML, for messages.

    Raises:
        CheckpointError: The backbone cannot be found, or is not a decoder.
        ConfigError: Its architecture or its quantisation is not possible.
    """
    if settings.backbone_config is not None:
        decoder = random_decoder(settings.backbone_config, f"{section}.backbone_config")
        empty = torch.zeros(0, decoder.config.hidden_size)
        return Backbone(decoder, empty, empty)  # random weights have no tokenizer
    prompt, source = prompt_of(settings), str(settings.backbone)
    return load_backbone(source, prompt.prefix, prompt.response, settings.quantization_config, f"{section}.backbone")


def prompt_of(settings: DecoderSettings) -> PromptTemplate:
    """Return the text before and after the items."""
    if isinstance(settings.prompt, PromptTemplate):
        return settings.prompt
    return ALPACA if settings.prompt == "alpaca" else PromptTemplate()


def random_item_vectors(num_items: int, width: int) -> Tensor:
    """Return random item vectors (V+1, D); row 0, the padding item, is zero."""
    vectors = INITIAL_STD * torch.randn(num_items + 1, width)
    vectors[0] = 0
    return vectors


def build_decoder(
    settings: DecoderSettings,
    backbone: Backbone,
    item_vectors: Tensor,
    text: ItemText | None,
    *,
    section: str,
    train_items: bool,
) -> DecoderRecommender:
    """Return a recommender from some layers of a backbone; the other layers are dropped.

    Args:
        settings: Settings of the decoder. With `lora` its layers are frozen and get adapters; without, they train.
        backbone: The whole backbone.
        item_vectors: (V+1, D) initial item vectors.
        text: Vectors of the item texts, which join the item vectors; None for a model without text.
        section: Path of the settings in the YAML, for messages.
        train_items: True if the item vectors train.

    Raises:
        ConfigError: The backbone does not have the layers or the linear maps that the settings name.
    """
    depth = backbone.decoder.config.num_hidden_layers
    layers = choose_layers(depth, settings.num_layers, settings.layer_step, settings.layers, section)
    check_attention(backbone.decoder)
    keep_layers(backbone.decoder, layers)
    if settings.lora is not None:
        _check_targets(backbone.decoder, settings.lora.target_modules, section)
    architecture = backbone.decoder.config.to_diff_dict() | {"model_type": backbone.decoder.config.model_type}
    architecture.pop("quantization_config", None)  # kept apart, since a student is not quantised
    config = DecoderRecommenderConfig(
        decoder=architecture,
        num_items=len(item_vectors) - 1,
        item_dim=item_vectors.shape[1],
        num_prefix_tokens=len(backbone.prefix),
        num_response_tokens=len(backbone.response),
        positions=settings.positions,
        max_history_items=settings.max_history_items,
        item_dropout=settings.item_dropout,
        layer_dropout=settings.layer_dropout,
        backbone=settings.backbone,
        layers=layers,
        lora=settings.lora.model_dump(mode="json") if settings.lora else None,
        quantization=settings.quantization_config,
        titles=None if text is None else _text_settings(settings, text),
    )
    model = DecoderRecommender(config, backbone.decoder)
    model.prefix.copy_(backbone.prefix)
    model.response.copy_(backbone.response)
    with torch.no_grad():
        model.item_embeddings.weight.copy_(item_vectors)
        if text is not None and model.titles is not None:
            model.titles.vectors.copy_(text.vectors)
            model.titles.reader = text.reader
    model.set_trainable(train_items)
    return model


def _check_targets(decoder: PreTrainedModel, targets: tuple[str, ...], section: str) -> None:
    """Refuse adapters of linear maps that do not exist, which PEFT would ignore.

    Raises:
        ConfigError: A name is unknown.
    """
    known = linear_names(decoder)
    unknown = [name for name in targets if name not in known]
    if unknown:
        choices = ", ".join(sorted(name for name in known if "." not in name))
        raise ConfigError(
            f"{section}.lora.target_modules has {', '.join(map(repr, unknown))}, which the layers of "
            f"{type(decoder).__name__} do not have; choose from {choices}"
        )


def _text_settings(settings: DecoderSettings, text: ItemText) -> dict[str, Any]:
    width, side = settings.item_text_width, settings.item_text_side
    return {"num_components": text.vectors.shape[1], "width": width, "side": side}


def student_from(
    teacher: DecoderRecommender,
    layers: tuple[int, ...],
    *,
    item_dropout: float,
    layer_dropout: float = 0.0,
    train_items: bool,
    lora: LoraSettings | None = None,
) -> DecoderRecommender:
    """Return a student that starts from some of the teacher's layers and from all of its heads.

    The teacher's adapters are merged into the layers first, so that the student needs no backbone.

    Args:
        teacher: The teacher, which is not changed.
        layers: Numbers of the teacher's layers, from 0, in the order of the student.
        item_dropout: Dropout on the item vectors that the student reads.
        layer_dropout: Dropout on the outputs of attention and MLP of each layer.
        train_items: True if the item vectors train.
        lora: Adapters that train in place of the layers; None: the layers train.
    """
    student = with_layers(teacher, layers, item_dropout=item_dropout, layer_dropout=layer_dropout)
    if lora is not None:
        _check_targets(student.decoder, lora.target_modules, "distill.student")
        student.config.lora = lora.model_dump(mode="json")
        add_adapters(student.decoder, student.config.lora)
    student.set_trainable(train_items)
    return student


def layer_influence(model: DecoderRecommender, histories: Histories) -> Tensor:
    """Return the block influence (layers,) of each layer: the mean of 1 - cosine between its input and its output.

    Source: Men et al. 2024, ShortGPT, block influence.

    Args:
        model: The model.
        histories: Histories on which the hidden states are compared, at every position.
    """
    influences: list[Tensor] = []

    def measure(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        after = output if isinstance(output, Tensor) else output[0]
        cosines = nn.functional.cosine_similarity(inputs[0].float(), after.float(), dim=-1)
        influences.append((1 - cosines).mean().cpu())

    # With every position, the last layer runs for all tokens, as the other layers do.
    histories = histories.to(model.device)
    with torch.inference_mode():
        prefix = model.prefill()  # computed before the hooks are set, since only the tokens of users are compared
        hooks = [layer.register_forward_hook(measure) for layer in model.decoder.layers]
        model.encode(histories, every_position=True, prefix=prefix)
    for hook in hooks:
        hook.remove()
    return torch.stack(influences)
