"""Histories from a file, recommendations into a file; or one history, recommendations on the screen."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from slmrec.errors import SlmrecError
from slmrec.inference.batch.history_files import HistoryFile, read_item_ids
from slmrec.inference.batch.resumable_output import Parts, check_output
from slmrec.inference.histories import history_of_text
from slmrec.inference.recommender import Recommendations, Recommender
from slmrec.models.folder import find_folder
from slmrec.version import __version__

CHUNK_USERS = 8192
"""Users whose recommendations are computed, and then written, at a time."""


class Wanted(NamedTuple):
    """What every user is to get."""

    k: int = 10
    filter_seen: bool = True
    candidates: Path | None = None
    """A file of the item ids to rank."""
    exclude: Path | None = None
    """A file of item ids that nobody gets."""

    def arguments(self) -> dict[str, Any]:
        """Of `Recommender.recommend`."""
        files = {"candidates": self.candidates, "exclude": self.exclude}
        item_ids = {name: None if path is None else read_item_ids(path) for name, path in files.items()}
        return {"k": self.k, "filter_seen": self.filter_seen, **item_ids}


def recommend_file(model: Path, input: Path, output: Path, wanted: Wanted, index: Path | None = None) -> None:
    """Writes `user_id, item_id, score, rank` for every user of a file, in the order of the file.

    Some users at a time are read, answered and written into a folder beside the output, where a second run of the same
    command finds them. The output appears whole.

    Args:
        model: a model folder, or a hub id.
        input: the histories.
        output: the table to write.
        wanted: what every user is to get.
        index: of `slmrec export --format faiss`, to search in; None: search is exact.

    Raises:
        CheckpointError: the model folder is incomplete or damaged, or the index is that of other items.
        ConfigError: a file is of a kind that is not read or written, or FAISS is not installed.
        DataError: the input has neither `user_id, history` nor `user_id, item_id, timestamp`, or cannot be read.
    """
    check_output(output)
    file, arguments = HistoryFile.open(input), wanted.arguments()
    folder = find_folder(model)
    recommender = Recommender.from_pretrained(folder, index=index)
    files = {"model": _state(*sorted(folder.iterdir())), "input": _state(input)}
    files |= {} if index is None else {"index": _state(index)}
    parts = Parts(output, {"slmrec": __version__, "chunk_users": CHUNK_USERS, **files, **arguments})
    try:
        _answer(recommender, file, arguments, parts)
    except SlmrecError:  # the same again would end the same
        parts.remove()
        raise
    facts = parts.facts()
    parts.finish()
    print("; ".join(_notes(facts, output, wanted.k)), flush=True)


def recommend_history(model: Path, history: str, wanted: Wanted, index: Path | None = None) -> None:
    """Prints the recommendations for one history, with titles.

    Args:
        model: a model folder, or a hub id.
        history: item ids as text.
        wanted: what the user is to get.
        index: as in `recommend_file`.

    Raises:
        CheckpointError: the model folder is incomplete or damaged, or the index is that of other items.
        ConfigError: FAISS is not installed.
        DataError: the history begins as a JSON list and is none.
    """
    recommender = Recommender.from_pretrained(model, index=index)
    items = history_of_text(history, recommender.id_pattern, "--history")
    found = recommender.recommend([items], **wanted.arguments())
    console = Console()
    console.print("after " + ", ".join(escape(_named(recommender, item)) for item in items), highlight=False)
    table = Table("rank", "item_id", "title", "score")
    for rank, (item_id, score) in enumerate(found.to_lists()[0], 1):
        table.add_row(str(rank), escape(str(item_id)), escape(recommender.title(item_id) or ""), f"{score:.4f}")
    console.print(table)
    if found.num_unknown:
        print(f"{found.num_unknown} unknown items left out, the first one {found.first_unknown!r}")
    if found.fallback_users:
        print("no known item in the history: these are the most popular ones")


def _named(recommender: Recommender, item: Any) -> str:
    title = recommender.title(item)
    return f"{item} ({title})" if title else str(item)


def _answer(recommender: Recommender, file: HistoryFile, arguments: dict[str, Any], parts: Parts) -> None:
    """Computes the parts that are not there yet."""
    num_done = len(parts)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("users", total=file.num_users)
        for number, (users, histories) in enumerate(file.chunks(CHUNK_USERS, recommender.id_pattern)):
            if number >= num_done:
                found = recommender.recommend(histories, user_ids=users, **arguments)
                parts.append(found.table, _facts(found))
            progress.advance(bar, len(users))
    if not len(parts):
        found = recommender.recommend([], **arguments)
        parts.append(found.table, _facts(found))


def _facts(found: Recommendations) -> dict[str, Any]:
    return {
        "users": len(found.sizes),
        "rows": found.table.num_rows,
        "unknown": found.num_unknown,
        "first_unknown": repr(found.first_unknown),
        "fallback": len(found.fallback_users),
    }


def _notes(facts: list[dict[str, Any]], output: Path, k: int) -> list[str]:
    users, rows, unknown, fallback = (
        sum(part[name] for part in facts) for name in ("users", "rows", "unknown", "fallback")
    )
    notes = [f"recommend: {rows} rows for {users} users written to {output}"]
    if unknown:
        first = next(part["first_unknown"] for part in facts if part["unknown"])
        notes.append(f"{unknown} unknown items left out, the first one {first}")
    if fallback:
        notes.append(f"{fallback} users without a known item got the most popular ones")
    if rows < k * users:
        notes.append(f"fewer than {k} a user where no more items are left")
    return notes


def _state(*files: Path) -> list[tuple[str, int, int]]:
    """What changes when a file does."""
    found = ((file.resolve(), file.stat()) for file in files if file.is_file())
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]
