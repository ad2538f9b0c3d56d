"""Output of a long command in numbered files beside the final one, so that an interrupted command can continue."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from slmrec.errors import ConfigError, DataError
from slmrec.files import one_line

SUFFIXES = (".parquet", ".csv", ".jsonl")
_FACTS = b"slmrec"


class Parts:
    """Numbered tables with metadata, which together make the output; finished parts of an interrupted run are kept.

    Args:
        output: The file that the parts make.
        plan: Everything on which the parts depend; parts of another plan are deleted.

    Raises:
        ConfigError: The format of the output is not supported.
    """

    def __init__(self, output: Path, plan: dict[str, Any]) -> None:
        check_output(output)
        self._output, self._folder = output, output.with_name(f".{output.name}.parts")
        kept, text = self._folder / "plan.json", json.dumps(plan, default=str)
        if not kept.is_file() or kept.read_text(encoding="utf-8") != text:
            self.remove()
            self._folder.mkdir(parents=True)
            kept.write_text(text, encoding="utf-8")
        self._paths = sorted(self._folder.glob("*.parquet"))
        self._schemas = [self._without_facts(pq.read_schema(path)) for path in self._paths]

    def __len__(self) -> int:
        return len(self._paths)

    def append(self, table: pa.Table, facts: dict[str, Any]) -> None:
        """Write the next part.

        Args:
            table: Rows of the output.
            facts: Metadata, which must be JSON.

        Raises:
            DataError: A column has another type than in the earlier parts.
        """
        if self._schemas:
            self._schema([*self._schemas[:1], table.schema])
        path = self._folder / f"{len(self):08d}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(table.replace_schema_metadata({_FACTS: json.dumps(facts, default=str)}), partial)
        partial.replace(path)
        self._paths.append(path)
        self._schemas.append(table.schema)

    def facts(self) -> list[dict[str, Any]]:
        """Return the metadata of each part."""
        return [json.loads(pq.read_schema(path).metadata[_FACTS]) for path in self._paths]

    def finish(self) -> None:
        """Write the output from all parts, and delete the parts."""
        schema = self._schema(self._schemas)
        partial = self._folder / "whole"
        _WRITERS[self._output.suffix](partial, schema, self._tables(schema))
        partial.replace(self._output)
        self.remove()

    def remove(self) -> None:
        """Delete all parts."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        for path in self._paths:
            yield pq.read_table(path).replace_schema_metadata().cast(schema)

    def _schema(self, schemas: list[pa.Schema]) -> pa.Schema:
        try:
            return pa.unify_schemas(schemas, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"{self._output}: {one_line(error)}; give all ids the same type") from None

    @staticmethod
    def _without_facts(schema: pa.Schema) -> pa.Schema:
        return schema.remove_metadata()


def check_output(output: Path) -> None:
    """Refuse an output whose format is not supported.

    Raises:
        ConfigError: The suffix is unknown.
    """
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"{output}: recommendations are written as {', '.join(SUFFIXES)}; choose one of them")


def _write_parquet(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_csv(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    nested = [number for number, field in enumerate(schema) if pa.types.is_list(field.type)]
    flat = schema
    for number in nested:
        flat = flat.set(number, schema.field(number).with_type(pa.string()))
    with pa_csv.CSVWriter(path, flat) as writer:
        for table in tables:
            columns = table.columns
            for number in nested:
                columns[number] = pa.array(map(json.dumps, columns[number].to_pylist()), pa.string())
            writer.write_table(pa.table(columns, schema=flat))


def _write_jsonl(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


_WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
