"""Example users of the demo page."""

import json
from itertools import islice
from pathlib import Path

from slmrec.data.ids import MAX_EXACT_FLOAT, id_text, is_missing
from slmrec.errors import ConfigError, DataError
from slmrec.files import parse_json, special_file
from slmrec.inference.timestamps import checked_times
from slmrec.serving.messages import ItemId, Message

MAX_EXAMPLES = 100
_MAX_LINE = 2**20
"""Longer lines, in characters, are no example users."""


class Example(Message):
    """One example user: a line of the file."""

    user_id: ItemId
    history: list[ItemId]
    timestamps: list[int] | None = None


def read_examples(path: Path) -> list[Example]:
    """Read the first 100 users of a JSON Lines file with the keys `user_id`, `history` and optionally `timestamps`.

    Raises:
        ConfigError: The name of the file does not end with .jsonl.
        DataError: The file cannot be read, or a line is invalid.
    """
    if path.suffix != ".jsonl":
        raise ConfigError(f"{path}: example users are read from .jsonl files with one user per line; convert the file")
    if kind := special_file(path):
        raise DataError(f"{path}: is {kind}, expected a file; save the example users to a file first")
    try:
        with path.open(encoding="utf-8") as stream:
            lines = list(islice(iter(lambda: stream.readline(_MAX_LINE), ""), MAX_EXAMPLES))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the example users cannot be read ({error})") from None
    examples = [_parse_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if any(isinstance(example.user_id, int) and abs(example.user_id) > MAX_EXACT_FLOAT for example in examples):
        return [example.model_copy(update={"user_id": str(example.user_id)}) for example in examples]  # for browsers
    return examples


def _parse_line(path: Path, number: int, line: str) -> Example:
    try:
        parse_json(line)  # refuses keys that occur twice
        example = Example.model_validate_json(line)
        for value in (example.user_id, *example.history):
            id_text(value, whole_numbers=False)
            if is_missing(value):
                raise ValueError
        if example.timestamps is not None:
            checked_times(example.timestamps, len(example.history), "s")
        return example
    except ValueError:
        form = json.dumps({"user_id": "a", "history": [1, 2]})
        raise DataError(
            f"{path}: line {number}: {line.strip()[:80]!r} is not an example user; expected {form}"
        ) from None
