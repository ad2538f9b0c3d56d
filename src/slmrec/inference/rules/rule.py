"""Rules, read from Python, JSON and YAML; all of them are checked before they are used."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from math import isfinite, isnan
from pathlib import Path
from reprlib import repr as shortened
from typing import Annotated, Any, Literal, cast

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from slmrec.config.yaml_text import parse_yaml
from slmrec.errors import CheckpointError, ConfigError
from slmrec.files import one_line, parse_json, read_text
from slmrec.folders import RULES

MAX_RULES, MAX_VALUES = 32, 10_000
_MAX_TEXT, _MAX_BOOST = 1000, 1000.0


def _value(value: Any) -> Any:
    """Return a value of a rule as a plain Python value; NaN and NaT are missing values."""
    if isinstance(value, np.datetime64):
        value = None if np.isnat(value) else value.astype("datetime64[us]").item()
    for convert in ("as_py", "tolist"):  # values of Arrow, NumPy and PyTorch
        if hasattr(value, convert):
            value = getattr(value, convert)()
    if value is None or isinstance(value, bool | int | date):
        return None if str(value) == "NaT" else value
    if isinstance(value, float | Decimal) and (isnan(value) or isfinite(value)):
        return None if isnan(value) else value
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        return value
    text = f"expected text of at most {_MAX_TEXT} characters, a number, a boolean, a date or null"
    raise PydanticCustomError("rule_value", "{text}, got {value}", {"text": text, "value": shortened(value)})


def _listed(values: Any) -> Any:
    """Return columns of NumPy, Arrow, pandas and polars as lists; everything else stays."""
    is_column = hasattr(values, "__iter__") and (hasattr(values, "dtype") or hasattr(values, "type"))
    return list(values) if is_column else values


RuleValue = Annotated[
    Any, PlainValidator(_value), WithJsonSchema({"type": ["string", "number", "boolean", "null"], "title": "Value"})
]


class Rule(BaseModel):
    """One rule about the items of a column.

    Example:
        >>> Rule(do="boost", column="brand", values=["Anker"], by=0.5).by
        0.5
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    do: Literal["exclude", "only", "boost", "cap"] = Field(
        description="exclude: these items are not recommended; only: no others are; boost: their scores rise; cap: at "
        "most `by` items of one value"
    )
    column: Annotated[str, Field(strict=True, min_length=1, max_length=256)] = Field(
        description="item_id, title, or a column of prepare.item_columns"
    )
    values: Annotated[
        Annotated[tuple[RuleValue, ...], Field(min_length=1, max_length=MAX_VALUES)] | None, BeforeValidator(_listed)
    ] = Field(
        None, description="values of the column; null stands for a missing value. A cap without values caps each value"
    )
    by: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = Field(
        None, description="boost: standard deviations of the user's scores; cap: number of items, at least 1"
    )

    @model_validator(mode="after")
    def _check(self) -> "Rule":
        if self.do != "cap" and self.values is None:
            raise _fault(f"{self.do} needs values, a list of values of the column {shortened(self.column)}")
        if self.do in ("exclude", "only") and self.by is not None:
            raise _fault(f"by is {self.by:g}, which has no effect with {self.do}; leave it out")
        if self.do == "boost" and not (self.by is not None and abs(self.by) <= _MAX_BOOST):
            raise _fault(f"by is {self._by}, expected standard deviations, from -{_MAX_BOOST:g} to {_MAX_BOOST:g}")
        if self.do == "cap" and not (self.by is not None and self.by >= 1 and self.by == int(self.by)):
            raise _fault(f"by is {self._by}, expected a number of items, at least 1 (exclude takes all of them out)")
        return self

    @property
    def _by(self) -> str:
        return "missing" if self.by is None else f"{self.by:g}"


RulesLike = Sequence[Mapping[str, Any] | Rule] | None
"""Rules as dictionaries or objects; None: no rules."""


def parse_rules(rules: Any, where: str = "rules") -> tuple[Rule, ...]:
    """Return rules from a list of dictionaries or `Rule` objects.

    Args:
        rules: The list; None: no rules.
        where: Name of the list in messages.

    Raises:
        ConfigError: It is no list of rules, or a rule is invalid.

    Example:
        >>> parse_rules([{"do": "cap", "column": "brand", "by": 2}])[0].do
        'cap'
    """
    if rules is None:
        return ()
    if isinstance(rules, str | bytes | Mapping) or not hasattr(rules, "__iter__"):
        raise ConfigError(f"{where} is {shortened(rules)}, expected a list of rules, such as [{_EXAMPLE}]")
    listed = list(rules)
    if len(listed) > MAX_RULES:
        raise ConfigError(f"{where} has {len(listed)} rules, expected at most {MAX_RULES}")
    return tuple(_parsed(rule, f"{where}[{number}]") for number, rule in enumerate(listed))


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Return the rules of a file, a list in JSON or YAML.

    Raises:
        ConfigError: The file cannot be read, has another suffix, or a rule is invalid.
    """
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"{path}: rules are read from .json, .yaml and .yml; rename or convert the file")
    try:
        text = read_text(path)
        content = parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or one_line(error, 200)
        raise ConfigError(f"{path}: rules cannot be read ({reason}); write a list such as [{_EXAMPLE}]") from None
    if not isinstance(content, list):
        raise ConfigError(f"{path}: is {shortened(content)}, expected a list of rules, such as [{_EXAMPLE}]")
    try:
        return parse_rules(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


@contextmanager
def standing_rules(folder: Path) -> Iterator[tuple[Rule, ...]]:
    """Give the rules of `rules.json` of a model folder, which hold for every request; none without the file.

    Raises:
        CheckpointError: The file is invalid, or its rules do not fit the items, as the body of the context finds.
    """
    path = folder / RULES
    if not path.exists():
        yield ()
        return
    try:
        rules = read_rules(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    try:
        yield rules
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def write_rules(rules: tuple[Rule, ...], folder: Path) -> None:
    """Write the standing rules of a model folder."""
    content = [rule.model_dump(mode="json", exclude_none=True) for rule in rules]
    (folder / RULES).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _parsed(rule: Any, where: str) -> Rule:
    try:
        return rule if isinstance(rule, Rule) else _ADAPTER.validate_python(rule)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        shows = fault["type"] not in ("rule", "rule_value", "missing")
        got = f", got {shortened(fault['input'])}" if shows else ""
        raise ConfigError(f"{where}{place}: {one_line(fault['msg'], 300)}{got}") from None


def _fault(text: str) -> PydanticCustomError:
    return PydanticCustomError("rule", cast("Any", "{text}"), {"text": text})


_ADAPTER = TypeAdapter(Rule)
_EXAMPLE = '{"do": "exclude", "column": "brand", "values": ["Anker"]}'
