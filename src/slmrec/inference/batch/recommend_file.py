"""Recommendations for all histories of a file, written to a file."""

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from slmrec.config.prepare import PrepareConfig
from slmrec.errors import DataError, SlmrecError, UnknownItemsWarning
from slmrec.inference.batch.known_users import FILES, data_of, known_user_rows, reading_of
from slmrec.inference.batch.resumable_output import Parts, check_output
from slmrec.inference.histories import CheckedHistories
from slmrec.inference.history_files import open_user_rows, read_item_ids
from slmrec.inference.recommendations import Recommendations
from slmrec.inference.recommender import Recommender
from slmrec.inference.rules.rule import read_rules
from slmrec.locks import target_locked
from slmrec.models.folder import find_folder
from slmrec.progress import progress
from slmrec.version import __version__

_LOG = logging.getLogger(__name__)
CHUNK_USERS = 8192
"""Users whose recommendations are computed, and then written, at a time."""


class RankOptions(NamedTuple):
    """Options of `Recommender.recommend` whose item ids stand in files, and how files are read."""

    k: int = 10
    filter_seen: bool = True
    candidates: Path | None = None
    """File of the item ids to rank; None: all items."""
    exclude: Path | None = None
    """File of item ids that are not recommended to anyone."""
    reading: PrepareConfig = PrepareConfig()
    """How histories are read: format, columns, times, invalid rows."""
    allow_unknown: bool = False
    """Accept files more than half of whose item ids are unknown."""
    because: bool = False
    """Also return the reasons of each item."""
    rules: Path | None = None
    """File of rules, in addition to those of the model folder."""
    diversity: float = 0.0
    """Weight of diversity, from 0 to 1."""

    def check(self, recommender: Recommender, arguments: dict[str, Any]) -> None:
        """Check the rules and the diversity against a model, and log a warning of each rule without effect.

        Raises:
            ConfigError: A rule does not fit the columns of the items, or the model has no item vectors to compare.
        """
        recommender.ranker.check_diversity(self.diversity)
        recommender.rules.warn_of_unmatched(arguments["rules"], f"{self.rules}: rules")

    def arguments(self) -> dict[str, Any]:
        """Read the files and return the keyword arguments of `Recommender.recommend`."""
        files = {"candidates": self.candidates, "exclude": self.exclude}
        item_ids = {name: None if path is None else read_item_ids(path) for name, path in files.items()}
        rules = () if self.rules is None else read_rules(self.rules)
        options = {"k": self.k, "filter_seen": self.filter_seen, "because": self.because, "diversity": self.diversity}
        return {**options, **item_ids, "rules": rules}


def recommend_file(
    model: Path,
    input: Path | None,
    output: Path,
    options: RankOptions,
    index: Path | None = None,
    device: str | None = None,
    data: Path | None = None,
) -> None:
    """Write `user_id, item_id, score, rank`, and `because` if asked, for every user of a file, in its order.

    The users are processed in chunks. Finished chunks are kept in a folder beside the output, and the same command
    continues with them after an interruption. The output file appears when it is complete.

    Args:
        model: a model folder, or a hub id.
        input: the histories; None: those of all users of the data set of the model.
        output: the table to write.
        options: length and filters of the lists.
        index: file of `slmrec export --format faiss` for approximate search; None: search is exact.
        device: device of the model, as in `Recommender.from_pretrained`.
        data: data set, or run, whose users are read if there is no input; None: the one beside the model.

    Raises:
        CheckpointError: the model folder is incomplete or damaged, the index belongs to other items, or another process
            writes the output.
        ConfigError: the format of a file is not supported, FAISS is not installed, the device does not exist, or there
            is no data set beside the model.
        DataError: the input has neither `user_id, history` nor `user_id, item_id, timestamp`, cannot be read, or more
            than half of its item ids are unknown.
    """
    check_output(output)
    with target_locked(output):
        _recommend_file(model, input, output, options, index, device, data)


def _recommend_file(
    model: Path,
    histories_file: Path | None,
    output: Path,
    options: RankOptions,
    index: Path | None,
    device: str | None,
    data: Path | None,
) -> None:
    arguments = options.arguments()
    folder = find_folder(model)
    input = histories_file or data_of(folder, data)
    recommender = Recommender.from_pretrained(folder, index=index, device=device)
    options.check(recommender, arguments)
    files = {"model": _file_states(*sorted(folder.iterdir())), "input": _file_states(input)}
    files |= {} if histories_file else {"data": _file_states(*(input / name for name in FILES))}
    files |= {} if index is None else {"index": _file_states(index)}
    unit = recommender.model.timestamp_unit
    reading = options.reading if histories_file else reading_of(input)
    check = partial(recommender.check_asked, arguments["rules"])
    with (
        open_user_rows(input, reading, output.absolute().parent, unit)
        if histories_file
        else known_user_rows(input, unit)
    ) as rows:
        histories = CheckedHistories(rows, recommender.catalogue, reading, unit, check)
        check_unknown(input, histories.num_unknown, histories.num_items, histories.first_unknown, options)
        plan = {"slmrec": __version__, "chunk_users": CHUNK_USERS, "reading": reading.model_dump(mode="json")}
        parts = Parts(output, {**plan, **files, **arguments})
        try:
            _write_parts(recommender, histories, arguments, parts)
        except SlmrecError:  # a second run would fail in the same way
            parts.remove()
            raise
    facts = parts.facts()
    parts.finish()
    _warn(facts, input, histories)
    _LOG.info("; ".join(_summary(facts, output, options.k)))


def check_unknown(input: Path | str, num_unknown: int, num_items: int, first: Any, options: RankOptions) -> None:
    """Refuse a file more than half of whose item ids are unknown, unless the options allow it.

    Raises:
        DataError: The file seems to belong to another model.
    """
    if 2 * num_unknown > num_items and not options.allow_unknown:
        raise DataError(
            f"{input}: {num_unknown} of {num_items} item ids ({num_unknown / num_items:.0%}) are unknown to the model, "
            f"the first one {first!r}; check that --model and --input belong together, or give --allow-unknown"
        )


def _write_parts(
    recommender: Recommender, histories: CheckedHistories, arguments: dict[str, Any], parts: Parts
) -> None:
    """Compute and write the parts that do not exist yet."""
    num_done, user_type = len(parts), histories.user_ids.type
    with progress("recommend: users", histories.num_users) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownItemsWarning)  # the summary says it for all users together
        for number, sequences in enumerate(histories.chunks(CHUNK_USERS)):
            if number >= num_done:
                lists = recommender.recommend(sequences, **arguments)
                users = lists.table["user_id"].cast(user_type)
                parts.append(lists.table.set_column(0, "user_id", users), _facts(lists))
            advance(len(sequences.users))
    if not len(parts):
        lists = recommender.recommend([], **arguments)
        parts.append(lists.table, _facts(lists))


def _facts(lists: Recommendations) -> dict[str, Any]:
    return {
        "users": len(lists.sizes),
        "rows": lists.table.num_rows,
        "unknown": lists.num_unknown,
        "first_unknown": repr(lists.first_unknown),
        "fallback": len(lists.fallback_users),
        "lost": len(lists.lost_users),
        "first_lost": repr(next(iter(lists.lost_users), None)),
    }


def _summary(facts: list[dict[str, Any]], output: Path, k: int) -> list[str]:
    users, rows, unknown, fallback = (
        sum(part[name] for part in facts) for name in ("users", "rows", "unknown", "fallback")
    )
    notes = [f"recommend: {rows} rows for {users} users written to {output}"]
    if unknown:
        first = next(part["first_unknown"] for part in facts if part["unknown"])
        notes.append(f"{unknown} unknown items ignored, the first one {first}")
    if fallback:
        notes.append(f"{fallback} users without a known item received the most popular items")
    if rows < k * users:
        notes.append(f"some users received fewer than {k} because no more items are available")
    return notes


def _file_states(*files: Path) -> list[tuple[str, int, int]]:
    """Return path, size and modification time of each file."""
    states = ((file.resolve(), file.stat()) for file in files if file.is_file())
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in states]


def _warn(facts: list[dict[str, Any]], input: Path, histories: CheckedHistories) -> None:
    """Log the skipped rows, and the users whose histories contain only unknown items."""
    if histories.errors:
        first_error = histories.errors[0].message()
        _LOG.warning("%d invalid rows skipped, the first one: %s", len(histories.errors), first_error)
    lost = sum(part["lost"] for part in facts)
    if lost:
        first = next(part["first_lost"] for part in facts if part["lost"])
        _LOG.warning(
            "%s: %d of %d users, the first one %s, have only unknown items in their history and get the most popular "
            "items; %d of %d item ids (%.0f%%) are unknown, the first one %r",
            *(input, lost, histories.num_users, first, histories.num_unknown, histories.num_items),
            *(100 * histories.num_unknown / histories.num_items, histories.first_unknown),
        )
