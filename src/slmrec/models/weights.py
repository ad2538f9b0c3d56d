"""Weights of a decoder recommender by name: all of them, its own, those of its adapters; and pruned copies.

PEFT takes a second to import, so only the functions that need it do, for models with adapters or quantised layers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from slmrec.models.layers import settings_of_layers

if TYPE_CHECKING:
    from peft import LoraConfig

    from slmrec.models.decoder import DecoderRecommender

_HEADS = ("item_embeddings.", "titles.", "input_proj.", "score.", "prefix", "response")
_ARCHITECTURE = ("num_items", "item_dim", "positions", "max_history_items", "titles")
_PROMPT = ("num_prefix_tokens", "num_response_tokens")


def merged_state_dict(model: "DecoderRecommender") -> dict[str, Tensor]:
    """Return all weights in float32, with the adapters merged into the layers that they adapt."""
    quantized = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    }
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        # The state dict of a quantised layer holds further entries, such as the scales, beside or below its weight.
        if "lora_" not in name and not name.startswith(tuple(f"{layer}." for layer in quantized)):
            state[name.replace(".base_layer.", ".")] = value.detach().clone()
    if quantized:
        from peft.utils.integrations import dequantize_module_weight
    for name, module in quantized.items():
        state[f"{name.removesuffix('.base_layer')}.weight"] = dequantize_module_weight(module).detach().float()
        if module.bias is not None:
            state[f"{name.removesuffix('.base_layer')}.bias"] = module.bias.detach().clone()
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            state[f"{name}.weight"] += module.get_delta_weight("default").detach()
    return state


def own_state_dict(model: "DecoderRecommender") -> dict[str, Tensor]:
    """Return the weights of a model but its adapters, and without layers that are those of a backbone."""
    state: dict[str, Tensor] = model.state_dict()
    if model.config.adapts_backbone:
        return {name: value for name, value in state.items() if name.startswith(_HEADS)}
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if "lora_" not in name}


def adapter_state_dict(model: "DecoderRecommender") -> dict[str, Tensor]:
    """Return the weights of the adapters, named as PEFT names them."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model.decoder)
    return {f"base_model.model.{name}": value.contiguous() for name, value in weights.items()}


def lora_config(settings: dict[str, Any]) -> "LoraConfig":
    """Return PEFT's configuration of adapters with the values of `LoraSettings`."""
    from peft import LoraConfig

    return LoraConfig(**(settings | {"target_modules": list(settings["target_modules"])}))


def add_adapters(decoder: nn.Module, settings: dict[str, Any]) -> None:
    """Add adapters with the values of `LoraSettings` to the layers of a decoder."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(lora_config(settings), decoder)


def load_adapter(model: "DecoderRecommender", weights: dict[str, Tensor]) -> list[str]:
    """Load adapters written by `adapter_state_dict`, and return the names that are missing, unknown or do not fit."""
    own = {name.replace(".default", ""): value for name, value in model.decoder.state_dict().items() if "lora_" in name}
    given = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    wrong = own.keys() ^ given.keys()
    wrong |= {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape}
    for name in own.keys() - wrong:
        own[name].copy_(given[name])
    return sorted(wrong)


def with_layers(
    model: "DecoderRecommender", layers: Sequence[int], *, item_dropout: float, layer_dropout: float
) -> "DecoderRecommender":
    """Return a copy of a model that has only some of its layers, and all of its heads.

    Adapters are merged into the layers first and nothing is quantised, so that the copy needs no backbone.

    Args:
        model: The model, which is not changed.
        layers: Numbers of the layers, from 0, in the order of the copy.
        item_dropout: Dropout on the item vectors that the copy reads.
        layer_dropout: Dropout on the outputs of attention and MLP of each layer.
    """
    values = model.config.to_dict()
    decoder = values["decoder"] | settings_of_layers(
        {"num_hidden_layers": model.num_layers} | values["decoder"], layers
    )
    kept = {name: values[name] for name in (*_ARCHITECTURE, *_PROMPT)}
    kept["base_model"] = values["base_model"] or values["backbone"]
    config = type(model.config)(decoder=decoder, item_dropout=item_dropout, layer_dropout=layer_dropout, **kept)
    copy = type(model)(config)
    state = merged_state_dict(model)
    own = {name: value for name, value in state.items() if not name.startswith("decoder.layers.")}
    for index, layer in enumerate(layers):
        prefix = f"decoder.layers.{layer}."
        own |= {
            f"decoder.layers.{index}.{name.removeprefix(prefix)}": value
            for name, value in state.items()
            if name.startswith(prefix)
        }
    copy.load_state_dict(own, strict=True)
    if copy.titles is not None and model.titles is not None:
        copy.titles.reader = model.titles.reader
    return copy
