"""Python literals in files of others: read, never run, and bounded so that reading them always ends well."""

import ast
import json
import re
from itertools import accumulate
from typing import Any

_STRING = r"""u?(?:'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+")"""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![^\s,:\])}])"
_TOKENS = re.compile(rf"(?:{_STRING}|{_NUMBER}|True|False|None|[\s,:\[\](){{}}]++)*+", re.DOTALL)
"""All that literals are made of: no names, no calls, no arithmetic, so that only brackets nest."""
_BRACKETS = re.compile(rf"{_STRING}|[^\[\](){{}}'\"]++", re.DOTALL)
_STEP = {"[": 1, "(": 1, "{": 1, "]": -1, ")": -1, "}": -1}
_DEEPEST = 50
_BROKEN = (ValueError, SyntaxError, TypeError)


def literal(text: str) -> Any:
    """The value of a Python literal.

    Raises:
        ValueError: it is none, or brackets nest too deep.

    >>> literal("{'asin': 'B00', 'price': 9.49}")
    {'asin': 'B00', 'price': 9.49}
    """
    if not _TOKENS.fullmatch(text):
        raise ValueError("no Python literal")
    if sum(map(text.count, "[({")) > _DEEPEST and _depth(text) > _DEEPEST:
        raise ValueError(f"brackets nest deeper than {_DEEPEST}")
    try:
        return ast.literal_eval(text.strip())
    except _BROKEN as error:
        raise ValueError(str(error)) from None


def _depth(text: str) -> int:
    return max(accumulate((_STEP[bracket] for bracket in _BRACKETS.sub("", text)), initial=0))


def as_json(line: str) -> str:
    """A line that is a Python literal as JSON; any other one as it is."""
    if not line.strip():
        return "\n"
    try:
        return json.dumps(literal(line)) + "\n"
    except (ValueError, TypeError):  # sets, bytes and keys that are tuples are no JSON
        return line


def list_cell(text: str) -> list[Any] | None:
    """The list that a cell of the reference's table holds; nothing if it is none."""
    try:
        value = literal(text)
    except ValueError:
        return None
    return value if isinstance(value, list) else None
