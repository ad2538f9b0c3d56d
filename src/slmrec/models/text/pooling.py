"""Pooling of sentence encoders, read from a folder or hub id that `sentence-transformers` wrote.

`modules.json` names the modules: the transformer, then pooling, and optionally dense layers and normalisation.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import cached_file

from slmrec.errors import CheckpointError
from slmrec.files import one_line

Pool = Callable[[Tensor, Tensor], Tensor]
"""Function of hidden states (B, N, H) and the mask (B, N, 1) of their tokens; it returns vectors (B, H)."""
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"Tanh": torch.tanh, "Identity": lambda vectors: vectors}


def mean(states: Tensor, is_token: Tensor) -> Tensor:
    """Return the mean over the tokens."""
    return (states * is_token).sum(dim=1) / is_token.sum(dim=1)


def _last(states: Tensor, is_token: Tensor) -> Tensor:
    return states[torch.arange(len(states)), is_token.sum(dim=1)[:, 0].long() - 1]


_POOLS: dict[str, Pool] = {
    "cls_token": lambda states, _: states[:, 0],
    "max_tokens": lambda states, is_token: states.masked_fill(is_token == 0, -torch.inf).amax(dim=1),
    "mean_tokens": mean,
    "mean_sqrt_len_tokens": lambda states, is_token: (states * is_token).sum(dim=1) / is_token.sum(dim=1).sqrt(),
    "lasttoken": _last,
}
"""Ways to pool by their names in `1_Pooling/config.json`; several are concatenated in this order."""


@dataclass(frozen=True)
class Pooling:
    """Steps from hidden states to the vector of a text; by default their mean."""

    pools: tuple[str, ...] = ("mean_tokens",)
    """Keys of `_POOLS`."""
    then: tuple[Callable[[Tensor], Tensor], ...] = ()
    """Functions of the pooled vectors: dense layers and normalisation."""
    max_tokens: int | None = None
    """Number of tokens after which texts are cut off."""
    lower_case: bool = False
    """True if texts are read in lower case."""

    def __call__(self, states: Tensor, is_token: Tensor) -> Tensor:
        """Return the vectors (B, H) of texts from their hidden states (B, N, H)."""
        vectors = torch.cat([_POOLS[name](states, is_token) for name in self.pools], dim=1)
        for step in self.then:
            vectors = step(vectors)
        return vectors


def read_pooling(source: str, setting: str) -> Pooling | None:
    """Return the pooling of a sentence encoder; None if the source has no `modules.json`.

    Args:
        source: A folder or hub id.
        setting: Path of the source in the YAML, for messages.

    Raises:
        CheckpointError: A module is of a kind that is not supported, or its file is missing or damaged.
    """
    try:
        modules = _read_json(source, "", "modules.json")
        if modules is None:
            return None
        return _pooling(source, [(str(module["type"]).split(".")[-1], str(module["path"])) for module in modules])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{setting} is {source!r}, whose modules.json cannot be followed ({one_line(error)}); give a sentence "
            "encoder of a transformer, pooling, and optionally dense layers and normalisation"
        ) from None


def _pooling(source: str, modules: list[tuple[str, str]]) -> Pooling:
    if [kind for kind, _ in modules[:2]] != ["Transformer", "Pooling"] or modules[0][1]:
        raise ValueError(f"it names {', '.join(kind for kind, _ in modules)}")
    pooling = _read_json(source, modules[1][1], "config.json") or {}
    pools = tuple(name for name in _POOLS if pooling.get(f"pooling_mode_{name}"))
    others = [key for key, value in pooling.items() if key.startswith("pooling_mode") and value is True]
    if not pools or len(others) > len(pools):
        raise ValueError(f"{modules[1][1]}/config.json has {', '.join(others) or 'no pooling mode'}")
    text = _read_json(source, "", "sentence_bert_config.json") or {}
    then = tuple(_step(source, kind, path) for kind, path in modules[2:])
    return Pooling(pools, then, text.get("max_seq_length"), bool(text.get("do_lower_case")))


def _step(source: str, kind: str, path: str) -> Callable[[Tensor], Tensor]:
    if kind == "Normalize":
        return nn.functional.normalize
    if kind != "Dense":
        raise ValueError(f"it names {kind}")
    activation = str((_read_json(source, path, "config.json") or {})["activation_function"]).split(".")[-1]
    weights = load_file(_file(source, path, "model.safetensors") or f"{path}/model.safetensors")
    function = _ACTIVATIONS[activation]
    return lambda vectors: function(nn.functional.linear(vectors, weights["linear.weight"], weights.get("linear.bias")))


def _read_json(source: str, folder: str, name: str) -> Any:
    """Return the content of a JSON file of a source; None if there is no such file."""
    file = _file(source, folder, name)
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def _file(source: str, folder: str, name: str) -> str | None:
    if not re.fullmatch(r"\w[\w-]*|", folder):
        raise ValueError(f"the path {folder!r} is not a folder beside it")
    try:
        found = cached_file(source, name, subfolder=folder)
    except OSError:
        return None
    return None if found is None else str(found)
