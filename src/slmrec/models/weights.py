"""The weights of a decoder recommender by name: merged, its own alone, its adapters."""

from peft import get_peft_model_state_dict
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from slmrec.models.decoder import DecoderRecommender

_HEADS = ("item_embeddings.", "titles.", "input_proj.", "score.", "prefix", "response")


def merged_state_dict(model: DecoderRecommender) -> dict[str, Tensor]:
    """All weights in float32, adapters merged into the layers they adapt."""
    quantised = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    }
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        # The scales of a quantised layer are kept as its own entries, or below those of its weight.
        if "lora_" not in name and not name.startswith(tuple(f"{layer}." for layer in quantised)):
            state[name.replace(".base_layer.", ".")] = value.detach().clone()
    for name, module in quantised.items():
        state[f"{name.removesuffix('.base_layer')}.weight"] = dequantize_module_weight(module).detach().float()
        if module.bias is not None:
            state[f"{name.removesuffix('.base_layer')}.bias"] = module.bias.detach().clone()
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            state[f"{name}.weight"] += module.get_delta_weight("default").detach()
    return state


def own_state_dict(model: DecoderRecommender) -> dict[str, Tensor]:
    """What belongs to this model alone: everything, or with adapters only the heads and the item vectors."""
    state: dict[str, Tensor] = model.state_dict()
    if model.config.lora is None:
        return state
    return {name: value for name, value in state.items() if name.startswith(_HEADS)}


def adapter_state_dict(model: DecoderRecommender) -> dict[str, Tensor]:
    """The adapters' weights, named as PEFT names them."""
    weights = get_peft_model_state_dict(model.decoder)
    return {f"base_model.model.{name}": value.contiguous() for name, value in weights.items()}


def load_adapter(model: DecoderRecommender, weights: dict[str, Tensor]) -> list[str]:
    """Loads adapters written by `adapter_state_dict`; the names of those that did not fit."""
    own = {name.replace(".default", ""): value for name, value in model.decoder.state_dict().items() if "lora_" in name}
    given = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    wrong = own.keys() ^ given.keys()
    wrong |= {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape}
    for name in own.keys() - wrong:
        own[name].copy_(given[name])
    return sorted(wrong)
