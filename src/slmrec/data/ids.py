"""Ids of users and items: the one place that decides which values are ids, and which ids are whole numbers.

The type of an id is a fact of its whole column. A column holds whole numbers if every value is a whole number (typed
columns) or is written as one, with or without zeros after the point (text). `17001.0` is then the id 17001. Every
other column holds text, and its ids stay as they are: `007`, `1E5`, `A1`. Columns of fractions, and of floats too large
to be exact, are refused. Spaces around an id do not belong to it.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import ibis
from ibis.expr.types import Column

from slmrec.config.prepare import NULL_VALUES, IdType
from slmrec.data.engine import first_row

WHOLE_NUMBER = "-?(0|[1-9][0-9]*)([.]0+)?"
"""A whole number as text; tables that passed through floats write 5 as 5.0."""
MAX_EXACT_FLOAT = 2**53
"""The largest whole number up to which 64-bit floats, and the numbers of JavaScript, hold every whole number."""
ONE_ROW_PER_ITEM = "a list or an object, expected one id; write one row per item (explode the lists)"
TEXT_REMEDY = "set prepare.id_type=text to keep every id as written"

_NULLS = ("nan", "NaN", "NaT", "<NA>")
"""The texts of the values that NumPy, pandas and decimals have for nothing."""
_BLANKS = "[\\s\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]"
_AROUND = rf"^{_BLANKS}+|{_BLANKS}+$"
_FLOAT = "-?((0|[1-9][0-9]*)([.][0-9]+)?|[0-9]([.][0-9]+)?e[+-][0-9]+|[0-9][.][0-9]+[eE][0-9]+)"
"""A number as programs write floats; codes such as 1E5 are no such numbers."""
_SCALAR = r"""("[^"]*"|'[^']*'|-?[0-9]+([.][0-9]*)?([ ]+-?[0-9]+([.][0-9]*)?)*|true|false|null|True|False|None)"""
_LIST = rf"^(\[.*,.*\]|\[ *({_SCALAR}|[\[{{(].*)? *\]|\{{.*[,:=].*\}}|\{{ *{_SCALAR}? *\}}|\(.*,.*\))$"
"""A list or an object as text. `[deleted]` and `[U:1:4614]` are ids."""
_OPENING = ("[", "{", "(")
_ZEROS = "[.]0+$"
_MAX_INT64, _MAX_UINT64 = 2**63 - 1, 2**64 - 1
_EXACT_BITS = {"float16": 11, "float32": 24, "float64": 53}
_HUGE = "decimal(38, 0)"
UNSIGNED = "decimal(20, 0)"
"""The type of whole numbers above the range of int64 while tables are computed; they are written as uint64."""


def id_text(value: Any, whole_numbers: bool) -> str:
    """Return the text of one id, as the text of a catalogue's id.

    Args:
        value: an id of a request: text, or a number of Python, NumPy or JSON.
        whole_numbers: whether the ids of the catalogue are whole numbers; `9.0` and `"9.0"` are then 9.

    Raises:
        ValueError: the value is no id; the message says why.

    Example:
        >>> id_text(9.0, True), id_text(" 9.0 ", True), id_text("9.0", False), id_text("x", True)
        ('9', '9', '9.0', 'x')
    """
    if isinstance(value, str):
        text = stripped(value)
        if text[:1] in _OPENING and re.fullmatch(_LIST, text):
            raise ValueError(ONE_ROW_PER_ITEM)
        is_number = whole_numbers and re.fullmatch(_FLOAT, text)
        return _whole_text(Decimal(text), is_float=not text.lstrip("-").isdecimal()) if is_number else text
    if isinstance(value, list | tuple | set | dict):
        raise ValueError(ONE_ROW_PER_ITEM)
    if isinstance(value, bool) or is_missing(value):
        raise ValueError("expected an id")
    if isinstance(value, Integral) or not (whole_numbers and isinstance(value, Real | Decimal)):
        return str(value)
    if isinstance(value, Decimal):
        return _whole_text(value, is_float=False)
    return _whole_text(Decimal(float(value)), is_float=True)


def _whole_text(number: Decimal, is_float: bool) -> str:
    if not number.is_finite() or number != number.to_integral_value():
        raise ValueError("expected a whole number or text")
    if is_float and abs(number) > MAX_EXACT_FLOAT:
        raise ValueError("a float above 2^53, which is not exact; give the id as a whole number or as text")
    return str(int(number))


def is_missing(value: Any, null_values: Sequence[str] = NULL_VALUES) -> bool:
    """Return whether a value stands for a missing id: None, NaN, blanks, or one of the words for nothing.

    Example:
        >>> is_missing("n/a"), is_missing(" "), is_missing(float("nan")), is_missing("007")
        (True, True, True, False)
    """
    if isinstance(value, str):
        return stripped(value).lower() in {"", *map(str.lower, null_values)}
    return value is None or str(value) in _NULLS


def stripped(text: str) -> str:
    """Return a text without the spaces around it, of any kind."""
    return re.sub(_AROUND, "", text)


def id_column(column: Column) -> Column | str:
    """Return a column of ids as text without spaces around it, or as numbers; or why it holds no ids."""
    dtype = column.type()
    if dtype.is_string():
        return column.re_replace(_AROUND, "")
    if dtype.is_uuid():
        return column.cast("string")
    if dtype.is_numeric() and not dtype.is_boolean():
        return column
    if dtype.is_nested():
        return f"has the type {dtype}, {ONE_ROW_PER_ITEM}"
    return f"has the type {dtype}, expected ids that are text or whole numbers; convert the column"


def is_missing_id(ids: Column, null_values: Sequence[str]) -> Any:
    """Return the condition of `is_missing` for a column from `id_column`."""
    if ids.type().is_string():
        return ids.isnull() | ids.lower().isin(["", *map(str.lower, null_values)])
    return ids.isnull() | ids.isnan() if ids.type().is_floating() else ids.isnull()


def missing_reason(value: str | None) -> str:
    """Return what is expected instead of a missing id."""
    is_word = value is not None and stripped(value) not in ("", "nan")  # the text of a float is nan
    return f"expected an id{' (the word is one of prepare.null_values)' if is_word else ''}"


def is_list(ids: Column) -> Any:
    """Return a condition that holds where the text of an id is a list or an object."""
    if not ids.type().is_string():
        return ibis.literal(False)
    begins = ids.startswith("[") | ids.startswith("{") | ids.startswith("(")  # cheaper than the pattern
    return ibis.ifelse(begins, ids.re_search(_LIST), False).fill_null(False)


def as_ids_of(text: Column, whole_numbers: bool) -> Column:
    """Return ids as text in the way of a catalogue: where its ids are whole numbers, `5.0` is 5.

    Args:
        text: ids as they are written.
        whole_numbers: whether the ids of the catalogue are whole numbers.
    """
    if not whole_numbers:
        return text
    plain = ibis.ifelse(_is_whole(text), text.re_replace(_ZEROS, ""), text)
    return ibis.ifelse(plain == "-0", "0", plain)


class IdKind(NamedTuple):
    """The type of all ids of a column."""

    name: Literal["text", "int64", "uint64", "whole", "refused"]
    """`whole`: whole numbers outside of the 64-bit types, which are kept as text."""

    def convert(self, ids: Column) -> Column:
        """Return the ids in their type; whole numbers that are written as floats become whole numbers."""
        dtype = ids.type()
        if self.name == "text":
            return ids.cast("string")
        whole = ids
        if dtype.is_string():
            whole = ibis.ifelse(ids.contains("."), ids.re_replace(_ZEROS, ""), ids)
        elif dtype.is_decimal():
            whole = ids.cast(_HUGE)
        if self.name == "whole":
            return whole.cast("string").replace("-0", "0") if dtype.is_string() else whole.cast("string")
        return whole.cast("int64" if self.name == "int64" else UNSIGNED)


def kind_of_ids(ids: Column, id_type: IdType) -> IdKind:
    """Determine the type of the ids of a column without missing ids.

    Args:
        ids: a column from `id_column`.
        id_type: the setting of `prepare`.
    """
    dtype = ids.type()
    if id_type == "text":
        return IdKind("text")
    if dtype.is_integer() and not dtype.is_uint64():
        return IdKind("int64")
    distinct = ids.name("id").as_table().distinct()
    if not dtype.is_string():
        is_any_refused = bool(first_row(distinct.filter(is_refused(distinct.id))))
        return IdKind("refused") if is_any_refused else _kind_of_whole_numbers(distinct.id.cast(_HUGE))
    is_whole = _is_whole(distinct.id)
    texts = first_row(
        distinct.aggregate(
            whole=is_whole.all(), refused=is_refused(distinct.id).any(), floats=_is_float(distinct.id).all()
        )
    )
    if texts["floats"] and texts["refused"]:
        return IdKind("refused")
    if not texts["whole"]:
        return IdKind("text")
    return _kind_of_whole_numbers(distinct.id.re_replace(_ZEROS, "").try_cast(_HUGE))


def _kind_of_whole_numbers(numbers: Column) -> IdKind:
    """Return the smallest type for whole numbers, which are null where they have more than 38 digits."""
    table = numbers.name("number").as_table()
    facts = first_row(
        table.aggregate(least=table.number.min(), most=table.number.max(), is_huge=table.number.isnull().any())
    )
    if facts["least"] is None and not facts["is_huge"]:  # no rows
        return IdKind("int64")
    if facts["is_huge"] or facts["most"] > _MAX_UINT64 or facts["least"] < -_MAX_INT64 - 1:
        return IdKind("whole")
    if facts["most"] <= _MAX_INT64:
        return IdKind("int64")
    return IdKind("uint64" if facts["least"] >= 0 else "whole")


def is_refused(ids: Column) -> Any:
    """Return a condition that holds for fractions, and for floats that are too large to be exact."""
    dtype = ids.type()
    if dtype.is_string():
        has_point = ids.contains(".") | ids.contains("e")
        number = ibis.ifelse(has_point & _is_float(ids), ids, None).try_cast("float64")
        inexact = (number.abs() > MAX_EXACT_FLOAT) | (number % 1 != 0) | ids.re_search("^-?[0-9]+[.]0*[1-9][0-9]*$")
        return (number.notnull() & inexact).fill_null(False)
    if dtype.is_decimal():
        return ids % 1 != 0
    if dtype.is_floating():
        return (ids % 1 != 0) | (ids.abs() > 2 ** _EXACT_BITS[str(dtype).lower()])
    return ids.isnull()


def refusal(value: Any) -> str:
    """Return why a value from `is_refused` cannot be an id."""
    is_fraction = bool(re.fullmatch("[^eE]*[.]0*[1-9][0-9]*", str(value))) or 0 < float(value) % 1 < 1
    kind = "a fraction" if is_fraction else "a float that is too large to be exact"
    return f"{kind}, expected ids that are whole numbers or text; write whole numbers, or {TEXT_REMEDY}"


def _is_whole(text: Column) -> Any:
    return text.re_search(f"^({WHOLE_NUMBER})$")


def _is_float(text: Column) -> Any:
    return text.re_search(f"^({_FLOAT})$")
