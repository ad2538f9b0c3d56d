"""Packed attention inside any transformers decoder, through transformers' attention interface.

A batch is one sequence [prefix; user 1; user 2; ...] without padding. The decoder runs unmodified: the attention
pattern (`masks.py`) travels as the keyword `pattern` through the decoder into every attention layer, which passes its
queries, keys and values to `pattern.attend`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from slmrec.errors import ConfigError
from slmrec.models.packed.attention import AttentionSettings, KeysValues
from slmrec.models.packed.masks import AttentionPattern, NewestTokenAttention, PackedAttention
from slmrec.models.packed.rows import PaddedAttention

NAME = "slmrec_packed"
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
_IGNORED_KEYWORDS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "is_causal"}


class _KeysValuesComputed(Exception):  # noqa: N818 - it carries a result and is no error
    """Carries the keys and values out of a layer, so that the rest of the layer is not computed."""

    def __init__(self, keys_values: KeysValues) -> None:
        self.keys_values = keys_values


@dataclass
class _KeysValuesOnly:
    """Attention pattern that stops a layer as soon as its keys and values are computed."""

    max_tokens: int

    def attend(self, layer: int, query: Tensor, own: KeysValues, settings: AttentionSettings) -> Tensor:
        raise _KeysValuesComputed(own)


def run_newest_tokens(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Forward pre-hook of the last decoder layer that lets it run for the newest token of each user only.

    The layer is called once with all tokens, up to its keys and values, and then with the newest tokens.
    """
    packed = keywords.get("pattern")
    if not isinstance(packed, PackedAttention) or packed.newest_tokens is None:
        return None
    hidden, *rest = arguments
    try:
        layer.forward(hidden, *rest, **keywords | {"pattern": _KeysValuesOnly(packed.max_tokens)})
    except _KeysValuesComputed as computed:
        keys_values = computed.keys_values
    else:
        raise ConfigError(f"{type(layer).__name__} does not use transformers' attention interface")
    newest = packed.newest_tokens
    cosine, sine = keywords["position_embeddings"]
    of_newest = {
        "pattern": NewestTokenAttention(packed, keys_values),
        "position_embeddings": (cosine[:, newest], sine[:, newest]),
        "position_ids": keywords["position_ids"][:, newest],
    }
    return (hidden[:, newest], *rest), keywords | of_newest


def use_packed_attention(decoder: PreTrainedModel) -> None:
    """Make a decoder attend through the pattern that it is called with."""
    decoder.set_attn_implementation(NAME)
    decoder.layers[-1].register_forward_pre_hook(run_newest_tokens, with_kwargs=True)


def check_attention(decoder: PreTrainedModel) -> None:
    """Refuse decoders with unsupported attention; settings that only a layer knows are checked when it runs.

    Raises:
        ConfigError: The architecture does not use transformers' attention interface, or has unsupported layers.
    """
    name = type(decoder).__name__
    if not decoder._supports_attention_backend:
        raise ConfigError(f"backbone {name}: its attention cannot be replaced; choose a LLaMA-like decoder")
    unsupported = set(getattr(decoder.config, "layer_types", None) or ()) - _SUPPORTED_LAYERS
    if not getattr(decoder.config, "is_causal", True) or getattr(decoder.config, "use_bidirectional_attention", None):
        unsupported.add("bidirectional")
    if unsupported:
        types = ", ".join(sorted(unsupported))
        raise ConfigError(f"backbone {name}: it has {types} layers; choose a decoder with causal attention in all")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    pattern: AttentionPattern | PaddedAttention | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Attention function that transformers calls in every layer; query, key, value: (rows, heads, tokens, head width).

    A packed batch is one row.
    """
    name = type(module).__name__
    if pattern is None:
        raise ConfigError(f"{name} was called without an attention pattern; call DecoderRecommender.encode")
    unknown = [word for word, setting in keywords.items() if setting is not None and word not in _IGNORED_KEYWORDS]
    if unknown:
        raise ConfigError(f"backbone with {name}: {', '.join(unknown)} is not supported; choose another backbone")
    if sliding_window is not None and sliding_window < pattern.max_tokens:
        raise ConfigError(
            f"backbone with {name}: its sliding window is {sliding_window} tokens but prompt and history have up to "
            f"{pattern.max_tokens}; lower max_history_items or shorten the prompt"
        )
    settings = AttentionSettings(scaling, softcap, dropout)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    if isinstance(pattern, PaddedAttention):
        return pattern.attend_rows(query, KeysValues(key, value), settings), None
    query, key, value = query[0], key[0], value[0]
    output = pattern.attend(module.layer_idx, query, KeysValues(key, value), settings)  # type: ignore[arg-type]
    return output[None], None


_register: Callable[..., None] = AttentionInterface.register
_register(NAME, _attend)  # no mask function is registered, so transformers builds no mask: the pattern contains it
