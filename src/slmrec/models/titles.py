"""What a language model knows of items: vectors of their titles, read once, and a learned map that joins them."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from slmrec.errors import ConfigError
from slmrec.models.backbone import load_decoder, resolve

MAX_TITLE_TOKENS = 64
"""Longer titles are cut."""
_BATCH = 64
_TINY = 1e-12

TitleSide = Literal["input", "score", "both"]
"""Where titles count: where the history is read, in the scores, or in both."""


class TitleReader(NamedTuple):
    """How titles became vectors, so that those of new items can, too."""

    source: str
    """Of the language model, as in `load_backbone`."""
    layer: int
    """After how many layers its states are read."""
    mean: Tensor
    """(H,) of the states of the known titles."""
    axes: Tensor
    """(H, C) from states without their mean to vectors."""

    def project(self, states: Tensor) -> Tensor:
        """(n, C) of the states (n, H) of `read_titles`; rows that are 0 stay 0."""
        vectors = (states.double() - self.mean.double()) @ self.axes.double()
        return vectors.float() * (states.abs().sum(dim=1) > 0)[:, None]


class ItemText(NamedTuple):
    """Vectors of item texts, which a model joins to its item vectors."""

    vectors: Tensor
    """(V+1, C) reduced text vectors; row 0 and items without text are zero."""
    reader: TitleReader | None = None
    """How texts become vectors, so that those of new items can be read; None if it is not known."""


class TitleMap(nn.Module):
    """A learned linear map of fixed title vectors; items without a title have the vector 0.

    Args:
        num_items: V.
        num_components: C, the width of the title vectors.
        width: T, what they are mapped to.
    """

    vectors: Tensor
    """(V+1, C); row 0 is padding."""

    def __init__(self, num_items: int, num_components: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_items + 1, num_components))
        self.reader: TitleReader | None = None
        """How the vectors were made; folders of earlier versions do not tell."""
        self.map = nn.Linear(num_components, width, bias=False)
        nn.init.normal_(self.map.weight, std=0.02)

    def forward(self, items: Tensor | None = None) -> Tensor:
        """(..., T) of some items, or (V+1, T) of all."""
        mapped: Tensor = self.map(self.vectors if items is None else self.vectors[items])
        return mapped


def read_titles(
    source: str, titles: list[str | None], layer: int, progress: Callable[[int], None] | None = None
) -> Tensor:
    """(V+1, H) the mean of a pretrained decoder's hidden states over the tokens of each title, on the CPU.

    Rows of items without a title, and row 0, are 0.

    Args:
        source: of the decoder, as in `load_backbone`.
        titles: of the items 1..V.
        layer: after how many layers the states are read.
        progress: called after each batch with the number of titles in it.

    Raises:
        CheckpointError: the source cannot be found, or is not a decoder.
        ConfigError: it has fewer layers.
    """
    decoder = load_decoder(source).eval()
    depth = len(decoder.layers)
    if layer > depth:
        raise ConfigError(f"titles.layer is {layer} but there are {depth} layers; choose 1-{depth}")
    decoder.layers = decoder.layers[: layer + (layer < depth)]  # the state after the last one has been normalised
    decoder.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(resolve(source))
    named = [(item, title) for item, title in enumerate(titles, 1) if title and title.strip()]
    tokens = tokenizer([title for _, title in named], add_special_tokens=False)["input_ids"] if named else []
    rows = [torch.tensor(ids[:MAX_TITLE_TOKENS]) for ids in tokens]
    vectors = torch.zeros(len(titles) + 1, decoder.config.hidden_size)
    order = np.argsort([len(row) for row in rows], kind="stable")
    for at in range(0, len(order), _BATCH):
        chosen = order[at : at + _BATCH]
        items = torch.tensor([named[row][0] for row in chosen])
        vectors[items] = _pooled(decoder, [rows[row] for row in chosen], layer)
        if progress:
            progress(len(chosen))
    return vectors


def _pooled(decoder: nn.Module, rows: list[Tensor], layer: int) -> Tensor:
    """(B, H) means over tokens; pads stand on the right, where a causal decoder cannot see them."""
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    inside = (torch.arange(tokens.shape[1]) < lengths[:, None]).float()
    with torch.inference_mode():
        output = decoder(
            input_ids=tokens.to(next(decoder.parameters()).device), output_hidden_states=True, use_cache=False
        )
    states = output.hidden_states[layer].float().cpu()
    means: Tensor = (states * inside[:, :, None]).sum(dim=1) / lengths[:, None]
    return means


class Whitened(NamedTuple):
    """Title vectors, and the map that makes them."""

    vectors: Tensor
    """(V+1, C)."""
    mean: Tensor
    """(H,), as in `TitleReader`."""
    axes: Tensor
    """(H, C), as there."""


def whitened(vectors: Tensor, num_components: int) -> Whitened:
    """The leading principal components of title vectors, half-way to all having the same scale.

    A component of standard deviation s is divided by sqrt(s), and all by their root mean square, so that a title's
    vector has a norm near sqrt(C). Rows that are 0 stay 0, and do not count for the mean.

    Args:
        vectors: (V+1, H) of `read_titles`.
        num_components: C, at most H.
    """
    known = vectors.abs().sum(dim=1) > 0
    centred = vectors[known].double()
    mean = centred.mean(dim=0)
    centred = centred - mean
    values, axes = torch.linalg.eigh(centred.T @ centred / max(1, len(centred)))
    order = values.argsort(descending=True)[:num_components]
    scales = values[order].clamp(min=values.max() * 1e-9 + _TINY).sqrt()
    components = centred @ axes[:, order] / scales.sqrt()
    result = torch.zeros(len(vectors), num_components)
    size = components.square().mean().sqrt().clamp(min=_TINY)
    result[known] = (components / size).float()
    return Whitened(result, mean.float(), (axes[:, order] / scales.sqrt() / size).float())
