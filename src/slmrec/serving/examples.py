"""Users to try the page with."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slmrec.errors import ConfigError, DataError
from slmrec.serving.messages import ItemId, Message, Text

MAX_EXAMPLES = 100


class Example(Message):
    """A line of the file."""

    user_id: Text | int
    history: list[ItemId]


def read_examples(path: Path) -> list[Example]:
    """The first hundred users of a file of json lines with `user_id` and `history`.

    Raises:
        ConfigError: the file is none of json lines.
        DataError: it is missing, or a line is something else.
    """
    if path.suffix != ".jsonl":
        raise ConfigError(f"{path}: examples are read from .jsonl, a line a user; convert the file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:MAX_EXAMPLES]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: examples cannot be read ({error})") from None
    return [_example(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _example(path: Path, number: int, line: str) -> Example:
    adapter: TypeAdapter[Any] = TypeAdapter(Example)
    try:
        example: Example = adapter.validate_json(line)
    except ValidationError:
        form = json.dumps({"user_id": "a", "history": [1, 2]})
        raise DataError(f"{path}: line {number}: {line[:80]!r} is no user; write lines like {form}") from None
    return example
