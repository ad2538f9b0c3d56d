import csv
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_files import HEADER, PACKINGS, as_bytes, read, write

from slmrec.data.ids import stripped
from slmrec.data.logs.files import lines
from slmrec.errors import DataError, SlmrecError

REVIEWS = [
    {"reviewerID": f"A{user}BCDEFGHI", "asin": item, "overall": 5.0, "reviewText": "it's", "unixReviewTime": time}
    for user, item, time in (("1", "B00000000A", 1400000002), ("1", "0205616461", 1400000001), ("2", "B00000000A", 1))
]
REVIEWED = [("A1BCDEFGHI", "B00000000A", 1400000002), ("A1BCDEFGHI", "0205616461", 1400000001)]
NEWER = [
    {"rating": 5, "asin": "V1", "parent_asin": "P1", "user_id": "AE", "timestamp": 1677000000123, "verified": True},
    {"rating": 1, "asin": "V2", "parent_asin": "P1", "user_id": "AE", "timestamp": 1677000000124, "images": [{}]},
]


def lines_of(write_row: Callable[[Any], str], rows: list[Any]) -> str:
    return "".join(f"{write_row(row)}\n" for row in rows)


FORMATS: dict[str, tuple[str | bytes | pa.Table, str, list[tuple[Any, Any, Any]]]] = {
    "amazon 2014": (lines_of(json.dumps, REVIEWS), "jsonl", [*REVIEWED, ("A2BCDEFGHI", "B00000000A", 1)]),
    "amazon 2014, literals": (lines_of(repr, REVIEWS), "jsonl", [*REVIEWED, ("A2BCDEFGHI", "B00000000A", 1)]),
    "amazon 2018": (
        lines_of(json.dumps, [row | {"verified": True, "style": {"Size:": " 7"}, "vote": "3"} for row in REVIEWS]),
        "jsonl",
        [*REVIEWED, ("A2BCDEFGHI", "B00000000A", 1)],
    ),
    "amazon 2023": (
        lines_of(json.dumps, NEWER),
        "jsonl",
        [("AE", "P1", 1677000000), ("AE", "P1", 1677000000)],
    ),
    "amazon 2014, ratings": (
        "A1BCDEFGHI,0205616461,5.0,1400000002\nA3BCDEFGHI,0205616461,4.0,1400000001\nA1BCDEFGHI,1,2.0,1400000003\n",
        "csv",
        [("A1BCDEFGHI", "0205616461", 1400000002), ("A3BCDEFGHI", "0205616461", 1400000001)],
    ),
    "amazon 2018, ratings": (
        "0205616461,A1BCDEFGHI,5.0,1400000002\n0205616461,A3BCDEFGHI,4.0,1400000001\n",
        "csv",
        [("A1BCDEFGHI", "0205616461", 1400000002), ("A3BCDEFGHI", "0205616461", 1400000001)],
    ),
    "movielens 100k": (
        "196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t377\t1\t878887116\n",
        "tsv",
        [("196", "242", 881250949), ("186", "302", 891717742), ("22", "377", 878887116)],
    ),
    "movielens 1m": (
        "1::1193::5::978300760\n1::661::3::978302109\n",
        "dat",
        [("1", "1193", 978300760), ("1", "661", 978302109)],
    ),
    "movielens 20m": ("userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n", "csv", [("1", "2", 1112486027)]),
    "recbole": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3.0\t978300760.0\n",
        "recbole",
        [("1", "2", 978300760)],
    ),
    "one line a user": ("u a 007 a\n", "sequences", [("u", "a", None), ("u", "007", None), ("u", "a", None)]),
    "reference": (
        "reviewerID,asin,title\nA1,\"['x', 'y']\",\"['X', 'Y']\"\n",
        "reference",
        [("A1", "x", None), ("A1", "y", None)],
    ),
    "csv": ('item_id,"user_id",timestamp\n"a,""b""\nc",ü,1\n', "csv", [("ü", 'a,"b"\nc', 1)]),
    "tsv": ("timestamp\tuser_id\titem_id\n1\tu\ta,b\n", "tsv", [("u", "a,b", 1)]),
    "jsonl": (
        '{"item_id": 12345678901234567, "user_id": "u", "timestamp": 1.7e9}',
        "jsonl",
        [("u", "12345678901234567", 1700000000)],
    ),
    "parquet": (
        pa.table({"user_id": ["u", "v"], "item_id": [7, 8], "timestamp": [3, 2]}),
        "parquet",
        [("u", "7", 3), ("v", "8", 2)],
    ),
    "check-ins": (
        "0\t2049\t1287503727.0\n0\t0\t1287411463.0\n1\t0\t1287330123.0",
        "tsv",
        [("0", "2049", 1287503727), ("0", "0", 1287411463), ("1", "0", 1287330123)],
    ),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_known_by_their_content(tmp_path: Path, name: str, packing: str) -> None:
    content, kind, expected = FORMATS[name]
    file = {"none": "data", "gz": "data.txt", "zst": "part-00000.bin"}[packing]
    log = read(write(tmp_path / file, PACKINGS[packing](as_bytes(content))))
    assert log.events()[: len(expected)] == expected
    assert (log.columns["format"], log.errors) == (kind, [])


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "one line a user"])
def test_parts_are_one_log(tmp_path: Path, name: str) -> None:
    content, _, expected = FORMATS[name]
    once = read(write(tmp_path / "file", content)).events()
    twice = read(write(tmp_path / "log", {"part-0": content, "part-1": content, "_SUCCESS": "", ".part-0.crc": "x"}))
    assert twice.events() == once * 2
    assert once[: len(expected)] == expected


@pytest.mark.parametrize("content", ["1 2\n1 3\n2 2\n", "1\t2\n1\t3\n2\t2\n", "1,2\n1,3\n2,2\n", "1::2\n1::3\n2::2\n"])
def test_pairs_of_user_and_item_need_the_order_of_the_file(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "log.txt", content)
    with pytest.raises(DataError, match=r"no column 'timestamp' or .*; without times, set prepare\.order=file"):
        read(path)
    assert read(path, order="file").events() == [("1", "2", None), ("1", "3", None), ("2", "2", None)]


@pytest.mark.parametrize("header", ["user_id,item_id", "user_id,item_id,moment"])
def test_the_order_of_the_file_needs_no_times(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "log.csv", f"{header}\nu,a,x\nu,b,\n".replace(",x", ",x" * header.count("moment")))
    with pytest.raises(DataError, match=r"log\.csv: no column 'timestamp'.*set prepare\.order=file"):
        read(path)
    assert read(path, order="file").events() == [("u", "a", None), ("u", "b", None)]


def test_columns_name_those_of_a_file_without_header(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "x,5,u,a\ny,6,u,b\n")
    settings = {"columns": ("note", "at", "who", "what"), "user_col": "who", "item_col": "what", "time_col": "at"}
    log = read(path, **settings)
    assert log.events() == [("u", "a", 5), ("u", "b", 6)]
    assert log.columns == {"format": "csv", "user_col": "who", "item_col": "what", "time_col": "at"}


def test_columns_are_renamed_and_typed_headers_understood(tmp_path: Path) -> None:
    path = write(tmp_path / "log.inter", "timestamp:float\tuser_id:token\tasin:token\n5.0\tu\ta\n")
    assert read(path, item_col="asin").events() == [("u", "a", 5)]


def test_ratings_and_ties_are_read_if_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp,rating,n\nu,a,1,4.5,2\nu,b,1,3,1\n")
    log = read(path, min_rating=0, tie_col="n")
    assert [(row["item_id"], row["rating"], row["tie"]) for row in log.rows] == [("b", 3, 1), ("a", 4.5, 2)]
    assert "rating" not in read(path).rows[0]


def test_ties_of_text_are_ordered_by_value(tmp_path: Path) -> None:
    rows = [(f"i{number}", number) for number in (12, 9, 10, 1, 2)]
    text = "user_id,item_id,timestamp,n\n" + "".join(f"u,{item},1,{number}\n" for item, number in rows)
    log = read(write(tmp_path / "log.csv", text), tie_col="n")
    ordered = sorted(log.rows, key=lambda row: (row["tie"], row["tie_as_is"]))
    assert [row["item_id"] for row in ordered] == ["i1", "i2", "i9", "i10", "i12"]


@pytest.mark.parametrize("name", ["log", "parts"])
def test_relative_folders_tell_their_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir()
    write(folder / "a.csv", "user_id,item_id,timestamp\nu,a,1\n")
    write(folder / "b.csv", "user_id,item_id,timestamp\n,b,2\nu,c,soon\n")
    with pytest.raises(DataError, match=rf"{name}/b\.csv: line 2: user_id is None: expected an id"):
        read(folder)
    assert [(reject.file.name, reject.line) for reject in read(folder, on_bad_row="skip").errors] == [
        ("b.csv", 2),
        ("b.csv", 3),
    ]


def test_relative_files_tell_lines_behind_bad_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(Path("log.csv"), "user_id,item_id,timestamp\nu,a,1\nu,b\nu,c,soon\nu,d,4\n")
    errors = read(path, on_bad_row="skip").errors
    assert [(reject.file, reject.line) for reject in errors] == [(path, 3), (path, 4)]


def test_semicolons_part_fields_too(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", 'user_id;item_id;timestamp\nu;"a;b";1\n')
    assert [row["item_id"] for row in read(path).rows] == ["a;b"]


def test_quotes_of_recbole_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "log.inter", 'user_id:token\titem_id:token\ttimestamp:float\nu\t"a\t1\nu\tb"\t2\n')
    assert [row["item_id"] for row in read(path).rows] == ['"a', 'b"']


def test_ratings_are_asked_of_a_log_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"log\.txt: prepare\.min_rating is set, but a log with one user a line has no ratings"
    ):
        read(write(tmp_path / "log.txt", "u a b c\nv a b\n"), min_rating=0)


def test_named_columns_make_a_table_of_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "log.txt", "u a 5\nv b 6\nw c 7\n")
    log = read(path, columns=("user_id", "item_id", "timestamp"))
    assert [(row["user_id"], row["timestamp"]) for row in log.rows] == [("u", 5), ("v", 6), ("w", 7)]


def test_ratings_may_have_decimal_commas(tmp_path: Path) -> None:
    rows = [("a", "2,5", "-1,0"), ("b", " ,5 ", "3"), ("c", "4", "2.25")]
    lines = ["user_id;item_id;timestamp;rating;qty", *(f"u;{item};1;{rating};{qty}" for item, rating, qty in rows)]
    log = read(write(tmp_path / "log.csv", "\n".join(lines) + "\n"), min_rating=0, quantity_col="qty")
    found = {row["item_id"]: (row["rating"], row["quantity"]) for row in log.rows}
    assert found == {"a": (2.5, -1), "b": (0.5, 3), "c": (4, 2.25)}


@pytest.mark.parametrize("rating", ["", "good", "nan", "1,234", "1.234,5"])
def test_ratings_that_are_no_numbers_are_told(tmp_path: Path, rating: str) -> None:
    path = write(tmp_path / "log.csv", f"user_id;item_id;timestamp;rating\nu;a;1;5\nu;b;1;{rating}\n")
    with pytest.raises(DataError, match=rf"log\.csv: line 3: rating is {repr(rating) if rating else None}: expected a"):
        read(path, min_rating=0)
    assert len(read(path).rows) == 2, "without a rule on ratings nobody looks"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", HEADER, r"log\.csv: has columns but no rows"),
        (
            "log.csv",
            "user_id,thing\n1,2\n",
            r"no column 'item_id' or .*; it has user_id, thing; set prepare\.item_col, prepare\.time_col to",
        ),
        (
            "log.csv",
            "user_id,item_id,moment\n1,2,3\n",
            r"no column 'timestamp' .*item_id, moment; set prepare\.time_col",
        ),
        ("log.csv", "who,item_id,timestamp\n1,2,3\n", r"no column 'user_id' .*; it has who, .*set prepare\.user_col"),
        ("log.csv", 'user_id,item_id,"a\nb"\n1,2,3\n', r"it has user_id, item_id, a\\nb; set prepare\.time_col"),
        (
            "log.jsonl",
            '{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id": 1, "item_id": 2, "item_id": 3}\n',
            r"log\.jsonl: line 2: '.*': not a row \(the key 'item_id' occurs twice\); correct or remove the row",
        ),
        (
            "log.jsonl",
            '{"user_id": 1, "item_id": 2, "timestamp": 3, "\\u0075ser_id": 4}\n',
            r"log\.jsonl: line 1: '.*' is not a row \(the key 'user_id' occurs twice\); write one JSON object",
        ),
        ("log.jsonl", '{"a": 1}\n', r"log\.jsonl: no column 'user_id' .*; it has a; set prepare\.user_col"),
        ("log.parquet", pa.table({"a": [1]}), r"log\.parquet: no column 'user_id' .*; it has a; set prepare\.user_col"),
        ("log.csv", "196,242,3,9\n", r"log\.csv: line 1 is '196,242,3,9': no header, .*; set prepare\.columns"),
        ("log.csv", "ann,book\nbob,pen\n", r"no column 'user_id' .*values of a file without header, prepare\.columns"),
        ("log.csv", "user_id,item_id,item_id,timestamp\n1,2,2,3\n", r"2 columns are named 'item_id', .*rename"),
        (
            "log",
            {"a": HEADER + "1,2,3\n", "b": "item_id,user_id,timestamp\n2,1,3\n"},
            r"log/b: line 1 is 'item_id,user",
        ),
    ],
)
def test_logs_that_are_refused(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_text_ids_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = [("007", 'a,"b"', 1), ("1", "ü\n\tx", 2), ("1.0", "nan1", 3), ("1e5", "-0", 4), ("007", 'a,"b"', 1)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([HEADER.strip().split(","), *rows])
    assert read(write(tmp_path / "log.csv", text.getvalue())).events() == rows


characters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
ids = st.text(characters, max_size=8).map(lambda text: f"i{stripped(text)}")


@settings(max_examples=8, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(ids, ids), min_size=1, max_size=20))
def test_any_id_survives(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(
        [("user_id", "item_id", "timestamp"), *((*row, 5) for row in rows)]
    )
    objects = "".join(json.dumps({"user_id": u, "item_id": i, "timestamp": 5}) + "\n" for u, i in rows)
    for path in (write(folder / "log.csv", text.getvalue()), write(folder / "log.jsonl", objects)):
        assert [(user, item) for user, item, _ in read(path).events()] == rows


REAL = {
    # users, items, events, surplus events of the same user, item and time, identical surplus lines (as the files are:
    # names and texts of people were emptied, which made some more of them identical)
    "Beauty.txt.gz": (22_363, 12_101, 198_502, None, 0),
    "Toys_and_Games.txt.gz": (19_412, 11_924, 167_597, None, 0),
    "beauty_timestamps.csv.gz": (22_332, 12_086, 198_215, 0, 0),
    "amazon2018/Gift_Cards_5.json.gz": (458, 148, 2_972, 3, None),
    "amazon2018/Magazine_Subscriptions_5.json.gz": (348, 157, 2_375, 47, 43),
    "amazon2018/All_Beauty_5.json.gz": (991, 85, 5_269, 1_108, 1_030),
    "amazon2018/Appliances_5.json.gz": (47, 48, 2_277, 2_088, 2_077),
    "amazon2014/reviews_Musical_Instruments_5.json.gz": (1_429, 900, 10_261, 0, 0),
    "amazon2014/reviews_Digital_Music_5.part.json.gz": (2_490, 382, 6_908, 0, 0),
    "other/gowalla_checkins.txt.gz": (100, 6_436, 19_855, 7, None),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_have_their_known_counts(shared: Path, name: str) -> None:
    num_users, num_items, num_events, surplus_events, surplus_lines = REAL[name]
    path = shared / "data" / name
    log = read(path)
    found = (len({row["user_id"] for row in log.rows}), len({row["item_id"] for row in log.rows}), len(log.rows))
    assert (found, log.errors) == ((num_users, num_items, num_events), [])
    if surplus_events is not None:
        assert num_events - len(set(log.events())) == surplus_events
    if surplus_lines is not None:
        assert sum(number - 1 for number in Counter(lines(path)).values()) == surplus_lines


def test_real_times(shared: Path) -> None:
    for name, first, last in (
        ("beauty_timestamps.csv.gz", 1_023_840_000, 1_406_073_600),
        ("amazon2014/reviews_Musical_Instruments_5.json.gz", 1_095_465_600, 1_405_987_200),
    ):
        times = [time for _, _, time in read(shared / "data" / name).events()]
        assert (min(times), max(times)) == (first, last)
    gowalla = read(shared / "data/other/gowalla_checkins.txt.gz").events()
    assert gowalla[0] == ("0", "2049", 1287503727), "newest first, as in the file"


def test_real_file_that_is_cut_off(shared: Path) -> None:
    with pytest.raises(
        DataError, match=r"reviews_Digital_Music_5\.truncated\.json\.gz: the compressed file is truncated"
    ):
        read(shared / "data/amazon2014/reviews_Digital_Music_5.truncated.json.gz")


def test_python_literals_are_read_and_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "run"
    bad = f"{{'reviewerID': __import__('os').system('touch {trap}'), 'asin': 'x', 'unixReviewTime': 1}}"
    nested = "{'reviewerID': " + "[" * 100_000 + "]" * 100_000 + "}"
    path = write(tmp_path / "log", lines_of(repr, REVIEWS) + f"{bad}\n{nested}\n")
    with pytest.raises(DataError, match=r"log: line 4: .*__import__.*: not JSON"):
        read(path)
    log = read(path, on_bad_row="skip")
    assert (len(log.rows), [reject.line for reject in log.errors]) == (3, [4, 5])
    assert log.errors[0].value == bad
    assert not trap.exists()


def test_baskets_with_times_are_no_lists_of_the_reference(tmp_path: Path) -> None:
    text = 'user_id,item_id,timestamp\nu,"[1, 2]",5\nu,"[3]",6\n'
    with pytest.raises(DataError, match=r"log\.csv: line 2: item_id is '\[1, 2\]': a list .*; write one row per item"):
        read(write(tmp_path / "log.csv", text))


def test_other_names_of_columns_are_recognised_with_one_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="slmrec")
    for header in ("USER_ID,ItemID,TimeStamp", "Customer ID, Stock Code, Order-Date", "CustomerId,sku,created_at"):
        caplog.clear()
        log = read(write(tmp_path / "log.csv", f"{header}\nu, a ,1\n v ,b,2\n"))
        assert log.events() == [("u", "a", 1), ("v", "b", 2)]
        assert [record.getMessage().count("columns recognised: user: ") for record in caplog.records] == [1]
    with pytest.raises(DataError, match=r"User-ID and USER_ID may each be the column 'user_id'; set prepare\.user_col"):
        read(write(tmp_path / "log.csv", "User-ID,USER_ID,item_id,timestamp\nu,v,a,1\n"))


TOKENS = [
    b"\n",
    b"\r",
    b'"',
    b"'",
    b",",
    b"\t",
    b" ",
    b"::",
    b"|",
    b"\0",
    b"{",
    b"}",
    b"[",
    b"\\",
    b"\xff",
    b"nan",
    b"-",
]


def mutated(random_: random.Random, content: bytes) -> bytes:
    """With some bytes flipped, deleted, inserted, or cut off."""
    data = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 5))):
        at = random_.randrange(len(data) + 1)
        match random_.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << random_.randrange(8)
            case 1:
                del data[at : at + random_.choice((1, 10))]
            case 2:
                data[at:at] = random_.choice(TOKENS)
            case 3:
                data = data[:at]
            case _:
                data[at:at] = bytes([random_.randrange(256)])
    return bytes(data)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    random_ = random.Random(name)
    content = as_bytes(FORMATS[name][0])
    for number in range(8):
        packing = random_.choice(list(PACKINGS))
        data = PACKINGS[packing](mutated(random_, content))
        path = write(tmp_path / f"log{number}", mutated(random_, data) if random_.randrange(4) == 0 else data)
        for on_bad_row in ("error", "skip"):
            try:
                log = read(path, on_bad_row=on_bad_row, order=random_.choice(("time", "file")))
            except SlmrecError as error:
                assert len(str(error).splitlines()) == 1
                continue
            assert all(reject.line >= 1 and reject.file == path for reject in log.errors)
            assert on_bad_row == "skip" or not log.errors


@settings(max_examples=25, deadline=None, derandomize=True)
@given(content=st.binary(max_size=60) | st.text(st.sampled_from("user_id,\n\t :|{}[]\"'0123456789"), max_size=60))
def test_whatever_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    path = write(tmp_path_factory.mktemp("fuzz") / "log", content)
    for on_bad_row in ("error", "skip"):
        try:
            assert read(path, on_bad_row=on_bad_row, order="file").rows
        except SlmrecError as error:
            assert len(str(error).splitlines()) == 1
