"""Word vectors: shared words bring texts together, and every text has a direction of its own."""

import math

import pytest
import torch

from slmrec.config import ItemTextConfig
from slmrec.errors import ConfigError
from slmrec.models.text import words
from slmrec.models.text.item_text import TextReader
from slmrec.models.text.sources import read_texts
from slmrec.models.text.whitening import whitened
from slmrec.models.text.words import fit_words, read_words

COLOURS, THINGS = ["red", "blue", "green", "black", "white"], ["lamp", "chair", "table", "sofa", "desk", "shelf"]
TITLES = [f"{colour.title()} {thing}, no. {n}" for n in (1, 2) for colour in COLOURS for thing in THINGS]
SETTINGS = ItemTextConfig(num_components=12)


def cosine(vectors: torch.Tensor, one: str, other: str) -> float:
    return float(torch.nn.functional.cosine_similarity(vectors[TITLES.index(one)], vectors[TITLES.index(other)], dim=0))


def test_shared_words_bring_texts_together() -> None:
    vectors = read_texts(SETTINGS, TITLES).values[1:]
    assert vectors.shape == (60, 12)
    near = cosine(vectors, "Red lamp, no. 1", "Red lamp, no. 2")
    assert (
        near
        > cosine(vectors, "Red lamp, no. 1", "Red sofa, no. 1")
        > cosine(vectors, "Red lamp, no. 1", "Blue sofa, no. 2")
    )


def test_products_are_those_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all singular vectors, inner products are those of the sparse vectors: TF-IDF weights, rows of norm 1."""
    monkeypatch.setattr(words, "_REMAINDER", 0)
    texts, settings = ["red lamp", "red chair", "blue chair"], ItemTextConfig(ngram_weight=0)
    vectors = read_words(fit_words(texts, 3, settings), texts, settings)
    often, once = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    rows = torch.tensor([[often, once, 0, 0], [often, 0, often, 0], [0, 0, often, once]])
    rows = torch.nn.functional.normalize(rows)
    torch.testing.assert_close(vectors @ vectors.T, rows @ rows.T, rtol=1e-2, atol=1e-2)


def test_texts_that_differ_by_a_rare_word_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [f"{title}, {extra}" for title in TITLES for extra in ("boxed", "single")] + ["Red lamp, no. 1, vega"]
    twins = titles.index("Red lamp, no. 1, boxed"), len(titles) - 1
    cosines = []
    for share in (0, 1 / 3):
        monkeypatch.setattr(words, "_REMAINDER", share)
        vectors = whitened(read_texts(SETTINGS, titles).values, SETTINGS).vectors[1:]
        cosines.append(float(torch.nn.functional.cosine_similarity(*vectors[list(twins)], dim=0)))
    assert cosines[1] < cosines[0]


def test_names_that_share_no_word_differ() -> None:
    names = [f"{a}{b}{c}" for a in ("Zor", "Kly", "Mun") for b in ("ba", "te", "gi") for c in ("x", "rn", "lod")]
    vectors = whitened(read_texts(ItemTextConfig(), names).values, ItemTextConfig()).vectors[1:]
    cosines = torch.nn.functional.normalize(vectors) @ torch.nn.functional.normalize(vectors).T
    assert (cosines - torch.eye(len(names))).max() < 0.999 and vectors.abs().sum(dim=1).min() > 0
    related = names.index("Zorbax"), names.index("Zorbarn"), names.index("Muntelod")
    assert cosines[related[0], related[1]] > cosines[related[0], related[2]]


def test_a_recipe_reads_new_texts_as_the_known_ones() -> None:
    found = read_texts(SETTINGS, TITLES)
    white = whitened(found.values, SETTINGS)
    reader = TextReader(SETTINGS, white.mean, white.axes, found.words)
    again = read_texts(SETTINGS, ["RED  LAMP no 1", TITLES[7], "", "???"], reader.words).values[1:]
    projected = reader.project(again)
    torch.testing.assert_close(projected[1], white.vectors[8], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(projected[0], white.vectors[1], rtol=1e-4, atol=1e-4)
    assert not projected[2:].any()


def test_results_are_reproducible_and_leave_the_random_state() -> None:
    state = torch.get_rng_state()
    one, two = (read_texts(SETTINGS, TITLES).values for _ in range(2))
    assert torch.equal(one, two) and torch.equal(state, torch.get_rng_state())


def test_widths() -> None:
    assert read_texts(ItemTextConfig(), TITLES).values.shape == (61, 15)
    assert read_texts(ItemTextConfig(), ["a lamp"]).values.shape == (2, 1)
    with pytest.raises(
        ConfigError, match=r"item_text.num_components is 61, but only 60 items have a text; choose 1-60"
    ):
        read_texts(ItemTextConfig(num_components=61), TITLES)


@pytest.mark.parametrize(
    ("part", "value"),
    [("idf", torch.zeros(3)), ("axes", torch.zeros(2, 2)), ("buckets", torch.zeros(4, dtype=torch.int64))],
)
def test_recipes_that_do_not_fit_are_refused(part: str, value: torch.Tensor) -> None:
    fitted = fit_words(["red lamp"], 1, ItemTextConfig())
    fitted.check(ItemTextConfig().num_hashes, 1)
    with pytest.raises(ValueError, match=r"recipe|buckets"):
        fitted._replace(**{part: value}).check(ItemTextConfig().num_hashes, 1)
