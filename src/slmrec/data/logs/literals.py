"""Python literals in data files: parsed, never executed, and bounded in nesting so that parsing always terminates."""

import ast
import json
import re
from itertools import accumulate
from typing import Any

_STRING = r"""u?(?:'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+")"""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![^\s,:\])}])"
_TOKENS = re.compile(rf"(?:{_STRING}|{_NUMBER}|True|False|None|[\s,:\[\](){{}}]++)*+", re.DOTALL)
"""The tokens of literals; without names, calls and arithmetic, only brackets can nest."""
_BRACKETS = re.compile(rf"{_STRING}|[^\[\](){{}}'\"]++", re.DOTALL)
_STEP = {"[": 1, "(": 1, "{": 1, "]": -1, ")": -1, "}": -1}
_MAX_DEPTH = 50
_PARSE_ERRORS = (ValueError, SyntaxError, TypeError)


def literal(text: str) -> Any:
    """Return the value of a Python literal.

    Raises:
        ValueError: the text is not a literal, or its brackets nest too deeply.

    Example:
        >>> literal("{'asin': 'B00', 'price': 9.49}")
        {'asin': 'B00', 'price': 9.49}
    """
    if not _TOKENS.fullmatch(text):
        raise ValueError("not a Python literal")
    if sum(map(text.count, "[({")) > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
        raise ValueError(f"brackets nest deeper than {_MAX_DEPTH}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        value = ast.literal_eval(tree)
        if isinstance(tree.body, ast.Dict) and len(value) < len(tree.body.keys):
            raise ValueError("a key occurs twice")
        return value
    except _PARSE_ERRORS as error:
        raise ValueError(str(error)) from None


def _depth(text: str) -> int:
    return max(accumulate((_STEP[bracket] for bracket in _BRACKETS.sub("", text)), initial=0))


def as_json(line: str) -> str:
    """Convert a line with a Python literal to JSON; return any other line unchanged."""
    if not line.strip():
        return "\n"
    try:
        return json.dumps(literal(line)) + "\n"
    except (ValueError, TypeError):  # JSON has no sets, bytes, or tuples as keys
        return line


def list_cell(text: str) -> list[Any] | None:
    """Return the list in a cell of the reference's table, or None if the cell is not a list."""
    try:
        value = literal(text)
    except ValueError:
        return None
    return value if isinstance(value, list) else None
