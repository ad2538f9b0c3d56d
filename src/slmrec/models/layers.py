"""Layers of transformers' decoders: which are kept, dropout inside them, and their compilation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slmrec.errors import ConfigError
from slmrec.files import one_line
from slmrec.models.backbone import random_decoder


class LayerStates(NamedTuple):
    """Hidden states of a sequence."""

    output: Tensor
    """(tokens, H) after the final norm; (B, H) if the last layer ran for the newest tokens only."""
    inputs: tuple[Tensor, ...]
    """(tokens, H) input of each layer; empty unless requested."""


def keep_layers(decoder: PreTrainedModel, layers: Sequence[int]) -> None:
    """Drop all decoder layers but some, which then stand in the given order, and drop the token embeddings.

    Raises:
        ConfigError: The decoder does not store its layers as LLaMA does.
    """
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise ConfigError(f"backbone {type(decoder).__name__}: its layers are not found; choose a LLaMA-like decoder")
    kept = [decoder.layers[index] for index in layers]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    for name, value in settings_of_layers(decoder.config.to_dict(), layers).items():
        setattr(decoder.config, name, value)
    decoder.layers = nn.ModuleList(kept)
    drop_token_table(decoder)


def settings_of_layers(settings: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Return the settings of an architecture that change where only some of its layers are kept.

    Args:
        settings: Architecture in transformers' names.
        layers: Numbers of the layers, from 0.

    Example:
        >>> settings_of_layers({"num_hidden_layers": 3, "no_rope_layers": [1, 1, 0]}, (0, 2))
        {'num_hidden_layers': 2, 'no_rope_layers': [1, 0]}
    """
    depth = settings["num_hidden_layers"]
    lists = {name: value for name, value in settings.items() if "layer" in name and isinstance(value, list)}
    of_each = {name: [value[index] for index in layers] for name, value in lists.items() if len(value) == depth}
    return {"num_hidden_layers": len(layers), **of_each}


def empty_decoder(settings: dict[str, Any]) -> PreTrainedModel:
    """Return a decoder with random weights and without token embeddings; settings are in transformers' names."""
    tokens = {name for name in settings if name.endswith("_token_id")} | {
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    }
    decoder = random_decoder(settings | {"vocab_size": 1, **dict.fromkeys(tokens)})
    drop_token_table(decoder)
    return decoder


def drop_token_table(decoder: PreTrainedModel) -> None:
    """Free the token embeddings: items enter as vectors, and the few vectors of the prompt are stored separately."""
    decoder.set_input_embeddings(NoTokens(decoder.config.hidden_size))
    decoder.config.vocab_size = 0
    for name in decoder.config.to_dict():
        if name.endswith("_token_id"):
            setattr(decoder.config, name, None)


class NoTokens(nn.Module):
    """Table of token embeddings without rows; it is no parameter, since none may be left without a gradient.

    Args:
        width: Width of an embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0, width))


def add_branch_dropout(decoder: PreTrainedModel, dropout: nn.Dropout) -> None:
    """Apply dropout to the outputs of attention and MLP in each layer, before they are added to the residual stream.

    Raises:
        ConfigError: The layers have no MLP where LLaMA has it.
    """

    def apply(_: nn.Module, __: Any, output: Any) -> Any:
        return dropout(output) if isinstance(output, Tensor) else (dropout(output[0]), *output[1:])

    for layer in decoder.layers:
        if not isinstance(getattr(layer, "mlp", None), nn.Module):
            raise ConfigError(
                f"layer_dropout: the MLPs of {type(decoder).__name__} are not found; set it to 0, or choose a "
                "LLaMA-like decoder"
            )
        for branch in (layer.self_attn, layer.mlp):
            branch.register_forward_hook(apply)


def choose_layers(
    depth: int, num_layers: int, layer_step: int, layers: tuple[int, ...] | None, section: str
) -> tuple[int, ...]:
    """Return the layers to keep: the listed ones, or `num_layers` of them, `layer_step` apart.

    Args:
        depth: Number of layers of the decoder.
        num_layers: Number of layers to keep.
        layer_step: Distance between them.
        layers: Explicit list; None: `num_layers` and `layer_step` decide.
        section: Path of the settings in the YAML, for messages.

    Raises:
        ConfigError: The decoder does not have a layer that is requested.

    Example:
        >>> choose_layers(8, 4, 2, None, "finetune")
        (0, 2, 4, 6)
    """
    if layers is None:
        if num_layers * layer_step > depth + layer_step - 1:
            most = (depth + layer_step - 1) // layer_step
            step = f" with layer_step {layer_step}" if layer_step > 1 else ""
            raise ConfigError(
                f"{section}.num_layers is {num_layers}{step} but there are {depth} layers; choose 1-{most}"
            )
        return tuple(range(0, num_layers * layer_step, layer_step))
    wrong = [index for index in layers if not 0 <= index < depth]
    if wrong or not layers:
        raise ConfigError(f"{section}.layers is {list(layers)} but there are {depth} layers; choose from 0-{depth - 1}")
    return layers


def evenly_spaced(depth: int, num_layers: int) -> tuple[int, ...]:
    """Return `num_layers` of `depth` layers, among them the first and the last if there are two or more.

    Example:
        >>> evenly_spaced(8, 4)
        (0, 2, 5, 7)
    """
    last = max(1, num_layers - 1)
    return tuple((2 * index * (depth - 1) + last) // (2 * last) for index in range(num_layers))


def layers_per_block(depth: int, num_blocks: int) -> int:
    """Return the number of layers in each of `num_blocks` blocks; 0 if there are no blocks.

    Raises:
        ConfigError: The blocks do not have the same depth.
    """
    if num_blocks and depth % num_blocks:
        raise ConfigError(
            f"distill.num_blocks is {num_blocks}, which does not divide a depth of {depth}; "
            "choose a common divisor of the depths of teacher and student"
        )
    return depth // num_blocks if num_blocks else 0


def linear_names(decoder: PreTrainedModel) -> set[str]:
    """Return the names of the linear maps of the layers, such as `up_proj`, each also with the modules around it."""
    names = [
        name for name, module in decoder.named_modules() if isinstance(module, nn.Linear) and name.startswith("layers.")
    ]
    return {".".join(name.split(".")[start:]) for name in names for start in range(name.count(".") + 1)}


def compile_layers(decoder: PreTrainedModel) -> None:
    """Compile the norms and the MLP of every layer; attention, whose mask changes with every batch, stays as it is.

    Raises:
        ConfigError: This machine cannot compile.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=decoder.device))
    except Exception as error:  # the type depends on what is missing
        raise ConfigError(
            f"torch_compile is true, but torch cannot compile here ({one_line(error)}); install a C++ compiler or set "
            "it false"
        ) from None
    for layer in decoder.layers:
        for part in layer.children():
            if part is not layer.self_attn:
                part.compile(dynamic=True)
