"""Columns of the items that rules compare: their values as codes, and the items that have given values."""

from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from math import isfinite
from reprlib import repr as shortened
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slmrec.errors import ConfigError
from slmrec.inference.catalogue import Catalogue
from slmrec.models.folder import Vocabulary

_ID, _TITLE = "item_id", "title"


class _Encoded(NamedTuple):
    """Column as codes."""

    codes: NDArray[np.int64]
    """(V+1,): the value of item i is `values[codes[i] - 1]`; 0: it has none. Place 0 is padding."""
    values: pa.Array
    """Distinct values."""


class ItemColumns:
    """Columns of a model folder that rules may name: `item_id`, `title`, and those of `prepare.item_columns`.

    Example:
        >>> import pyarrow as pa
        >>> stock = {"stock": pa.array([0, 7, None])}
        >>> shop = Vocabulary(pa.array(["a", "b", "c"]), None, pa.array([3, 2, 1]), None, stock)
        >>> columns = ItemColumns(shop, Catalogue(shop))
        >>> columns.matching("stock", [0, None]).tolist()
        [False, True, False, True]
    """

    def __init__(self, vocabulary: Vocabulary, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._columns = {} if vocabulary.titles is None else {_TITLE: vocabulary.titles}
        self._columns |= dict(vocabulary.columns)
        self._encoded: dict[str, _Encoded] = {}

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [_ID, *self._columns]

    def codes(self, column: str) -> NDArray[np.int64]:
        """Return (V+1,) the value of each item as a number from 1; 0 where the item has no value.

        Raises:
            ConfigError: There is no such column, or its type cannot be compared.
        """
        if column == _ID:
            return np.arange(len(self._catalogue.item_ids) + 1)
        return self._find(column).codes

    def matching(self, column: str, values: Iterable[Any]) -> NDArray[np.bool_]:
        """Return (V+1,) bool: the items that have one of some values.

        Args:
            column: Name of the column.
            values: Values, which are compared by the type of the column; None matches items without a value.

        Raises:
            ConfigError: There is no such column, or a value does not fit its type.
        """
        if column == _ID:
            mask = np.zeros(len(self._catalogue.item_ids) + 1, dtype=bool)
            mask[[item for value in values if (item := self._item(value)) is not None]] = True
            return mask
        encoded = self._find(column)
        has_value = np.zeros(len(encoded.values) + 1, dtype=bool)
        plain: list[Any] = []
        for value in values:
            if value is None:
                has_value[0] = True
            elif _is_text(encoded.values.type) and not isinstance(value, str):
                has_value[1:] |= _same_as(column, encoded.values, value)
            else:
                plain.append(_converted(column, encoded.values.type, value))
        if plain:
            places = pc.index_in(encoded.values, value_set=_array(column, plain, encoded.values.type))
            has_value[1:] |= np.asarray(places.is_valid())
        matching: NDArray[np.bool_] = has_value[encoded.codes]
        matching[0] = False
        return matching

    def _item(self, value: Any) -> int | None:
        try:
            return self._catalogue.find(value)
        except ValueError as error:
            raise ConfigError(f"column {_ID} has the value {shortened(value)}: {error}") from None

    def _find(self, column: str) -> _Encoded:
        if column not in self._columns:
            known = ", ".join(self.names)
            raise ConfigError(
                f"column {shortened(column)} is not in the model folder, which has {known}; prepare.item_columns keeps "
                "more of them"
            )
        if column not in self._encoded:
            self._encoded[column] = _encode(column, self._columns[column])
        return self._encoded[column]


def _encode(column: str, values: pa.Array) -> _Encoded:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    if pa.types.is_null(values.type):
        values = values.cast(pa.string())
    if _kind_of(values.type) is None:
        raise ConfigError(
            f"column {column} has the type {values.type}, expected text, numbers, booleans or dates; prepare the data "
            "with such a column"
        )
    encoded = values.dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return _Encoded(np.concatenate([np.zeros(1, np.int64), codes]), encoded.dictionary)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


_KINDS: tuple[tuple[str, Callable[[pa.DataType], bool]], ...] = (
    ("text", _is_text),
    ("booleans", pa.types.is_boolean),
    ("whole numbers", pa.types.is_integer),
    ("numbers", lambda kind: pa.types.is_floating(kind) or pa.types.is_decimal(kind)),
    ("dates", lambda kind: pa.types.is_date(kind) or pa.types.is_timestamp(kind)),
)


def _kind_of(kind: pa.DataType) -> str | None:
    return next((name for name, check in _KINDS if check(kind)), None)


def _converted(column: str, kind: pa.DataType, value: Any) -> Any:
    """Return a value as one of the type of the column; text is read as such a value."""
    name = str(_kind_of(kind))
    found: Any = {"text": _text, "booleans": _boolean, "dates": _time}.get(name, _number)(value)
    if name == "whole numbers" and found is not None:
        found = int(found) if found == int(found) else None
    if pa.types.is_date(kind) and found is not None and found.time() != time():
        found = None
    if found is None:
        raise _other_type(column, name, value)
    return Decimal(str(found)) if pa.types.is_decimal(kind) else found


def _array(column: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        if pa.types.is_floating(kind):
            return pa.array(np.array(values, dtype=kind.to_pandas_dtype()), kind)
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        for value in values:
            try:
                pa.array([value], kind)
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                raise _other_type(column, f"values of the type {kind}", value) from None
        raise


def _same_as(column: str, texts: pa.Array, value: Any) -> NDArray[np.bool_]:
    """Return which texts of a column, such as those of CSV files, stand for a number, a boolean or a date."""
    read = _boolean if isinstance(value, bool) else _time if isinstance(value, date) else _number
    read_texts = [read(text) for text in texts.to_pylist()]
    if all(each is None for each in read_texts):
        raise _other_type(column, "text", value)
    wanted = read(value)
    return np.array([each is not None and each == wanted for each in read_texts], dtype=bool)


def _other_type(column: str, name: str, value: Any) -> ConfigError:
    return ConfigError(f"column {column} holds {name}, got the value {shortened(value)}; give values of its type")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _boolean(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().casefold())
    return value if isinstance(value, bool) else None


def _number(value: Any) -> int | float | Decimal | None:
    if isinstance(value, str):
        for read in (int, float):
            try:
                number: int | float = read(value)
            except ValueError:
                continue
            return number if isfinite(number) else None
        return None
    return value if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else None


def _time(value: Any) -> datetime | None:
    """Return a date or time in UTC, without a time zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    return datetime(value.year, value.month, value.day) if isinstance(value, date) else None
