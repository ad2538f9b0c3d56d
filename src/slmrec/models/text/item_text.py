"""Item texts of a model: their vectors, the recipe by which they were read, and a learned map of them."""

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from slmrec.config import ItemTextConfig
from slmrec.config.item_text import WORDS
from slmrec.models.model import ItemTable
from slmrec.models.text.words import FittedWords

TitleSide = Literal["input", "score", "both"]
"""Use of the text vectors: in the history that is read, in the scores, or in both."""


class TextReader(NamedTuple):
    """Recipe by which texts become vectors, so that texts of new items can be read too."""

    settings: ItemTextConfig
    """Source, template and whitening."""
    mean: Tensor
    """(H,) mean vector of the texts of the data set, as the source gives them."""
    axes: Tensor
    """(H, C) map from centred vectors of the source to text vectors."""
    words: FittedWords | None = None
    """Recipe of the vectors of the source if it is `words`."""

    @classmethod
    def of(cls, settings: ItemTextConfig, tensors: dict[str, Tensor]) -> "TextReader":
        """Return the reader of some settings and the result of `tensors`.

        Raises:
            ValueError: The tensors do not belong to these settings, or do not fit together.
        """
        values = dict(tensors)
        mean, axes = values.pop("mean"), values.pop("axes")
        if mean.dim() != 1 or axes.dim() != 2 or len(mean) != len(axes):
            raise ValueError(f"mean {tuple(mean.shape)} does not fit axes {tuple(axes.shape)}")
        words = FittedWords(**{name.removeprefix("words."): part for name, part in values.items()}) if values else None
        if (words is not None) != (settings.source == WORDS):
            raise ValueError(f"tensors of words for the source {settings.source!r}")
        if words is not None:
            words.check(settings.num_hashes, len(mean))
        return cls(settings, mean, axes, words)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the recipe by name."""
        words = {} if self.words is None else self.words._asdict()
        return {"mean": self.mean, "axes": self.axes, **{f"words.{name}": part for name, part in words.items()}}

    def reads_like(self, other: "TextReader") -> bool:
        """True if the source gives the same vectors by both recipes, before whitening."""
        ignored = {"whitening", "power", "eps", "shuffled", "required", "num_components"}
        mine, its = (reader.settings.model_dump(exclude=ignored) for reader in (self, other))
        tensors = zip(self.words or (), other.words or (), strict=True)
        return mine == its and all(part is same for part, same in tensors)

    def project(self, vectors: Tensor) -> Tensor:
        """Return the text vectors (n, C) of vectors (n, H) of the source; zero rows stay zero."""
        projected = (vectors.double() - self.mean.double()) @ self.axes.double()
        return projected.float() * (vectors.abs().sum(dim=1) > 0)[:, None]


class ItemText(NamedTuple):
    """Vectors of item texts, which a model uses beside its item vectors."""

    vectors: Tensor
    """(V+1, C) text vectors; row 0 and the rows of items without text are zero."""
    reader: TextReader | None = None
    """Recipe of the vectors, for the texts of new items; None if it is not known."""


class TextMap(nn.Module):
    """Learned map of fixed text vectors.

    Args:
        num_items: V.
        num_components: C, the width of the text vectors.
        network: Maps vectors (..., C) to the output width.
    """

    vectors: Tensor
    """(V+1, C); row 0 is padding."""

    def __init__(self, num_items: int, num_components: int, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_items + 1, num_components))
        self.reader: TextReader | None = None
        """Recipe of the vectors; None if it is not known."""
        self.map = network

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


class TitleMap(TextMap):
    """Learned linear map of fixed text vectors; items without text have the vector 0.

    Args:
        num_items: V.
        num_components: C, the width of the text vectors.
        width: Output width.
    """

    def __init__(self, num_items: int, num_components: int, width: int) -> None:
        linear = nn.Linear(num_components, width, bias=False)
        nn.init.normal_(linear.weight, std=0.02)
        super().__init__(num_items, num_components, linear)


class TextAdaptor(TextMap):
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
        sizes = [num_components, width] if hidden_size is None else [num_components, hidden_size, width]
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.GELU()] if len(layers) > 1 else []
            layers.append(nn.Linear(inputs, outputs))
        super().__init__(num_items, num_components, nn.Sequential(*layers))
