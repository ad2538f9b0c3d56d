"""The engine's attention: one packed row, whose users share the prompt and see nothing of each other.

A batch is one row [prefix; user 1; user 2; ...] without pads. Registered with transformers' attention interface, so
that any decoder which uses it runs unmodified: the plan of the row (`plans.py`) travels as the keyword `packing`
through the decoder into every attention layer, which hands queries, keys and values to `packing.attend`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from slmrec.errors import ConfigError
from slmrec.models.packed.attention import KeysValues, ScoreRule
from slmrec.models.packed.masks import NewestQueries, PackedRow, Packing

NAME = "slmrec_packed"
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
_HARMLESS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "is_causal"}


class _KeysTakenError(Exception):
    """Carries a layer's keys and values out of it, so that what the layer would do with them is not computed."""

    def __init__(self, answers: KeysValues) -> None:
        self.answers = answers


@dataclass
class _TakeKeys:
    longest: int

    def attend(self, layer: int, query: Tensor, own: KeysValues, rule: ScoreRule) -> Tensor:
        raise _KeysTakenError(own)


def read_newest(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """A pre-hook of the last decoder layer, which then runs on the newest token of each user alone, if so planned.

    The layer is entered once with all tokens, up to its keys and values, and then run on the newest tokens over them.
    """
    row = keywords.get("packing")
    if not isinstance(row, PackedRow) or row.newest is None:
        return None
    hidden, *others = arguments
    try:
        layer.forward(hidden, *others, **keywords | {"packing": _TakeKeys(row.longest)})
    except _KeysTakenError as taken:
        answers = taken.answers
    else:
        raise ConfigError(f"{type(layer).__name__} does not attend through transformers' attention interface")
    at = row.newest
    cosine, sine = keywords["position_embeddings"]
    fewer = {
        "packing": NewestQueries(row, answers),
        "position_embeddings": (cosine[:, at], sine[:, at]),
        "position_ids": keywords["position_ids"][:, at],
    }
    return (hidden[:, at], *others), keywords | fewer


def use_packed_attention(decoder: PreTrainedModel) -> None:
    """Lets a decoder attend through the plan it is given."""
    decoder.set_attn_implementation(NAME)
    decoder.layers[-1].register_forward_pre_hook(read_newest, with_kwargs=True)


def check_attention(decoder: PreTrainedModel) -> None:
    """Refuses decoders whose attention is of another kind; what a layer alone knows is checked when it attends.

    Raises:
        ConfigError: its architecture does not use transformers' attention interface, or has layers of another kind.
    """
    name = type(decoder).__name__
    if not decoder._supports_attention_backend:
        raise ConfigError(f"backbone {name}: its attention cannot be replaced; choose a LLaMA-like decoder")
    odd = set(getattr(decoder.config, "layer_types", None) or ()) - _SUPPORTED_LAYERS
    if not getattr(decoder.config, "is_causal", True) or getattr(decoder.config, "use_bidirectional_attention", None):
        odd.add("bidirectional")
    if odd:
        kinds = ", ".join(sorted(odd))
        raise ConfigError(f"backbone {name}: it has {kinds} layers; choose a decoder with causal attention in all")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; query, key, value: (1, heads, tokens, head width)."""
    name = type(module).__name__
    if packing is None:
        raise ConfigError(f"{name} was called without a plan of its row; call DecoderRecommender.encode")
    unknown = [word for word, setting in others.items() if setting is not None and word not in _HARMLESS]
    if unknown:
        raise ConfigError(f"backbone with {name}: {', '.join(unknown)} is not supported; choose another backbone")
    if sliding_window is not None and sliding_window < packing.longest:
        raise ConfigError(
            f"backbone with {name}: its sliding window is {sliding_window} tokens but prompt and history have up to "
            f"{packing.longest}; lower max_history_items or shorten the prompt"
        )
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    rule = ScoreRule(scaling, softcap, dropout)
    return packing.attend(module.layer_idx, query, KeysValues(key, value), rule)[None], None  # type: ignore[arg-type]


_register: Callable[..., None] = AttentionInterface.register
_register(NAME, _attend)  # no function for masks, so that transformers builds none: the plan says what is visible
