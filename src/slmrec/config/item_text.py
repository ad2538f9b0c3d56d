"""Vectors of item texts, which base models, teacher and student may read."""

from collections.abc import Iterator
from pathlib import PurePath
from string import Formatter
from typing import Literal

from pydantic import Field, field_validator

from slmrec.config.section import Section, check

WORDS, MINILM = "words", "all-minilm-l6-v2"
VECTOR_FORMATS = (".npy", ".safetensors", ".pkl", ".parquet")


class ItemTextConfig(Section):
    """Vectors of item texts. Defaults: words, whitened over their full width."""

    source: str = WORDS
    """Source of the vectors.

    `words`: hashed words and character n-grams, which need no download. A sentence encoder or a language model: a hub
    id, a local folder, a .gguf file, `all-minilm-l6-v2`, `smollm2-135m` or `gemma-3-270m`. Or a file of vectors (.npy,
    .safetensors, .pkl in the order of the items; .parquet with the columns `item_id` and `vector`).
    """
    template: str = "{title}"
    """Text of an item, made of columns of the table of items, such as "{title} {brand}"; missing values are empty."""
    layer: int | None = Field(None, ge=1)
    """Number of layers of a decoder after which the hidden states are averaged; null: two thirds of its layers."""
    max_tokens: int | None = Field(None, ge=1)
    """Number of tokens after which a text is cut off; null: 64, or the limit of the sentence encoder."""
    random_weights: bool = False
    """Read the texts by a model of the same architecture with random weights: a control."""
    shuffled: bool = False
    """Give the vectors of the texts to other items, drawn by `seed`: a control."""
    seed: int = 0
    """Seed of `random_weights` and `shuffled`."""
    num_hashes: int = Field(32_768, ge=1)
    """Number of buckets to which `words` hashes words, and as many for n-grams."""
    ngram_weight: float = Field(0.5, ge=0)
    """Norm of the character n-grams of a word in `words`; that of the word itself is 1."""
    num_components: int | None = Field(None, ge=1)
    """C, the number of leading principal components that are kept, or the width of `words`; null: the full width,
    and 384 of `words` (at most a quarter of the number of texts)."""
    whitening: Literal["zca", "pca", "none"] = "zca"
    """Scaling of the vectors: `zca` stays close to the axes of the source, `pca` rotates to principal components, as
    `num_components` always does."""
    power: float = Field(1.0, gt=0, le=1)
    """Exponent of the whitening: 1 gives all principal components the same variance, 0.5 goes half-way."""
    eps: float = Field(1e-5, ge=0)
    """Variance that is added to that of each principal component, in units of their mean variance."""
    required: bool = True
    """Stop when the items have no texts (true), or train without them (false)."""

    @property
    def reads_file(self) -> bool:
        """True if the source is a file of vectors."""
        return PurePath(self.source).suffix in VECTOR_FORMATS

    @property
    def reads_language_model(self) -> bool:
        """True if the source is a sentence encoder or a decoder."""
        return self.source != WORDS and not self.reads_file

    @property
    def reads_decoder(self) -> bool:
        """True if the source may be a decoder; whether a hub id or folder is one, its files say."""
        return self.reads_language_model and self.source != MINILM

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that make up the text."""
        return tuple(dict.fromkeys(_columns(self.template)))

    @field_validator("template")
    @classmethod
    def _is_template(cls, template: str) -> str:
        example = 'such as "{title} {brand}"'
        try:
            columns = list(_columns(template))
        except ValueError as error:
            raise ValueError(f"not a template of columns ({error}); write names in braces, {example}") from None
        check(bool(columns), f"names no column; write at least one name in braces, {example}")
        return template


def _columns(template: str) -> Iterator[str]:
    """Yield the names in the braces of a template.

    Raises:
        ValueError: The braces hold anything but a name.
    """
    for _, name, form, conversion in Formatter().parse(template):
        if name is not None:
            check(bool(name) and not form and not conversion and not set(".[]") & set(name), f"{{{name}}} is no name")
            yield name
