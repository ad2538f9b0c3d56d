"""Checkpoints of the original SLMRec code: the names of their weights, and the model that they make."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slmrec.config import DecoderSettings, LoraSettings
from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender

_LLM = re.compile(r"^llama_model\.(base_model\.model\.)?")
_LORA = re.compile(r"^decoder\.(layers\.\d+\.[\w.]+?\.(\w+)\.lora_[AB])(?:\.default)?\.weight$")
_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_UNUSED = re.compile(r"^down_layer_list\.|\.inv_freq$")
"""Heads that only training uses, and buffers that newer versions of transformers compute."""
_HEADS = ("input_embeds.weight", "input_proj.weight", "input_proj.bias", "score.weight")
_NOT_ARCHITECTURE = (
    "architectures",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "transformers_version",
    "_name_or_path",
)


def decoder_of_reference(
    weights: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    *,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    max_history_items: int,
    lora_alpha: float | None = None,
) -> DecoderRecommender:
    """Return the model of a state dict that the original code saved, in eval mode; adapters stay adapters.

    Positions are right-aligned, as in the original code. The prompt is looked up in the token embeddings of the
    checkpoint.

    Args:
        weights: Tensors by the original names: `llama_model.base_model.model.*` (a LLaMA, with adapters or without),
            `input_embeds`, `input_proj`, `score`, and optionally `down_layer_list`, which only training uses.
        architecture: Sizes of the LLaMA in transformers' names; the depth is taken from the checkpoint.
        prompt_ids: P tokens before the items.
        response_ids: S tokens after the items.
        max_history_items: L, the length to which the original code pads histories.
        lora_alpha: Scaling of the adapters, alpha / r; None: alpha is r.

    Raises:
        CheckpointError: A weight is missing, unknown or of another shape.
        ConfigError: The architecture makes no decoder, or a token id is outside the token embeddings.
    """
    named = {_LLM.sub("decoder.", name): value.float() for name, value in weights.items() if not _UNUSED.search(name)}
    lora = {f"{match[1]}.default.weight": value for name, value in named.items() if (match := _LORA.match(name))}
    plain = {name.replace(".base_layer.", "."): v for name, v in named.items() if not _LORA.match(name)}
    missing = [name for name in (*_HEADS, "decoder.embed_tokens.weight") if name not in plain]
    if missing:
        raise CheckpointError(
            f"weights: {missing[0]} is missing ({len(missing)} of the reference's heads and tables in all); give the "
            "whole state dict of the reference's model"
        )
    settings = DecoderSettings(
        backbone="reference",
        num_layers=_depth(plain),
        lora=LoraSettings(**_lora_settings(lora, lora_alpha)) if lora else None,
        positions="right_aligned",
        max_history_items=max_history_items,
    )
    backbone = _backbone(plain, architecture, prompt_ids, response_ids)
    model = build_decoder(settings, backbone, plain["input_embeds.weight"], None, section="weights", train_items=False)
    heads = {name: plain[name] for name in _HEADS[1:]}
    adapters = {f"decoder.{name}": value for name, value in lora.items()}
    own = {name: value for name, value in model.state_dict().items() if "lora_" in name or name in heads}
    _copy(own, heads | adapters)
    model.eval()
    return model


def _depth(plain: Mapping[str, Tensor]) -> int:
    layers = sorted({int(match[1]) for name in plain if (match := _LAYER.match(name))})
    if layers != list(range(len(layers))) or not layers:
        raise CheckpointError(
            f"weights: layers {', '.join(map(str, layers)) or 'none'}, expected 0, 1, ... without a gap; renumber"
        )
    return len(layers)


def _backbone(
    plain: Mapping[str, Tensor], architecture: Mapping[str, Any], prompt_ids: Sequence[int], response_ids: Sequence[int]
) -> Backbone:
    """Return the LLaMA of a checkpoint, and the vectors of the prompt from its token embeddings."""
    table = plain["decoder.embed_tokens.weight"]
    sizes = {key: value for key, value in architecture.items() if key not in _NOT_ARCHITECTURE}
    decoder = random_decoder(
        {"model_type": "llama"} | sizes | {"num_hidden_layers": _depth(plain), "vocab_size": len(table)}
    )
    known = {name.removeprefix("decoder."): value for name, value in plain.items() if name not in _HEADS}
    _copy(dict(decoder.named_parameters()), known)
    prompt = [_token_vectors(table, ids, name) for ids, name in ((prompt_ids, "prompt"), (response_ids, "response"))]
    return Backbone(decoder, *prompt)


def _token_vectors(table: Tensor, ids: Sequence[int], name: str) -> Tensor:
    outside = [token for token in ids if not 0 <= token < len(table)]
    if outside:
        raise ConfigError(
            f"{name} ids: {outside[0]} is outside the checkpoint's token table (0-{len(table) - 1}); take the ids of "
            "its own tokenizer"
        )
    return table[torch.tensor(ids, dtype=torch.int64)]


def _lora_settings(lora: Mapping[str, Tensor], alpha: float | None) -> dict[str, Any]:
    ranks = {value.shape[0] for name, value in lora.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise CheckpointError(f"weights: adapters of the ranks {sorted(ranks)}, expected one; merge them first")
    (rank,) = ranks
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in lora})
    return {"r": rank, "lora_alpha": rank if alpha is None else alpha, "lora_dropout": 0.0, "target_modules": targets}


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy tensors by name.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    wrong = sorted(own.keys() ^ given.keys())
    if wrong:
        fault = "missing" if wrong[0] in own else "unknown"
        raise CheckpointError(
            f"weights: {wrong[0]} is {fault} ({len(wrong)} names differ in all); give a checkpoint of the reference "
            "and the configuration of its own backbone"
        )
    for name, value in given.items():
        if own[name].shape != value.shape:
            raise CheckpointError(
                f"weights: {name} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)} after the "
                "configuration; give the configuration of its own backbone"
            )
        own[name].copy_(value)
