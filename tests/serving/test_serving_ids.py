"""Item ids over HTTP: read by the type of the catalogue, and written so that browsers keep them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from servers import Client, serving, write_model

from slmrec import Recommender
from slmrec.data.dataset import Dataset
from slmrec.errors import DataError
from slmrec.models.folder import load_recommender, replace_vocabulary
from slmrec.serving.examples import read_examples

BEYOND = 2**53 + 1
BIG = [BEYOND + n for n in range(39)] + [2**64 - 1]
SMALL = list(range(1, 41))


def model(folder: Path, dataset: Dataset, ids: list[int]) -> Path:
    write_model(folder, dataset)
    _, vocabulary = load_recommender(folder)
    replace_vocabulary(vocabulary._replace(item_ids=pa.array(ids, pa.uint64())), folder)
    return folder


@pytest.fixture(scope="module")
def big(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Recommender]]:
    folder = model(tmp_path_factory.mktemp("big"), tiny_dataset, BIG)
    file = folder.with_name("examples.jsonl")
    file.write_text(json.dumps({"user_id": BEYOND, "history": [BIG[0], str(BIG[1])]}) + "\n", encoding="utf-8")
    with serving(folder, examples=read_examples(file)) as client:
        yield client, Recommender.from_pretrained(folder)


@pytest.fixture(scope="module")
def small(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(model(tmp_path_factory.mktemp("small"), tiny_dataset, SMALL)) as client:
        yield client


def test_ids_beyond_2_53_are_strings_in_answers_and_either_in_requests(big: tuple[Client, Recommender]) -> None:
    client, recommender = big
    expected = [str(item) for item, _ in recommender.recommend([[BIG[0], BIG[39]]], 5).to_lists()[0]]
    for history in ([BIG[0], BIG[39]], [str(BIG[0]), f" {BIG[39]} "]):
        answer = client.recommend(history=[*history, 7], k=5)
        assert [item["item_id"] for item in answer["items"]] == expected
        assert (answer["unknown_items"], answer["unknown_share"]) == (["7"], pytest.approx(1 / 3, abs=1e-4))
    assert client.recommend(history=[BIG[0]], candidates=expected[:1])["items"][0]["item_id"] == expected[0]
    assert client.get(f"/items?q={BIG[3]}")["items"][0]["item_id"] == str(BIG[3])
    (user,) = client.get("/examples")["users"]
    assert (user["user_id"], [item["item_id"] for item in user["history"]]) == (str(BEYOND), [str(BIG[0]), str(BIG[1])])


@pytest.mark.parametrize("history", [[9, 18], [9.0, 18.0], ["9", "18.0"]])
def test_small_ids_are_numbers_however_they_are_written(small: Client, history: list[Any]) -> None:
    answer = small.recommend(history=history, k=3)
    assert answer["unknown_items"] == [] and not answer["fallback"]
    assert answer["items"] == small.recommend(history=[9, 18], k=3)["items"]
    assert all(type(item["item_id"]) is int for item in answer["items"])


@pytest.mark.parametrize(
    ("history", "told"),
    [
        ("[9.5]", "history[0]: expected an item id"),
        ("[9, 1e300]", "history[1]: expected an item id"),
        ("[null]", "history[0]: expected an item id"),
        ("[[9]]", "history[0]: expected an item id"),
        ('["9.5"]', "history[0] is '9.5': expected a whole number or text"),
        ('[9, "nan"]', "history[1] is 'nan': expected an id"),
        ('["[9, 18]"]', "history[0] is '[9, 18]': a list or an object, expected one id"),
    ],
)
def test_what_is_no_id_is_refused(small: Client, history: str, told: str) -> None:
    status, _, content = small.ask("/recommend", f'{{"history": {history}}}')
    assert status == 422 and told in content["error"]


def test_only_unknown_items_are_said(small: Client) -> None:
    answer = small.recommend(history=[1000, "x"], k=2)
    assert answer["fallback"]
    assert (answer["unknown_items"], answer["unknown_share"]) == ([1000, "x"], 1.0)
    empty = small.recommend(history=[], k=2)
    assert (empty["fallback"], empty["unknown_items"], empty["unknown_share"]) == (True, [], 0.0)


@pytest.mark.parametrize("line", ['{"user_id": 1, "history": [9.5]}', '{"user_id": 1, "history": ["NA"]}'])
def test_examples_that_are_no_ids_are_refused_at_the_start(line: str, tmp_path: Path) -> None:
    (tmp_path / "users.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: .* is not an example user"):
        read_examples(tmp_path / "users.jsonl")
