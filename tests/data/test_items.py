from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from log_files import PACKINGS, engine, items_of, read, spill, write

from slmrec.config import PrepareConfig
from slmrec.data.items import column_name, one_row_per_item, read_items
from slmrec.data.logs.row_errors import RowError
from slmrec.errors import DataError


def known_and_rows(path: Path, ids: list[str] | None, **options: Any) -> tuple[dict[str, dict[str, Any]], int]:
    rows, _ = items_of(path, **options)
    catalogue = rows.select("text").distinct()
    if ids is not None:
        catalogue = catalogue.filter(catalogue.text.isin(ids))
    found = one_row_per_item(rows, catalogue).to_pyarrow().to_pylist()
    assert len(found) == len({row["text"] for row in found})
    names = {column_name(number): name for number, name in enumerate(options.get("item_columns", ()))}
    found = [{names.get(name, name): value for name, value in row.items()} for row in found]
    return {row.pop("text"): row for row in found}, rows.count().to_pyarrow().as_py()


def all_rows(path: Path, **options: Any) -> tuple[list[dict[str, Any]], list[RowError]]:
    """In the order of the file."""
    table, errors = items_of(path, **options)
    return table.order_by("row").to_pyarrow().to_pylist(), errors


def known(path: Path, ids: list[str] | None = None, **options: Any) -> dict[str, dict[str, Any]]:
    """What is known of all items, or of some."""
    return known_and_rows(path, ids, **options)[0]


def titles(path: Path, **options: Any) -> dict[str, tuple[str | None, int]]:
    return {item: (row.get("title"), row["num_titles"]) for item, row in known(path, **options).items()}


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_first_title_counts(tmp_path: Path, packing: str) -> None:
    text = b'title,item_id\n"Red, ""deep""",007\n,8\nBlue,9\nGreen,9\nGreen,10\nGreen,10\nLate,8\n,11\n'
    found = titles(write(tmp_path / "items", PACKINGS[packing](text)))
    assert found == {
        "007": ('Red, "deep"', 1),
        "8": ("Late", 1),
        "9": ("Blue", 2),
        "10": ("Green", 1),
        "11": (None, 0),
    }


def test_titles_that_are_scraped_markup_are_none(tmp_path: Path) -> None:
    lines = [
        '{"asin": "x", "title": "<span id=\\"title\\" class=\\"a\\">var aPageStart = (new Date()).getTime();"}',
        '{"asin": "x", "title": "Good"}',
        '{"asin": "y", "title": "var aPageStart = (new Date()).getTime();"}',
        '{"asin": "z", "title": "a < b <i>and</i> c"}',
        '{"asin": "w"}',
    ]
    found = titles(write(tmp_path / "meta", "\n".join(lines)))
    assert found == {"x": ("Good", 1), "y": (None, 0), "z": ("a < b <i>and</i> c", 1), "w": (None, 0)}


def test_typed_tables_and_json(tmp_path: Path) -> None:
    table = pa.table({"item_id": [3, 4], "title": ["Three", ""]})
    assert titles(write(tmp_path / "items.parquet", table)) == {"3": ("Three", 1), "4": (None, 0)}
    lines = '{"asin": "x", "name": "X"}\n{"asin": "y"}\n'
    path = write(tmp_path / "items.jsonl", lines)
    assert titles(path) == titles(path, items_id_col="asin", title_col="name") == {"x": ("X", 1), "y": (None, 0)}


def test_products_count_before_their_variants(tmp_path: Path) -> None:
    path = write(tmp_path / "meta", '{"main_category": "C", "title": "T", "parent_asin": "P", "asin": "V"}\n')
    assert titles(path) == {"P": ("T", 1)}


def test_movielens(tmp_path: Path) -> None:
    rows = "1::Misérables, Les (1995)::Drama|Musical\n2::Heat (1995)::Action|Crime|Thriller\n"
    found = known(write(tmp_path / "movies.dat", rows.encode("latin-1")), item_columns=["genres"])
    assert (found["1"]["title"], found["2"]["genres"]) == ("Misérables, Les (1995)", "Action|Crime|Thriller")
    flags = "|0" * 19
    rows = (
        f"1|Misérables, Les (1995)|01-Jan-1995||http://x{flags}\n2|Usual Suspects, The|01-Jan-1995||http://y{flags}\n"
    )
    for name in ("u.item", "items", "items.txt"):
        found = known(write(tmp_path / name, rows.encode("latin-1")))
        assert {item: row["title"] for item, row in found.items()} == {
            "1": "Misérables, Les (1995)",
            "2": "Usual Suspects, The",
        }
    csv = 'movieId,title,genres\n1,"Misérables, Les",Drama|Musical|War\n2,Heat,Action|Crime|Thriller\n'
    assert titles(write(tmp_path / "movies", csv)) == {"1": ("Misérables, Les", 1), "2": ("Heat", 1)}
    recbole = "item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\tToy Story\tComedy\n"
    assert titles(write(tmp_path / "ml.item", recbole)) == {"1": ("Toy Story", 1)}


def test_only_named_columns_are_kept(tmp_path: Path) -> None:
    text = ",item_id,title,customer,text,row,value,num_titles,brand:token\n" + ",".join("012345678") + "\n"
    path = write(tmp_path / "items.csv", text)
    (row,), _ = all_rows(path)
    assert row == {"text": "1", "title": "2", "row": 0}
    rows, _ = items_of(path, item_columns=["brand", "row"])
    assert sorted(rows.columns) == ["kept_column_0", "kept_column_1", "row", "text", "title"]
    assert known(path, item_columns=["brand", "row"])["1"] == {"title": "2", "brand": "8", "row": "5", "num_titles": 1}


def test_the_message_says_what_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", "ISBN,Name,price,customer\n1,A,2,c\n")
    settings = PrepareConfig(items=str(path), items_id_col="ISBN", title_col="Name", item_columns=("price",))
    message = read_items(engine(), spill(), path, settings).message()
    expected = (
        "columns of items kept: item_id (ISBN), title (Name), price; not kept: customer (prepare.item_columns keeps"
    )
    assert message.startswith(expected)
    all_kept = settings.model_copy(update={"item_columns": ("price", "customer")})
    assert read_items(engine(), spill(), path, all_kept).message().endswith("title (Name), price, customer")


@pytest.mark.parametrize("columns", [["title"], ["item_id"], ["Brand", "brand"], ["count"]])
def test_columns_that_cannot_be_kept(columns: list[str]) -> None:
    with pytest.raises(ValueError, match="would be written twice; item, item_id, title, count, removed are our own"):
        PrepareConfig(items="items.csv", item_columns=tuple(columns))


def test_the_most_frequent_value_is_kept(tmp_path: Path) -> None:
    rows = "".join(
        f"a,{title},{price}\n" for title, price in (("Old", 1), ("New", 2), ("New", 1), ("Nan", 3), ("-", 3))
    )
    path = write(tmp_path / "items.csv", f"item_id,title,price\n{rows}a,,3\nb,X,\nb,Y,9\n")
    found = known(path, item_columns=["price"])
    assert found["a"] == {"title": "New", "price": "3", "num_titles": 2}
    assert found["b"] == {"title": "X", "price": "9", "num_titles": 2}


def test_titles_that_are_words_for_nothing_are_none(tmp_path: Path) -> None:
    names = ["nan", "None", "NULL", "  ", "N/A", "-", " Good "]
    text = "item_id,title\n" + "".join(f"{number},{name}\n" for number, name in enumerate(names))
    found = titles(write(tmp_path / "items.csv", text))
    assert [found[str(number)] for number in range(7)] == [*[(None, 0)] * 6, ("Good", 1)]
    assert titles(tmp_path / "items.csv", null_values=["good"])["0"] == ("nan", 1)


def test_keys_that_are_no_unicode_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", '{"item_id": 1, "title": "A"}\n{"item_id": 2, "\\ud800": 1}\n')
    rows, errors = all_rows(path, on_bad_row="skip")
    assert ([row["text"] for row in rows], [reject.line for reject in errors]) == (["1"], [2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "items.csv",
            "id,title\n1,A\n",
            r"items\.csv: no column 'item_id' or .*; it has id, title; set prepare\.items_",
        ),
        ("items.csv", "item_id,title\n1,A\n,B\n", r"items\.csv: line 3: item_id is None: expected an id"),
        ("items.csv", "item_id,title\n1,A\n2\n", r"items\.csv: line 3: '2': 1 columns, expected 2"),
        ("items.csv", "item_id,title,title\n1,A,B\n", r"2 columns are named 'title', expected one"),
        ("items.txt", "1 A\n", r"items\.txt: is not a table of items; expected \.csv"),
        ("items.txt", "", r"items\.txt: the file is empty"),
        ("none.csv", None, r"none\.csv: no such file; set prepare\.input \(or prepare\.items\)"),
    ],
)
def test_items_that_are_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name if content is None else write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        titles(path)


def test_named_columns_have_to_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", "item_id,name\n1,A\n")
    with pytest.raises(DataError, match=r"items\.csv: no column 'title'; it has .*name; set prepare\.title_col"):
        titles(path, title_col="title")


def test_python_literals_are_read_and_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "run"
    bad = f"{{'asin': 'x', 'title': __import__('os').system('touch {trap}')}}"
    path = write(tmp_path / "meta", f"{{'asin': 'a', 'title': \"It's\", 'price': 9.5}}\n{bad}\n{{'asin': 'b'}}\n")
    with pytest.raises(DataError, match=r"meta: line 2: .*not JSON"):
        titles(path)
    rows, errors = all_rows(path, on_bad_row="skip")
    assert [(row["text"], row["title"]) for row in rows] == [("a", "It's"), ("b", None)]
    assert [(reject.line, reject.value) for reject in errors] == [(2, bad)]
    assert not trap.exists()


REAL = {
    # rows, items, items with a title
    "Beauty.items.csv.gz": (12_101, 12_101, 12_083),
    "Toys_and_Games.items.csv.gz": (11_924, 11_924, 11_710),
    "beauty_timestamps.items.csv.gz": (12_086, 12_086, 12_086),
    "amazon2018/meta_Gift_Cards.json.gz": (1_547, 1_547, 1_547),
    "amazon2018/meta_Magazine_Subscriptions.json.gz": (3_385, 2_320, 2_320 - 2_163),
    "amazon2014/meta_Digital_Music.part.json.gz": (7_419, 7_419, 7_419 - 98),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_have_their_known_counts(shared: Path, name: str) -> None:
    num_rows, num_items, num_titled = REAL[name]
    found, num_found_rows = known_and_rows(shared / "data" / name, None)
    assert num_found_rows == num_rows
    assert (len(found), sum(row["title"] is not None for row in found.values())) == (num_items, num_titled)


def test_every_reviewed_gift_card_has_a_title(shared: Path) -> None:
    folder = shared / "data/amazon2018"
    reviewed = {item for _, item, _ in read(folder / "Gift_Cards_5.json.gz").events()}
    found = known(folder / "meta_Gift_Cards.json.gz", list(reviewed))
    assert (len(found), all(row["title"] for row in found.values())) == (148, True)
    assert any("&amp;" in row["title"] for row in found.values()), "entities stay until they are written"


def test_keys_that_only_later_lines_have_are_kept(tmp_path: Path) -> None:
    lines = [f'{{"asin": "x{number}"}}' for number in range(1200)] + ['{"asin": "y", "title": "Why", "brand": "Z"}']
    rows, _ = all_rows(write(tmp_path / "items.jsonl", "\n".join(lines)), item_columns=["brand"])
    assert (rows[-1]["title"], rows[-1][column_name(0)]) == ("Why", "Z")


def test_ids_that_are_floats_are_whole_numbers_or_refused(tmp_path: Path) -> None:
    table = pa.table({"item_id": [1.0, 2.0], "title": ["a", "b"]})
    rows, _ = all_rows(write(tmp_path / "items.parquet", table))
    assert [row["text"] for row in rows] == ["1", "2"]
    table = pa.table({"item_id": [1.0, 2.5], "title": ["a", "b"]})
    with pytest.raises(
        DataError, match=r"items\.parquet: row 2: item_id is '2\.5': a fraction, .*prepare\.id_type=text"
    ):
        all_rows(write(tmp_path / "items.parquet", table))
