"""Histories from a file, recommendations into a file."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from slmrec.data.files import Source, inspect, lines, unpacked
from slmrec.data.kinds import DELIMITERS, Format, json_fault, kind_of_name
from slmrec.errors import ConfigError, DataError
from slmrec.recommend import Recommender
from slmrec.sequences import COLUMNS, Sequences, sequences_of

_SUFFIXES = (".parquet", ".csv", ".jsonl")
_READ = ".parquet, .csv, .tsv, .jsonl or .txt (one user a line), each plain or .gz"


def recommend_file(model: Path, input: Path, output: Path, k: int, filter_seen: bool = True) -> None:
    """Writes `user_id, item_id, score, rank` for every user of a file.

    Raises:
        CheckpointError: the model folder is incomplete.
        ConfigError: a file is of a kind that is not read or written.
        DataError: the input has neither `user_id, history` nor `user_id, item_id, timestamp`, or cannot be read.
    """
    if output.suffix not in _SUFFIXES:
        raise ConfigError(f"{output}: recommendations are written as {', '.join(_SUFFIXES)}; choose one of them")
    source = _source(input)
    recommender = Recommender.from_pretrained(model)
    users, histories = _histories(source, recommender.id_pattern)
    found = recommender.recommend(histories, k, filter_seen=filter_seen, user_ids=users)
    _write(found.table, output)
    notes = [f"recommend: {found.table.num_rows} rows for {len(users)} users written to {output}"]
    if found.num_unknown:
        notes.append(f"{found.num_unknown} unknown items left out, the first one {found.first_unknown!r}")
    if found.fallback_users:
        notes.append(f"{len(found.fallback_users)} users without a known item got the most popular ones")
    if found.table.num_rows < k * len(users):
        notes.append(f"fewer than {k} a user where no more items are left")
    print("; ".join(notes), flush=True)


def _source(path: Path) -> Source:
    kind = kind_of_name(path)
    if kind is None:
        raise ConfigError(f"{path}: histories are read from {_READ}; name the file so, or convert it")
    if not path.is_file():
        raise DataError(f"{path}: no such file of histories")
    return inspect(path, cast(Format, kind), ())


def _histories(source: Source, id_pattern: str) -> Sequences:
    if source.kind == "sequences":
        words = [re.findall(r"[^ \t\n]+", line) for line in lines(source.path) if line.strip()]
        return Sequences([user for user, *_ in words], [items for _, *items in words])
    return sequences_of(_read(source), id_pattern, str(source.path))


def _read(source: Source) -> pa.Table:
    try:
        if source.kind == "jsonl":
            return _read_jsonl(source)
        with TemporaryDirectory() as folder:
            (path,) = unpacked(source, Path(folder)).files
            return pq.read_table(path) if source.kind == "parquet" else _read_csv(path, DELIMITERS[source.kind])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{source.path}: cannot be read ({' '.join(str(error).split())[:200]})") from None


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    text = {name: pa.string() for name in ("user_id", "item_id", "history")}
    return pa_csv.read_csv(
        path,
        parse_options=pa_csv.ParseOptions(delimiter=delimiter),
        convert_options=pa_csv.ConvertOptions(column_types=text),
    )


def _read_jsonl(source: Source) -> pa.Table:
    """Values as they are written; Arrow's reader takes ids that look like dates for dates."""
    for number, line in enumerate(lines(source.path), 1):
        fault = json_fault(line)
        if fault:
            raise DataError(f"{source.path}: line {number}: {fault}; write one JSON object a line")
    rows = [json.loads(line) for line in lines(source.path) if line.strip()]
    names = dict.fromkeys(name for row in rows for name in row if name in COLUMNS)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".parquet":
        pq.write_table(table, partial)
    elif path.suffix == ".csv":
        pa_csv.write_csv(table, partial)
    else:
        partial.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    partial.replace(path)
