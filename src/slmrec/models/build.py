"""How recommenders are made: a teacher from a backbone, a student from its teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from slmrec.errors import ConfigError
from slmrec.models.backbone import Backbone, keep_layers
from slmrec.models.decoder import DecoderRecommender, DecoderRecommenderConfig, Positions
from slmrec.models.packed.interface import check_attention
from slmrec.models.titles import Titles
from slmrec.models.weights import merged_state_dict
from slmrec.types import Histories


def build_decoder(
    backbone: Backbone,
    layers: tuple[int, ...],
    item_vectors: Tensor,
    *,
    source: str,
    lora: dict[str, Any] | None,
    positions: Positions,
    max_history_items: int,
    item_dropout: float,
    layer_dropout: float = 0.0,
    train_items: bool,
    quantization: dict[str, Any] | None = None,
    titles: Titles | None = None,
) -> DecoderRecommender:
    """A recommender from some layers of a backbone and given item vectors (V+1, D).

    With `lora` the layers are frozen and get adapters; without, they train. Titles join the items' vectors. The other
    layers of the backbone are dropped.
    """
    check_attention(backbone.decoder)
    keep_layers(backbone.decoder, layers)
    architecture = backbone.decoder.config.to_diff_dict() | {"model_type": backbone.decoder.config.model_type}
    architecture.pop("quantization_config", None)  # a student is not quantised; how the backbone was is kept apart
    config = DecoderRecommenderConfig(
        decoder=architecture,
        num_items=len(item_vectors) - 1,
        item_dim=item_vectors.shape[1],
        num_prefix_tokens=len(backbone.prefix),
        num_response_tokens=len(backbone.response),
        positions=positions,
        max_history_items=max_history_items,
        item_dropout=item_dropout,
        layer_dropout=layer_dropout,
        backbone=source,
        layers=layers,
        lora=lora,
        quantization=quantization,
        titles=None if titles is None else _title_settings(titles),
    )
    model = DecoderRecommender(config, backbone.decoder)
    model.prefix.copy_(backbone.prefix)
    model.response.copy_(backbone.response)
    with torch.no_grad():
        model.item_embeddings.weight.copy_(item_vectors)
        if titles is not None and model.titles is not None:
            model.titles.vectors.copy_(titles.vectors)
            model.titles.reader = titles.reader
    set_trainable(model, train_items)
    return model


def _title_settings(titles: Titles) -> dict[str, Any]:
    return {"num_components": titles.vectors.shape[1], "width": titles.width, "side": titles.side}


def student_from(
    teacher: DecoderRecommender,
    layers: tuple[int, ...],
    *,
    item_dropout: float,
    layer_dropout: float = 0.0,
    train_items: bool,
) -> DecoderRecommender:
    """A student that starts from some of the teacher's layers and from all its heads.

    The teacher's adapters are merged into the layers first, so that the student stands alone.
    """
    config = _alone(teacher, len(layers), {}, item_dropout=item_dropout, layer_dropout=layer_dropout)
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


def fresh_student(
    teacher: DecoderRecommender,
    num_layers: int,
    changes: dict[str, Any],
    *,
    item_dropout: float,
    layer_dropout: float = 0.0,
    train_items: bool,
) -> DecoderRecommender:
    """A student with random layers of the teacher's architecture but for `changes`, and the teacher's item vectors.

    The prompt is kept if the hidden width is.
    """
    student = DecoderRecommender(
        _alone(teacher, num_layers, changes, item_dropout=item_dropout, layer_dropout=layer_dropout)
    )
    student.decoder.init_weights()
    with torch.no_grad():
        student.item_embeddings.weight.copy_(teacher.item_embeddings.weight)
        if student.titles is not None and teacher.titles is not None:
            student.titles.load_state_dict(teacher.titles.state_dict())
            student.titles.reader = teacher.titles.reader
        if student.hidden_size == teacher.hidden_size:
            student.prefix.copy_(teacher.prefix)
            student.response.copy_(teacher.response)
    set_trainable(student, train_items)
    return student


def _alone(
    teacher: DecoderRecommender, num_layers: int, changes: dict[str, Any], **dropouts: Any
) -> DecoderRecommenderConfig:
    values = teacher.config.to_dict()
    decoder = values["decoder"] | {"num_hidden_layers": num_layers}
    if decoder.get("layer_types"):
        decoder["layer_types"] = decoder["layer_types"][:num_layers]
    decoder |= changes
    if "num_attention_heads" in changes and "head_dim" not in changes:
        decoder.pop("head_dim", None)
    if decoder["hidden_size"] != teacher.hidden_size:
        values |= {"num_prefix_tokens": 0, "num_response_tokens": 0}
    kept = {key: values[key] for key in ("num_items", "item_dim", "positions", "max_history_items", "titles")}
    tokens = {key: values[key] for key in ("num_prefix_tokens", "num_response_tokens")}
    return DecoderRecommenderConfig(decoder=decoder, **dropouts, **kept, **tokens)


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
        # After this the prefix is known and runs through the layers no more.
        model.encode(histories, every_position=True)
        hooks = [layer.register_forward_hook(note) for layer in model.decoder.layers]
        model.encode(histories, every_position=True)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)
