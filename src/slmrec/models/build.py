"""Construction of decoders: a teacher or base model from a backbone, a student from its teacher."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slmrec.config import DecoderModel, DecoderSettings, DecoderStudent, DecoderTraining, PromptTemplate, TrainConfig
from slmrec.errors import ConfigError
from slmrec.models.backbone import Backbone, choose_layers, evenly_spaced, keep_layers, load_backbone, random_decoder
from slmrec.models.decoder import DecoderRecommender, DecoderRecommenderConfig
from slmrec.models.packed.interface import check_attention
from slmrec.models.titles import ItemText
from slmrec.models.weights import merged_state_dict
from slmrec.types import Histories, ModelParts

_LOG = logging.getLogger(__name__)
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
    backbone = open_backbone(settings)
    vectors = random_item_vectors(parts.num_items, settings.item_dim)
    model = build_decoder(settings, backbone, vectors, parts.item_text, section=parts.section, train_items=True)
    apply_training_options(model, settings.train)
    return model


def build_decoder_student(settings: DecoderStudent, parts: ModelParts) -> DecoderRecommender:
    """Return a student that starts from layers of the teacher's decoder.

    Raises:
        ConfigError: The teacher has no decoder, or not these layers.
    """
    teacher = getattr(parts.teacher, "decoder_part", None)
    if teacher is None:
        raise ConfigError(
            "distill.student.kind is 'decoder', but the teacher has no decoder whose layers it could start from; "
            "choose another kind, such as sasrec"
        )
    layers = _student_layers(settings, teacher, parts)
    _LOG.info("distill: the student starts from layers %s of the teacher (from 0)", ", ".join(map(str, layers)))
    return student_from(
        teacher, layers, item_dropout=settings.item_dropout, train_items=settings.item_embeddings == "train"
    )


def _student_layers(settings: DecoderStudent, teacher: DecoderRecommender, parts: ModelParts) -> tuple[int, ...]:
    depth, num_layers = teacher.num_layers, settings.num_layers
    if not isinstance(settings.layers, str):
        return choose_layers(depth, num_layers, 1, settings.layers, parts.section)
    first = choose_layers(depth, num_layers, 1, None, parts.section)
    if settings.layers == "evenly_spaced":
        return evenly_spaced(depth, num_layers)
    if settings.layers == "influence" and parts.histories is not None:
        influence = layer_influence(teacher, parts.histories)
        return tuple(sorted(np.argsort(-influence.numpy(), kind="stable")[:num_layers].tolist()))
    return first


def open_backbone(settings: DecoderSettings) -> Backbone:
    """Return the backbone of a decoder, with the vectors of its prompt."""
    if settings.backbone_config is not None:
        decoder = random_decoder(settings.backbone_config)
        empty = torch.zeros(0, decoder.config.hidden_size)
        return Backbone(decoder, empty, empty)  # random weights have no tokenizer
    prompt = prompt_of(settings)
    return load_backbone(str(settings.backbone), prompt.prefix, prompt.response, settings.quantization_config)


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
        train_items: Whether the item vectors train.

    Raises:
        ConfigError: The backbone has not these layers.
    """
    depth = backbone.decoder.config.num_hidden_layers
    layers = choose_layers(depth, settings.num_layers, settings.layer_step, settings.layers, section)
    check_attention(backbone.decoder)
    keep_layers(backbone.decoder, layers)
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
    set_trainable(model, train_items)
    return model


def _text_settings(settings: DecoderSettings, text: ItemText) -> dict[str, Any]:
    width, side = settings.item_text_width, settings.item_text_side
    return {"num_components": text.vectors.shape[1], "width": width, "side": side}


def apply_training_options(model: nn.Module, settings: TrainConfig) -> None:
    """Turn on gradient checkpointing and compilation of a decoder; results stay the same up to rounding."""
    if not isinstance(settings, DecoderTraining) or not isinstance(model, DecoderRecommender):
        return
    if settings.gradient_checkpointing:
        model.decoder.gradient_checkpointing_enable()
    if settings.torch_compile:
        compile_layers(model)


def student_from(
    teacher: DecoderRecommender,
    layers: tuple[int, ...],
    *,
    item_dropout: float,
    layer_dropout: float = 0.0,
    train_items: bool,
) -> DecoderRecommender:
    """Return a student that starts from some of the teacher's layers and from all of its heads.

    The teacher's adapters are merged into the layers first, so that the student needs no backbone.
    """
    config = _config_without_backbone(teacher, len(layers), item_dropout, layer_dropout)
    student = DecoderRecommender(config)
    state = merged_state_dict(teacher)
    own = {name: value for name, value in state.items() if not name.startswith("decoder.layers.")}
    for index, layer in enumerate(layers):
        prefix = f"decoder.layers.{layer}."
        own |= {
            f"decoder.layers.{index}.{name.removeprefix(prefix)}": value
            for name, value in state.items()
            if name.startswith(prefix)
        }
    student.load_state_dict(own, strict=True)
    if student.titles is not None and teacher.titles is not None:
        student.titles.reader = teacher.titles.reader
    set_trainable(student, train_items)
    return student


def standalone(model: DecoderRecommender) -> DecoderRecommender:
    """The same model with its adapters merged and nothing quantised, which opens without the backbone."""
    dropouts = {name: getattr(model.config, name) for name in ("item_dropout", "layer_dropout")}
    alone = student_from(model, tuple(range(model.num_layers)), train_items=False, **dropouts)
    alone.eval()
    return alone


def _config_without_backbone(
    teacher: DecoderRecommender, num_layers: int, item_dropout: float, layer_dropout: float
) -> DecoderRecommenderConfig:
    values = teacher.config.to_dict()
    decoder = values["decoder"] | {"num_hidden_layers": num_layers}
    if decoder.get("layer_types"):
        decoder["layer_types"] = decoder["layer_types"][:num_layers]
    copied = ("num_items", "item_dim", "positions", "max_history_items", "titles")
    tokens = ("num_prefix_tokens", "num_response_tokens")
    kept = {key: values[key] for key in (*copied, *tokens)}
    return DecoderRecommenderConfig(decoder=decoder, item_dropout=item_dropout, layer_dropout=layer_dropout, **kept)


def set_trainable(model: DecoderRecommender, train_items: bool) -> None:
    """Adapters and heads train; the layers too unless they have adapters; the item vectors if asked."""
    for name, parameter in model.named_parameters():
        frozen = model.config.lora is not None and name.startswith("decoder.") and "lora_" not in name
        parameter.requires_grad_(not frozen)
    model.item_embeddings.requires_grad_(train_items)


def compile_layers(model: DecoderRecommender) -> None:
    """Compiles the norms and the MLP of every layer; attention has a plan of its own for every row and stays as it is.

    Raises:
        ConfigError: this machine cannot compile.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=model.device))
    except Exception as error:  # what is raised depends on what is missing
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"torch_compile is true, but torch cannot compile here ({reason}); install a C++ compiler or set it false"
        ) from None
    for layer in model.decoder.layers:
        for part in layer.children():
            if part is not layer.self_attn:
                part.compile(dynamic=True)


def layer_influence(model: DecoderRecommender, histories: Histories) -> Tensor:
    """(layers,) how much each layer turns the states: the mean of 1 - cosine between its input and its output.

    Source: Men et al. 2024, ShortGPT, block influence.
    """
    found: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        after = output if isinstance(output, Tensor) else output[0]
        found.append((1 - nn.functional.cosine_similarity(given[0].float(), after.float(), dim=-1)).mean().cpu())

    # At every position, so that the last layer runs for all tokens, as the others do.
    histories = histories.to(model.device)
    with torch.inference_mode():
        prefix = model.prefill()  # computed before the hooks are set, since only the users' tokens count
        hooks = [layer.register_forward_hook(note) for layer in model.decoder.layers]
        model.encode(histories, every_position=True, prefix=prefix)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)
