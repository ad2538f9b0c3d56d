"""Dropout inside the layers of a decoder."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from slmrec.errors import ConfigError


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
