"""Histories of users: checked against a catalogue, from lists, tables and files."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from reprlib import repr as shortened
from typing import Any, NamedTuple

import pyarrow as pa

from slmrec.config.prepare import PrepareConfig
from slmrec.data.ids import WHOLE_NUMBER, id_text, is_missing
from slmrec.data.logs.literals import list_cell
from slmrec.data.logs.row_errors import RowError
from slmrec.errors import ConfigError, DataError
from slmrec.inference.catalogue import Catalogue, ItemIdError
from slmrec.inference.history_files import DIVERSITY, HISTORY, RULES, SKIP_REMEDY, UserRow, UserRows, table_user_rows
from slmrec.inference.rules.rule import Rule, parse_rules
from slmrec.inference.timestamps import TIMESTAMPS, check_timestamps, checked_times
from slmrec.types import Unit

_WHOLE_NUMBER = re.compile(WHOLE_NUMBER)
_READING = PrepareConfig()
_MAX_INT64, _MAX_UINT64 = 2**63 - 1, 2**64 - 1


class Sequences(NamedTuple):
    """Users and their histories of item ids, oldest first."""

    users: list[Any]
    histories: Sequence[Sequence[Any]]
    timestamps: list[list[int]] | None = None
    """Times of the items of each history; None: not given, or not read."""
    asked: "list[Asked] | None" = None
    """What each user alone asks for; None: nobody does."""


class Asked(NamedTuple):
    """Rules and diversity of one user of a file or table."""

    rules: tuple[Rule, ...] = ()
    diversity: float | None = None
    """None: not given."""


class KnownHistories(NamedTuple):
    """Histories as items of a model."""

    items: list[list[int]]
    times: list[list[int]] | None
    """Times of the items; None: not given, or not read."""
    unknown: tuple[tuple[Any, ...], ...]
    """Ids of each history that the model does not know."""


def known_histories(sequences: Sequences, catalogue: Catalogue) -> KnownHistories:
    """Return the known items, their times, and the unknown ids of some histories.

    Raises:
        DataError: A value of a history is no item id.
    """
    known, unknown, times = [], [], sequences.timestamps and list(sequences.timestamps)
    for number, history in enumerate(sequences.histories):
        try:
            items, rest = catalogue.split(history)
        except ItemIdError as error:
            raise DataError(f"history {number}: {error}") from None
        if times and rest:
            times[number] = catalogue.times_of_known(history, times[number])
        known.append(items)
        unknown.append(tuple(rest))
    return KnownHistories(known, times, tuple(unknown))


class CheckedHistories:
    """Users and histories of a file or table, all of which are read once to check them.

    User ids are whole numbers if all of them are, with or without zeros after the point; otherwise they are text.

    Args:
        rows: The users as they are in the file.
        catalogue: Catalogue of the model; its ids decide how item ids are read.
        settings: How invalid rows and ids are treated.
        unit: Unit in which the model reads times; None: it reads none.
        check: Refuses what a user asks for, by a ConfigError; None: nothing but its form is checked.

    Raises:
        DataError: A user id is missing, or a history contains something that is no item id; invalid rows are skipped
            instead if `on_bad_row` is `skip`.
    """

    def __init__(
        self,
        rows: UserRows,
        catalogue: Catalogue,
        settings: PrepareConfig,
        unit: Unit | None = None,
        check: Callable[[Asked], None] = lambda _: None,
    ) -> None:
        self._rows, self._catalogue, self._unit, self._check_asked = rows, catalogue, unit, check
        self.user_ids = _UserIds(settings)
        self.num_users = self.num_items = self.num_unknown = 0
        self.first_unknown: Any = None
        self.errors = list(rows.errors)
        """Invalid rows, which are skipped."""
        self._skipped: set[int] = set()
        for number, row in enumerate(rows.read()):
            error = self._check(row)
            if error is not None and settings.on_bad_row == "error":
                raise DataError(f"{error.message()}; correct or remove the {error.unit}{SKIP_REMEDY}")
            if error is not None:
                self._skipped.add(number)
                self.errors.append(error)

    def chunks(self, size: int) -> Iterator[Sequences]:
        """Yield all users in the order of the file, `size` at a time or fewer; the same ones in every call."""
        users: list[Any] = []
        histories: list[list[Any]] = []
        times: list[list[int]] = []
        asked: list[Asked] = []

        def chunk() -> Sequences:
            return Sequences(users, histories, times if self._unit else None, asked if any(map(any, asked)) else None)

        for number, row in enumerate(self._rows.read()):
            if number not in self._skipped:
                users.append(self.user_ids.convert(row.user))
                histories.append(history_of(row.history, self._catalogue.id_pattern))
                asked.append(asked_of(row))
                if self._unit is not None:
                    times.append(times_of(row.times, len(histories[-1]), self._unit))
            if len(users) == size:
                yield chunk()
                users, histories, times, asked = [], [], [], []
        if users:
            yield chunk()

    def _check(self, row: UserRow) -> RowError | None:
        """Count a row; return its error if it is invalid."""
        try:
            self.user_ids.add(row.user)
        except ValueError as error:
            return row.error("user_id", row.user, str(error), self._rows.unit)
        try:
            history = history_of(row.history, self._catalogue.id_pattern)
            known, unknown = self._catalogue.split(history)
        except ItemIdError as error:
            place = f"item {error.position + 1} of the history of user {row.user!r}"
            return row.error(place, error.value, error.reason, self._rows.unit)
        except ValueError as error:
            return row.error(HISTORY, None if row.history is ... else row.history, str(error), self._rows.unit)
        try:
            if self._unit is not None:
                times_of(row.times, len(history), self._unit)
        except ValueError as error:
            place = f"{TIMESTAMPS} of user {row.user!r}"
            return row.error(place, None if row.times is ... else row.times, str(error), self._rows.unit)
        try:
            self._check_asked(asked_of(row))
        except ConfigError as error:
            value = row.diversity if str(error).startswith(DIVERSITY) else row.rules
            return row.error(f"{RULES} of user {row.user!r}", shortened(value), str(error), self._rows.unit)
        self.num_users += 1
        self.num_items += len(known) + len(unknown)
        self.num_unknown += len(unknown)
        if unknown and self.first_unknown is None:
            self.first_unknown = unknown[0]
        return None


class _UserIds:
    """Type of a column of user ids, decided by all of them."""

    def __init__(self, settings: PrepareConfig) -> None:
        self._null_values = settings.null_values
        self._keeps_text = settings.id_type == "text"
        self._are_whole = not self._keeps_text
        self._least = self._most = 0

    def add(self, value: Any) -> None:
        """Take an id into account.

        Raises:
            ValueError: The id is missing, a list, or a number with a fraction.
        """
        if is_missing(value, self._null_values):
            raise ValueError("expected an id")
        text = self._text(value)
        self._are_whole = self._are_whole and _WHOLE_NUMBER.fullmatch(text) is not None
        if self._are_whole:
            number = int(text.partition(".")[0])
            self._least, self._most = min(self._least, number), max(self._most, number)

    def convert(self, value: Any) -> Any:
        """Return an id in the type of the column."""
        if pa.types.is_string(self.type):
            return id_text(value, whole_numbers=True) if self._are_whole else self._text(value)
        return int(id_text(value, whole_numbers=True))

    @property
    def type(self) -> pa.DataType:
        """Type of the ids: the smallest of int64, uint64 and text that holds all of them."""
        if self._are_whole and self._least >= -_MAX_INT64 - 1 and self._most <= _MAX_INT64:
            return pa.int64()
        return pa.uint64() if self._are_whole and self._least >= 0 and self._most <= _MAX_UINT64 else pa.string()

    def _text(self, value: Any) -> str:
        return id_text(value, whole_numbers=not (self._keeps_text or isinstance(value, str)))


def read_histories(
    histories: Any,
    catalogue: Catalogue,
    unit: Unit | None,
    timestamps: Sequence[Sequence[Any]] | None = None,
    user_ids: Sequence[Any] | None = None,
    check: Callable[[Asked], None] = lambda _: None,
) -> Sequences:
    """Return the users and histories of a list of histories, or of an Arrow, pandas or polars table.

    Args:
        histories: The list or table; or users and histories that were read before, which are returned.
        catalogue: Catalogue of the model.
        unit: Unit in which the model reads times; None: it reads none.
        timestamps: Times of the items of each history of a list.
        user_ids: User ids; None: those of the table, or 0, 1, ...
        check: Refuses what a user of a table asks for, by a ConfigError.

    Raises:
        ConfigError: A history is no list, the number of user ids differs, or timestamps do not fit.
        DataError: The table has other columns, or a value of a history is no item id.
    """
    if isinstance(histories, Sequences):
        return histories
    if is_table(histories):
        if timestamps is not None:
            raise ConfigError("timestamps are given beside a table, which holds times in a column; leave them out")
        with table_user_rows(histories, _READING, unit) as rows:
            table = CheckedHistories(rows, catalogue, _READING, unit, check)
            read = next(table.chunks(max(1, table.num_users)), Sequences([], []))
    else:
        check_histories(histories)
        times = check_timestamps(timestamps, histories, unit)
        read = Sequences(list(range(len(histories))), histories, times if unit else None)
    if user_ids is None:
        return read
    if len(user_ids) != len(read.histories):
        raise ConfigError(f"user_ids has {len(user_ids)} names for {len(read.histories)} histories; give one each")
    return read._replace(users=list(user_ids))


def is_table(data: object) -> bool:
    """Return whether an object is an Arrow, pandas or polars table."""
    return hasattr(data, "__arrow_c_stream__") and hasattr(data, "columns")


def history_of(value: Any, id_pattern: str) -> list[Any]:
    """Return the item ids of a history: a list, or text with a list or with ids separated by spaces or commas.

    Args:
        value: The history; None or an empty text is an empty history.
        id_pattern: Pattern of an item id in a history that is text.

    Raises:
        ValueError: The value is no history, or missing (`...`).

    Example:
        >>> history_of("a, b", r"[^\\s,]+"), history_of("[1, 2]", r"[^\\s,]+"), history_of("['a']", r"[^\\s,]+")
        (['a', 'b'], [1, 2], ['a'])
    """
    if value is ... or isinstance(value, dict):
        raise ValueError("expected a list of item ids, [] if there are none")
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        return [] if value is None else [value]
    text = value.strip()
    if not text.startswith("["):
        return re.findall(id_pattern, text)
    try:
        items = json.loads(text)
    except ValueError:
        items = list_cell(text)  # as Python writes lists
    if not isinstance(items, list):
        raise ValueError('no JSON list; write ["a", "b"], or a b')
    return items


def times_of(value: Any, num_items: int, unit: Unit) -> list[int]:
    """Return the times of a history from a list, or from text as `history_of` reads it.

    Raises:
        ValueError: The value is no list of times, or does not fit the history.
    """
    if value is ... or isinstance(value, dict):
        raise ValueError("expected a list of times, as long as the history")
    return checked_times(history_of(value, r"[^\s,]+"), num_items, unit)


def asked_of(row: UserRow) -> Asked:
    """Return the rules and the diversity of a row: lists, or text with a JSON list; numbers, or text.

    Raises:
        ConfigError: They are invalid.
    """
    rules, diversity = (None if value is ... or value == "" else value for value in (row.rules, row.diversity))
    if isinstance(rules, str):
        try:
            rules = json.loads(rules)
        except ValueError:
            raise ConfigError(f"{RULES} is {shortened(rules)}, expected a JSON list of rules") from None
    if isinstance(rules, list):  # tables give each rule the fields of all
        rules = [
            {name: value for name, value in rule.items() if value is not None} if isinstance(rule, dict) else rule
            for rule in rules
        ]
    try:
        return Asked(parse_rules(rules), None if diversity is None else float(diversity))
    except (TypeError, ValueError):
        raise ConfigError(f"{DIVERSITY} is {shortened(diversity)}, expected a number from 0 to 1") from None


def check_histories(histories: Any) -> None:
    """Refuse anything but a list of lists; a text would be read letter by letter.

    Raises:
        ConfigError: A history is no list.
    """
    for number, history in enumerate(histories):
        if isinstance(history, str):
            raise ConfigError(f"history {number} is {history!r}, expected a list of item ids; give [{history!r}]")
        if not hasattr(history, "__len__"):
            given = shortened(histories)
            raise ConfigError(f"histories is {given}, expected a list of histories; give [{given}]")
