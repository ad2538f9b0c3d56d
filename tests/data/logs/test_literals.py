import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.data.logs.literals import as_json, list_cell, literal

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=values)
def test_every_literal_is_read(value: object) -> None:
    assert literal(repr(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{u'asin': u'B0', 'price': -9.5e-1}", {"asin": "B0", "price": -0.95}),
        ("[1, (2, 'it\\'s [not] {deep'), {3}]", [1, (2, "it's [not] {deep"), {3}]),
        ("['a' 'b']", ["ab"]),
        ("  [.5, +1., True, None]\n", [0.5, 1.0, True, None]),
        ("[" * 50 + "]" * 50, json.loads("[" * 50 + "]" * 50)),
    ],
)
def test_literals(text: str, value: object) -> None:
    assert literal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "__import__('os').system('true')", "f()", "[a]", "{'a': b}", "f'{1}'", "b'x'", "lambda: 1", "a.b"),
        *("1 + 1", "1-1", "--1", "not True", "1 if True else 2", "[x for x in [1]]", "[1]]", "'abc", "1 1", "{[]: 1}"),
        *("0x10", "1_000", "nan", "...", "'\\x'", "'a\nb'", "{'a': 1}\0", "'\ud800'", "9" * 9999),
    ],
)
def test_what_is_no_literal_is_refused_and_never_run(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        literal(text)


@pytest.mark.parametrize(
    "text", ["[" * 51 + "]" * 51, "{1:" * 60 + "1" + "}" * 60, "(" * 10**6, "[" * 10**6 + "]" * 10**6]
)
def test_deep_nesting_is_refused_before_it_is_parsed(text: str) -> None:
    with pytest.raises(ValueError, match="brackets nest deeper than 50"):
        literal(text)


@pytest.mark.parametrize("text", ["-" * 10**6 + "1", "1+" * 10**6 + "1", "a." * 10**6, "f" + "()" * 10**6, "'" * 10**6])
def test_long_chains_are_refused_before_they_are_parsed(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        literal(text)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("[](){}'\"\\,:-+. 1eu\nTrueNo"), max_size=60) | st.text(max_size=20))
def test_whatever_is_no_literal_is_a_value_error(text: str) -> None:
    try:
        literal(text)
    except ValueError:
        return
    assert text.strip()


def test_brackets_and_quotes_in_texts_do_not_count() -> None:
    text = {"review": "(" * 1000 + '"' + "'[" * 1000}
    assert literal(repr(text)) == text


def test_lines_become_json_or_stay() -> None:
    assert json.loads(as_json("{'a': 'ü', 'b': [None, True, 1.5]}\n")) == {"a": "ü", "b": [None, True, 1.5]}
    assert as_json(" \n") == "\n"
    for line in ("no literal\n", "{1, 2}\n", "{(1, 2): 3}\n", "__import__('os').getcwd()\n"):
        assert as_json(line) == line
    assert math.isinf(json.loads(as_json("[1e999]"))[0])


def test_cells_with_lists() -> None:
    assert list_cell("['a', 1]") == ["a", 1]
    assert list_cell("('a', 1)") is None
    assert list_cell("nothing") is None


def test_real_metadata_is_literals(shared: Path) -> None:
    with gzip.open(shared / "data/amazon2014/meta_Digital_Music.part.json.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(as_json(line)) for _, line in zip(range(1000), lines, strict=False)]
    assert (len(found), found[0]["asin"], found[0]["title"]) == (1000, "5555991584", "Memory of Trees")


def test_a_key_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="a key occurs twice"):
        literal("{'a': 1, 'a': 2}")
    assert as_json("{'a': 1, 'a': 2}") == "{'a': 1, 'a': 2}"
