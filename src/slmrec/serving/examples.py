"""Example users of the demo page."""

import json
from pathlib import Path

from slmrec.data.ids import MAX_EXACT_FLOAT, id_text, is_missing
from slmrec.errors import ConfigError, DataError
from slmrec.serving.messages import ItemId, Message

MAX_EXAMPLES = 100


class Example(Message):
    """One example user: a line of the file."""

    user_id: ItemId
    history: list[ItemId]


def read_examples(path: Path) -> list[Example]:
    """Read the first 100 users of a JSON Lines file with the keys `user_id` and `history`.

    Raises:
        ConfigError: The name of the file does not end with .jsonl.
        DataError: The file cannot be read, or a line is invalid.
    """
    if path.suffix != ".jsonl":
        raise ConfigError(f"{path}: example users are read from .jsonl files with one user per line; convert the file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:MAX_EXAMPLES]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the example users cannot be read ({error})") from None
    examples = [_parse_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if any(isinstance(example.user_id, int) and abs(example.user_id) > MAX_EXACT_FLOAT for example in examples):
        return [example.model_copy(update={"user_id": str(example.user_id)}) for example in examples]  # for browsers
    return examples


def _parse_line(path: Path, number: int, line: str) -> Example:
    try:
        example = Example.model_validate_json(line)
        for value in (example.user_id, *example.history):
            id_text(value, whole_numbers=False)
            if is_missing(value):
                raise ValueError
        return example
    except ValueError:
        form = json.dumps({"user_id": "a", "history": [1, 2]})
        raise DataError(f"{path}: line {number}: {line[:80]!r} is not an example user; expected {form}") from None
