"""Text vectors from plain words: hashed words and character n-grams with TF-IDF weights, reduced by truncated SVD.

A text is the weighted sum of its words, and a word the sum of a bucket of its own and of those of its n-grams. Words
that several texts share bring their vectors together; n-grams do so for related words, and give a direction to a text
whose words occur in no other text. Random projections of what the singular vectors leave out keep texts apart that
differ by rare words alone. Nothing is downloaded.
"""

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmrec.config import ItemTextConfig

_WORD = re.compile(r"\w+")
_NGRAM_SIZES = (3, 4, 5)
_OVERSAMPLING, _ITERATIONS, _SEED = 32, 2, 0
VERSION = 2
"""Version of the vectors that this module makes from given settings and texts."""
_REMAINDER = 1 / 3
"""Share of the components that are random projections of what the singular vectors leave out."""
DEFAULT_WIDTH = 384
TEXTS_PER_COMPONENT = 4


class FittedWords(NamedTuple):
    """Recipe of word vectors, fitted to the texts of a catalogue."""

    idf: Tensor
    """(num_hashes,) weights of words by bucket."""
    ngram_idf: Tensor
    """(num_hashes,) weights of n-grams by bucket."""
    buckets: Tensor
    """(F,) buckets that occur, ascending; those of n-grams begin at num_hashes."""
    axes: Tensor
    """(F, C) float16: vectors of these buckets."""

    def check(self, num_hashes: int, width: int) -> None:
        """Check shapes and values of a recipe that was read from a file.

        Raises:
            ValueError: They do not fit together.
        """
        buckets = self.buckets
        shapes = [tuple(part.shape) for part in self]
        if shapes != [(num_hashes,), (num_hashes,), (len(buckets),), (len(buckets), width)]:
            raise ValueError(f"the recipe of words has the shapes {shapes}")
        if buckets.dtype != torch.int64 or (buckets.diff() <= 0).any():
            raise ValueError("the buckets of words are not ascending numbers")


def default_width(num_texts: int) -> int:
    """Return C where it is not set: with fewer texts for each component, all texts would be equally dissimilar."""
    return max(1, min(DEFAULT_WIDTH, num_texts // TEXTS_PER_COMPONENT))


def fit_words(texts: Sequence[str], num_components: int, settings: ItemTextConfig) -> FittedWords:
    """Return the recipe of word vectors for a catalogue.

    Args:
        texts: Texts that are not empty.
        num_components: C, at most the number of texts; a third are random projections.
        settings: `num_hashes` and `ngram_weight`.

    Example:
        >>> fit_words(["red lamp", "red chair"], 1, ItemTextConfig()).axes.shape[1]
        1
    """
    documents = [_words(text) for text in texts]
    words = sorted({word for document in documents for word in document})
    num_hashes = settings.num_hashes
    idf = _idf(({_hash(word, num_hashes) for word in document} for document in documents), len(texts), num_hashes)
    ngram_idf = _idf((_ngrams(word, num_hashes) for word in words), len(words), num_hashes)
    counts, features = _factors(documents, words, idf, ngram_idf, settings)
    buckets, columns = np.unique(features.columns, return_inverse=True)
    features = features._replace(columns=columns, shape=(len(words), len(buckets)))
    num_singular = num_components - int(num_components * _REMAINDER)
    axes = _right_singular_vectors(counts, features, num_singular)
    axes = torch.cat([axes, _remainder(axes, num_components - num_singular)], dim=1)
    return FittedWords(idf, ngram_idf, torch.from_numpy(buckets), axes.half())


def read_words(fitted: FittedWords, texts: Sequence[str], settings: ItemTextConfig) -> Tensor:
    """Return the vectors (n, C) of texts; a text without a known word or n-gram has the vector 0."""
    documents = [_words(text) for text in texts]
    words = sorted({word for document in documents for word in document})
    counts, features = _factors(documents, words, fitted.idf, fitted.ngram_idf, settings)
    rows = np.searchsorted(fitted.buckets.numpy(), features.columns).clip(max=len(fitted.buckets) - 1)
    is_known = fitted.buckets.numpy()[rows] == features.columns
    shape = len(words), len(fitted.buckets)
    known = _Entries(features.rows[is_known], rows[is_known], features.values[is_known], shape)
    return counts.matrix() @ (known.matrix() @ fitted.axes.float())


_Row = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Number of the row, columns and values of the entries of one row of a sparse matrix."""


class _Entries(NamedTuple):
    """Entries of a sparse matrix."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float32]
    shape: tuple[int, int]

    def matrix(self) -> Tensor:
        """Return the matrix in compressed rows, the format of fast products."""
        order = np.lexsort((self.columns, self.rows))
        starts = np.searchsorted(self.rows[order], np.arange(self.shape[0] + 1))
        columns, values = torch.from_numpy(self.columns[order]), torch.from_numpy(self.values[order])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse matrices a beta
            return torch.sparse_csr_tensor(torch.from_numpy(starts), columns, values, self.shape)

    def transposed(self) -> "_Entries":
        return _Entries(self.columns, self.rows, self.values, self.shape[::-1])


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _hash(text: str, num_hashes: int) -> int:
    return crc32(text.encode()) % num_hashes


def _ngrams(word: str, num_hashes: int) -> set[int]:
    """Return the buckets of the n-grams of a word, with marks at its ends."""
    marked = f"<{word}>"
    starts = ((size, start) for size in _NGRAM_SIZES for start in range(len(marked) - size + 1))
    return {_hash(marked[start : start + size], num_hashes) for size, start in starts}


def _idf(documents: Iterable[set[int]], num: int, num_hashes: int) -> Tensor:
    counts = np.zeros(num_hashes)
    for document in documents:
        counts[list(document)] += 1
    return torch.from_numpy(np.log((1 + num) / (1 + counts)) + 1).float()


def _factors(
    documents: list[list[str]], words: list[str], idf: Tensor, ngram_idf: Tensor, settings: ItemTextConfig
) -> tuple[_Entries, _Entries]:
    """Return the weights of words in texts, with rows of norm 1, and those of buckets in words."""
    num_hashes, number = settings.num_hashes, {word: index for index, word in enumerate(words)}
    hashed = np.array([_hash(word, num_hashes) for word in words], np.int64)
    weights, ngram_weights = idf.numpy(), ngram_idf.numpy()
    in_texts = []
    for row, document in enumerate(documents):
        counts = Counter(number[word] for word in document)
        columns = np.fromiter(counts, np.int64)
        values = (1 + np.log(np.fromiter(counts.values(), np.float32))) * weights[hashed[columns]]
        in_texts.append(_row(row, columns, values, 1.0))
    in_words = [_row(row, hashed[[row]], np.ones(1, np.float32), 1.0) for row in range(len(words))]
    if settings.ngram_weight:
        for row, word in enumerate(words):
            columns = np.array(sorted(_ngrams(word, num_hashes)), np.int64)
            in_words.append(_row(row, columns + num_hashes, ngram_weights[columns], settings.ngram_weight))
    return _joined(in_texts, (len(documents), len(words))), _joined(in_words, (len(words), 2 * num_hashes))


def _row(row: int, columns: NDArray[np.int64], values: NDArray[np.float32], norm: float) -> _Row:
    scaled = values * (norm / max(float(np.linalg.norm(values)), 1e-12))
    return np.full(len(columns), row), columns, scaled.astype(np.float32)


def _joined(rows: list[_Row], shape: tuple[int, int]) -> _Entries:
    nothing: _Row = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    numbers, columns, values = (np.concatenate(parts) for parts in zip(nothing, *rows, strict=True))
    return _Entries(numbers, columns, values, shape)


def _remainder(axes: Tensor, num: int) -> Tensor:
    """Return random axes (F, num) orthogonal to some others; on them, texts differ by words that those do not hold."""
    drawn = torch.randn(len(axes), num, generator=torch.Generator().manual_seed(_SEED + 1))
    return torch.nn.functional.normalize(drawn - axes @ (axes.T @ drawn), dim=0)


def _right_singular_vectors(counts: _Entries, features: _Entries, num: int) -> Tensor:
    """Return the leading right singular vectors (F, num) of the product of two sparse matrices.

    Source: Halko et al. 2011, randomised subspace iteration; torch.svd_lowrank takes several times as long, since it
    needs the product itself.
    """
    factors = counts.matrix(), features.matrix()
    transposed = features.transposed().matrix(), counts.transposed().matrix()
    size = min(num + _OVERSAMPLING, counts.shape[0], features.shape[1])
    basis = torch.randn(features.shape[1], size, generator=torch.Generator().manual_seed(_SEED))
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(transposed[0] @ (transposed[1] @ (factors[0] @ (factors[1] @ basis)))).Q
    projected = (factors[0] @ (factors[1] @ basis)).double()
    _, rotation = torch.linalg.eigh(projected.T @ projected)
    axes = torch.zeros(features.shape[1], num)  # components beyond the rank are zero
    axes[:, : min(num, size)] = basis @ rotation.flip(1)[:, :num].float()
    return axes
