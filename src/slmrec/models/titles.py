"""Item texts: vectors that a language model reads from titles once, and a learned map that adds them to a model."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from slmrec.errors import ConfigError
from slmrec.models.backbone import load_decoder, resolve
from slmrec.models.model import ItemTable

MAX_TITLE_TOKENS = 64
"""Longer titles are truncated."""
_BATCH = 64
_TINY = 1e-12

TitleSide = Literal["input", "score", "both"]
"""Use of the text vectors: in the history that is read, in the scores, or in both."""


class TitleReader(NamedTuple):
    """Recipe by which titles become text vectors, so that titles of new items can be read too."""

    source: str
    """Source of the language model, as in `load_backbone`."""
    layer: int
    """Layer after which its hidden states are read, from 1."""
    mean: Tensor
    """(H,) mean hidden state of the titles of the data set."""
    axes: Tensor
    """(H, C) map from centred hidden states to text vectors."""

    def project(self, states: Tensor) -> Tensor:
        """Return the text vectors (n, C) of hidden states (n, H) of `read_titles`; zero rows stay zero."""
        vectors = (states.double() - self.mean.double()) @ self.axes.double()
        return vectors.float() * (states.abs().sum(dim=1) > 0)[:, None]


class ItemText(NamedTuple):
    """Vectors of item texts, which a model uses beside its item vectors."""

    vectors: Tensor
    """(V+1, C) text vectors; row 0 and the rows of items without text are zero."""
    reader: TitleReader | None = None
    """Recipe of the vectors, for the texts of new items; None if it is not known."""


class TitleMap(nn.Module):
    """Learned linear map of fixed text vectors; items without text have the vector 0.

    Args:
        num_items: V.
        num_components: C, the width of the text vectors.
        width: Output width.
    """

    vectors: Tensor
    """(V+1, C); row 0 is padding."""

    def __init__(self, num_items: int, num_components: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_items + 1, num_components))
        self.reader: TitleReader | None = None
        """Recipe of the vectors; None if it is not known."""
        self.map = nn.Linear(num_components, width, bias=False)
        nn.init.normal_(self.map.weight, std=0.02)

    def forward(self, items: Tensor | None = None) -> Tensor:
        """Return the mapped vectors (..., width) of some items, or (V+1, width) of all items."""
        mapped: Tensor = self.map(self.vectors if items is None else self.vectors[items])
        return mapped

    @property
    def num_components(self) -> int:
        """C, the width of the text vectors."""
        return int(self.vectors.shape[1])

    def table(self) -> ItemTable:
        """Return the text vectors as a table that grows with the items."""
        return ItemTable(self.vectors, lambda values: setattr(self, "vectors", values), self)


class TextAdaptor(TitleMap):
    """Learned map of fixed text vectors to item vectors: an MLP, or a linear map.

    Args:
        num_items: V.
        num_components: C, the width of the text vectors.
        width: Output width.
        hidden_size: Hidden width of the MLP; None: a linear map.
        dropout: Dropout on the text vectors.
    """

    def __init__(
        self, num_items: int, num_components: int, width: int, hidden_size: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__(num_items, num_components, width)
        sizes = [num_components, width] if hidden_size is None else [num_components, hidden_size, width]
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.GELU()] if len(layers) > 1 else []
            layers.append(nn.Linear(inputs, outputs))
            nn.init.xavier_uniform_(layers[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
        self.map = nn.Sequential(*layers)  # type: ignore[assignment]


def read_titles(
    source: str,
    titles: list[str | None],
    layer: int,
    progress: Callable[[int], None] | None = None,
    section: str = "item_text",
) -> Tensor:
    """Return the mean hidden state (V+1, H) of a pretrained decoder over the tokens of each title, on the CPU.

    Row 0 and the rows of items without a title are zero.

    Args:
        source: Source of the decoder, as in `load_backbone`.
        titles: Titles of the items 1..V.
        layer: Layer after which hidden states are read, from 1.
        progress: Called after each batch with the number of titles in it.
        section: Path of the settings in the YAML, for messages.

    Raises:
        CheckpointError: The source cannot be found, or is not a decoder.
        ConfigError: The decoder has fewer layers.
    """
    decoder = load_decoder(source, setting=f"{section}.source").eval()
    depth = len(decoder.layers)
    if layer > depth:
        raise ConfigError(f"{section}.layer is {layer} but there are {depth} layers; choose 1-{depth}")
    decoder.layers = decoder.layers[: layer + (layer < depth)]  # the last hidden state has passed the final norm
    decoder.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(resolve(source))
    named = [(item, title) for item, title in enumerate(titles, 1) if title and title.strip()]
    encoded = tokenizer([title for _, title in named], add_special_tokens=False)["input_ids"] if named else []
    tokens = [torch.tensor(ids[:MAX_TITLE_TOKENS]) for ids in encoded]
    vectors = torch.zeros(len(titles) + 1, decoder.config.hidden_size)
    order = np.argsort([len(ids) for ids in tokens], kind="stable")
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        items = torch.tensor([named[index][0] for index in batch])
        vectors[items] = _mean_states(decoder, [tokens[index] for index in batch], layer)
        if progress:
            progress(len(batch))
    return vectors


def _mean_states(decoder: nn.Module, titles: list[Tensor], layer: int) -> Tensor:
    """Return means (B, H) over tokens; padding is on the right, where a causal decoder does not see it."""
    tokens = nn.utils.rnn.pad_sequence(titles, batch_first=True)
    lengths = torch.tensor([len(title) for title in titles])
    is_token = (torch.arange(tokens.shape[1]) < lengths[:, None]).float()
    with torch.inference_mode():
        output = decoder(
            input_ids=tokens.to(next(decoder.parameters()).device), output_hidden_states=True, use_cache=False
        )
    states = output.hidden_states[layer].float().cpu()
    means: Tensor = (states * is_token[:, :, None]).sum(dim=1) / lengths[:, None]
    return means


class Whitened(NamedTuple):
    """Text vectors, and the map that computes them from hidden states."""

    vectors: Tensor
    """(V+1, C)."""
    mean: Tensor
    """(H,), as in `TitleReader`."""
    axes: Tensor
    """(H, C), as in `TitleReader`."""


def whitened(vectors: Tensor, num_components: int) -> Whitened:
    """Return the leading principal components of title vectors, half-way to equal scales of all components.

    A component of standard deviation s is divided by sqrt(s), and all components by their root mean square, so that
    the vector of a title has a norm near sqrt(C). Zero rows stay zero and are ignored in the mean.

    Args:
        vectors: (V+1, H) hidden states of `read_titles`.
        num_components: C, at most H.

    Example:
        >>> whitened(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), 1).vectors.abs().tolist()
        [[0.0], [1.0], [1.0]]
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
