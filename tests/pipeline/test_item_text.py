"""Item texts of a data set: columns by template, sources, the cache, and the controls."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError, DataError
from slmrec.models.text.item_text import ItemText
from slmrec.pipeline.item_text import check_item_texts, read_item_text

COLOURS = ["red", "blue", "green", "black"]
TITLES = [f"{COLOURS[n % 4]} thing {n}" for n in range(40)]
BRANDS = [None if n % 5 == 0 else f"brand{n % 3}" for n in range(40)]


@pytest.fixture
def dataset(tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tags = [["a", None, f"tag{n % 7}"] for n in range(40)]
    columns = {"item_id": tiny_dataset.item_ids, "title": TITLES, "brand": BRANDS, "tags": tags, "year": range(40)}
    return replace(tiny_dataset, items=pa.table(columns))


def config(**settings: Any) -> Config:
    values = {"item_text": {"any": settings}, "pretrain": {"text": {"kind": "decoder", "item_text": "any"}}}
    return Config.model_validate(values | {"finetune": {"item_vectors": None}})


def read(dataset: Dataset, **settings: Any) -> ItemText:
    text = read_item_text(config(**settings), "pretrain.text", "any", dataset)
    assert text is not None
    return text


@pytest.fixture
def read_by_model(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Texts that a language model got."""
    given: list[list[str]] = []

    def take(_: object, texts: list[str], *rest: object) -> torch.Tensor:
        given.append(texts)
        return torch.tensor([[float(len(text)), float(sum(map(ord, text)) % 97), 1.0] for text in texts])

    monkeypatch.setattr("slmrec.models.text.sources.read_by_language_model", take)
    return given


def test_texts_are_made_of_columns(dataset: Dataset, read_by_model: list[list[str]]) -> None:
    read(dataset, source="any", template="{title} by {brand}: {tags}, {year}")
    assert read_by_model[0][:2] == ["red thing 0 by : a, tag0, 0", "blue thing 1 by brand1: a, tag1, 1"]
    text = read(dataset, source="any", template="by {brand}")
    assert read_by_model[1] == [f"by {brand}" for brand in BRANDS if brand]
    assert not text.vectors[[0, 1, 6]].any() and text.vectors[2].any()


def test_only_texts_that_a_model_must_read_are_missed(dataset: Dataset, tiny_dataset: Dataset) -> None:
    check_item_texts(config(), dataset)
    check_item_texts(config(required=False), tiny_dataset)
    check_item_texts(config(source="vectors.npy"), tiny_dataset)
    with pytest.raises(
        DataError, match=r"pretrain.text.item_text is 'any', but the items have no titles; give a table"
    ):
        check_item_texts(config(), tiny_dataset)


def test_columns_that_the_items_lack_are_refused(dataset: Dataset) -> None:
    message = (
        r"item_text.any.template is '\{title\} \{maker\}', but the items have no column 'maker'; give a table of items "
        r"with it \(--items FILE\), and keep it by prepare.item_columns=\[maker\]"
    )
    for required in (True, False):
        with pytest.raises(DataError, match=message):
            read(dataset, template="{title} {maker}", required=required)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("title", "names no column; write at least one name in braces"),
        ("{title", "not a template of columns"),
        ("{}", "is no name"),
        ("{title!r}", "is no name"),
        ("{title:>10}", "is no name"),
        ("{title.__class__}", "is no name"),
        ("{title[0]}", "is no name"),
    ],
)
def test_templates_hold_names_alone(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"item_text.any.template.*{message}"):
        load_config(None, [f"item_text.any.template='{template}'", "finetune.item_text=any"])


def test_words_are_the_default_and_cached(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    first = read(dataset)
    assert first.vectors.shape == (41, 10) and "texts read in" in caplog.text
    caplog.clear()
    second = read(dataset)
    assert torch.equal(first.vectors, second.vectors) and "text vectors taken from" in caplog.text
    assert first.reader is not None and second.reader is not None
    assert all(map(torch.equal, first.reader.tensors().values(), second.reader.tensors().values()))


CHANGES: list[tuple[dict[str, Any], bool]] = [
    ({"ngram_weight": 0.1}, True),
    ({"num_hashes": 64}, True),
    ({"num_components": 5}, True),
    ({"template": "{brand}"}, True),
    ({"source": "any"}, True),
    ({"whitening": "pca"}, False),
    ({"power": 0.5}, False),
    ({"shuffled": True}, False),
]


@pytest.mark.parametrize(("changes", "reads_again"), CHANGES, ids=str)
def test_texts_are_read_again_when_their_vectors_change(
    dataset: Dataset,
    caplog: pytest.LogCaptureFixture,
    read_by_model: list[list[str]],
    changes: dict[str, Any],
    reads_again: bool,
) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    before = read(dataset)
    caplog.clear()
    after = read(dataset, **changes)
    assert ("texts read in" in caplog.text) == reads_again
    assert not torch.equal(before.vectors, after.vectors)


MODEL_CHANGES: list[dict[str, Any]] = [
    {"layer": 3},
    {"max_tokens": 9},
    {"random_weights": True},
    {"random_weights": True, "seed": 5},
    {"source": "other"},
]


def test_every_setting_of_a_language_model_belongs_to_the_key(dataset: Dataset, read_by_model: list[list[str]]) -> None:
    for changes in [{}, *MODEL_CHANGES]:
        read(dataset, **{"source": "any"} | changes)
    assert len(read_by_model) == 1 + len(MODEL_CHANGES)
    for changes in [{}, *MODEL_CHANGES]:
        read(dataset, **{"source": "any"} | changes)
    assert len(read_by_model) == 1 + len(MODEL_CHANGES)


def test_shuffled_texts_belong_to_other_items(dataset: Dataset) -> None:
    plain, shuffled = read(dataset, template="{brand}"), read(dataset, template="{brand}", shuffled=True)
    again, other = (read(dataset, template="{brand}", shuffled=True, seed=seed) for seed in (0, 1))
    rows = [sorted(map(tuple, text.vectors.tolist())) for text in (plain, shuffled)]
    assert rows[0] == rows[1] and not torch.equal(plain.vectors, shuffled.vectors)
    assert torch.equal(shuffled.vectors, again.vectors) and not torch.equal(shuffled.vectors, other.vectors)
    assert torch.equal(plain.vectors.any(dim=1), shuffled.vectors.any(dim=1))


def test_vectors_of_files(dataset: Dataset, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    shown = {"item_id": dataset.item_ids, "vector": list(vectors)}
    pq.write_table(pa.table(shown).take(list(range(39, -1, -1))), tmp_path / "vectors.parquet")
    one, two = (read(dataset, source=str(tmp_path / name)) for name in ("vectors.npy", "vectors.parquet"))
    torch.testing.assert_close(one.vectors, two.vectors)
    torch.testing.assert_close(one.vectors[1:].var(dim=0, correction=0), torch.ones(3))
    with pytest.raises(
        ConfigError, match=r"item_text.any.num_components is 4, but the width of .*npy is 3; choose 1-3"
    ):
        read(dataset, source=str(tmp_path / "vectors.npy"), num_components=4)
