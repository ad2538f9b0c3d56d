"""Ids of requests are read by the type of the catalogue: in Python, and over HTTP in tests/serving."""

import warnings
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slmrec import Recommender
from slmrec.errors import ConfigError, DataError, UnknownItemsWarning
from slmrec.inference.catalogue import Catalogue, ItemIdError
from slmrec.models.folder import Vocabulary
from slmrec.models.sasrec import SasRec, SasRecConfig

HUGE = 2**63 + 5
INTS = Catalogue(Vocabulary(pa.array([9, 18, HUGE], pa.uint64()), None, pa.array([1, 1, 1])))
TEXTS = Catalogue(Vocabulary(pa.array(["A1", "9", "007", "1.5"]), None, pa.array([1, 1, 1, 1])))
BEYOND = Catalogue(Vocabulary(pa.array([str(10**25), "5"]), None, pa.array([1, 1])))


@pytest.mark.parametrize(
    ("value", "in_ints", "in_texts"),
    [
        (9, 1, 2),
        ("9", 1, 2),
        (" 9\u00a0", 1, 2),
        (9.0, 1, 2),
        ("9.0", 1, None),
        ("9.00", 1, None),
        (np.float32(9), 1, 2),
        (np.int8(9), 1, 2),
        (Decimal("9.00"), 1, 2),
        (torch.tensor(9), 1, 2),
        (pa.scalar(9.0), 1, 2),
        (HUGE, 3, None),
        (str(HUGE), 3, None),
        (np.uint64(HUGE), 3, None),
        ("007", None, 3),
        ("9E0", None, None),
        ("A1", None, 1),
        ("1.5", ValueError, 4),
        (1.5, ValueError, 4),
        (9.5, ValueError, ValueError),
        ("9.5", ValueError, None),
        (2.0**60, ValueError, ValueError),
        (np.float32(2**25), ValueError, ValueError),
        (float("inf"), ValueError, ValueError),
        *((value, ValueError, ValueError) for value in (None, float("nan"), pd.NA, pd.NaT, True, " ", "NA", "null")),
        *((value, ValueError, ValueError) for value in ([9], (9,), {"a": 1}, np.array([9, 18]), "[9, 18]")),
    ],
)
def test_one_id(value: Any, in_ints: Any, in_texts: Any) -> None:
    for catalogue, expected in ((INTS, in_ints), (TEXTS, in_texts)):
        if expected is ValueError:
            with pytest.raises(ItemIdError, match="item 1 is ") as refusal:
                catalogue.split([value])
            assert "\n" not in str(refusal.value)
        else:
            assert catalogue.split([value]) == (([expected], []) if expected else ([], [value]))


def test_whole_numbers_beyond_64_bits_are_text_that_is_read_as_numbers() -> None:
    assert BEYOND.known([10**25, str(10**25), 5.0, "5.0"]) == [1, 1, 2, 2]


def test_words_for_nothing_may_be_ids_of_the_catalogue() -> None:
    catalogue = Catalogue(Vocabulary(pa.array(["NA", "None"]), None, pa.array([1, 1])))
    assert catalogue.known(["NA", "None"]) == [1, 2]
    with pytest.raises(ItemIdError, match="item 2 is None: expected an id"):
        catalogue.known(["NA", None])


@given(st.lists(st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.none(), max_size=6))
def test_any_values_are_known_unknown_or_refused(values: list[Any]) -> None:
    for catalogue in (INTS, TEXTS, BEYOND):
        try:
            known, unknown = catalogue.split(values)
        except ItemIdError as error:
            assert values[error.position] is error.value
        else:
            assert len(known) + len(unknown) == len(values)


@pytest.mark.parametrize(
    ("ids", "in_json"),
    [
        ([1, 2**53], [1, 2**53]),
        ([1, 2**53 + 1], ["1", str(2**53 + 1)]),
        ([-(2**53) - 1, 1], [str(-(2**53) - 1), "1"]),
        (["a", "1"], ["a", "1"]),
    ],
)
def test_ids_in_json_survive_a_browser(ids: list[Any], in_json: list[Any]) -> None:
    catalogue = Catalogue(Vocabulary(pa.array(ids), None, pa.array([1, 1])))
    assert [catalogue.described(item)["item_id"] for item in (1, 2)] == in_json


@pytest.fixture(scope="module")
def shop() -> Recommender:
    torch.manual_seed(0)
    vocabulary = Vocabulary(pa.array([9, 18, 27, 36, 45]), None, pa.array([5, 4, 3, 2, 1]))
    return Recommender(SasRec(SasRecConfig(num_items=5, hidden_size=8, max_history_items=4)).eval(), vocabulary)


LISTS: list[Any] = [
    [[9.0, 18.0], ["27"]],
    [np.array([9.0, 18.0]), np.array([27], np.uint64)],
    [pd.Series([9.0, 18.0]), pd.Series(["27.0"])],
    pd.DataFrame({"user_id": [0.0, 1.0], "history": [[9.0, 18.0], [27.0]]}),
    pl.DataFrame({"user_id": [0, 1], "history": [[9.0, 18.0], [27.0]]}),
    pa.table({"user_id": pa.array([0, 1], pa.uint64()), "history": [[9.0, 18.0], [27.0]]}),
]


@pytest.mark.parametrize("histories", LISTS, ids=["list", "numpy", "series", "pandas", "polars", "arrow"])
def test_floats_mean_their_whole_numbers(shop: Recommender, histories: Any) -> None:
    expected = shop.recommend([[9, 18], [27]], 3)
    found = shop.recommend(histories, 3)
    assert found.table["item_id"].equals(expected.table["item_id"])
    assert (found.num_unknown, found.fallback_users) == (0, ())


def test_values_that_are_no_ids_are_refused(shop: Recommender) -> None:
    with pytest.raises(DataError, match=r"history 1: item 2 is 9\.5: expected a whole number"):
        shop.recommend([[9], [18, 9.5]])
    with pytest.raises(DataError, match="history 0: item 1 is nan: expected an id"):
        shop.recommend([[float("nan")]])
    with pytest.raises(DataError, match="history 0: item 1 is None: expected an id"):
        shop.score([[None]])
    with pytest.raises(ConfigError, match=r"candidates: item 1 is 1\.5: "):
        shop.recommend([[9]], candidates=[1.5])
    assert shop.recommend([[9]], 5, candidates=[18.0, "27.0"], exclude=[18.0]).to_lists()[0][0][0] == 27
    assert shop.title(9.0) is None


def test_users_with_unknown_items_alone_are_warned_of(shop: Recommender) -> None:
    with pytest.warns(UnknownItemsWarning) as caught:
        found = shop.recommend([[9, 1], [1, 2], [], [3]], 2, user_ids=["a", "b", "c", "d"])
    (warning,) = caught
    assert str(warning.message) == (
        "2 of 4 users, the first one 'b', have only unknown items in their history and get the most popular items; "
        "4 of 5 item ids (80%) are unknown, the first one 1"
    )
    assert warning.filename == __file__
    assert found.fallback_users == ("b", "c", "d")


def test_an_empty_history_is_no_reason_for_a_warning(shop: Recommender) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shop.recommend([[], [9, 1]], 2).fallback_users == (0,)
