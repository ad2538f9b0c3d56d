"""`slmrec recommend`: top-k lists for a file of histories, or for one history on the terminal."""

import argparse
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import add_device_option, new_command
from slmrec.errors import ConfigError, DataError, UnknownItemsWarning
from slmrec.files import printable

if TYPE_CHECKING:
    from slmrec.config import PrepareConfig
    from slmrec.inference.batch.recommend_file import RankOptions
    from slmrec.inference.recommendations import Recommendations
    from slmrec.inference.recommender import Recommender

_LOG = logging.getLogger(__name__)
_READING = frozenset(
    ("format", "columns", "user_col", "item_col", "time_col", "time_unit", "time_format", "tie_col", "order")
) | {"encoding", "quantity_col", "id_type", "null_values", "on_bad_row", "memory_limit"}
"""Settings of `prepare` that say how a file is read."""
_EPILOG = (
    "Examples: slmrec recommend --model out/beauty/distill --input histories.parquet --output recs.parquet --k 10\n"
    "          slmrec recommend --model out/beauty/best --all-users --output recs.parquet --rules rules.yaml\n"
    "          slmrec recommend --model out/beauty/distill --history 9,18,27 --because\n"
    "Files are read as slmrec prepare reads them; for other column names, add prepare.user_col=NAME and so on.\n"
    "Running an interrupted command again continues where it stopped. See docs/serving.md."
)


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    text = "write top-k lists for a file of histories, or show one for a single history"
    recommend = new_command(subparsers, "recommend", text, run, _EPILOG)
    recommend.add_argument(
        "--model", type=location, required=True, help="folder of a trained model, a path or URI, or its hub id"
    )
    recommend.add_argument("--history", help="item ids of one history, oldest first, separated by commas; shows titles")
    recommend.add_argument(
        "--timestamps", help="times of the items of --history, separated by commas, for models that read times"
    )
    recommend.add_argument("--input", type=location, help="rows of user_id, history, or of user_id, item_id, timestamp")
    recommend.add_argument(
        "--all-users", action="store_true", help="all users of the data set with which the model was trained"
    )
    text = "folder of this data set, or of the run (default: the one beside the model)"
    recommend.add_argument("--data", type=location, metavar="OUT/prepare", help=text)
    recommend.add_argument("--output", type=location, help=".parquet, .csv or .jsonl file to write")
    recommend.add_argument("--k", type=int, default=10, help="maximum number of items per user (default 10)")
    recommend.add_argument("--keep-seen", action="store_true", help="also recommend items of the history")
    recommend.add_argument(
        "--because",
        "--explain",
        action="store_true",
        help="also give the items of the history that raise the score of each item, with their shares",
    )
    recommend.add_argument("--candidates", type=location, metavar="FILE", help="rank only the items of this file")
    recommend.add_argument("--exclude-items", type=location, metavar="FILE", help="items that are never recommended")
    recommend.add_argument(
        "--rules", type=location, metavar="FILE", help="rules for all users, a list in .json or .yaml (docs/serving.md)"
    )
    text = "weight of the diversity of each list against its scores, from 0 (default) to 1"
    recommend.add_argument("--diversity", type=float, default=0.0, help=text)
    recommend.add_argument(
        "--index", type=location, metavar="FILE", help="search an index that slmrec export --format faiss wrote"
    )
    add_device_option(recommend)
    recommend.add_argument(
        "--allow-unknown", action="store_true", help="accept a file more than half of whose item ids are unknown"
    )
    recommend.add_argument(
        "--on-bad-row",
        choices=("error", "skip"),
        help="what to do with invalid rows of --input; the same as prepare.on_bad_row=...",
    )
    recommend.add_argument(
        "--engine",
        choices=("spark",),
        help="compute on Spark: reads Parquet of user_id, history and writes a folder of Parquet files",
    )
    recommend.add_argument(
        "overrides", nargs="*", metavar="prepare.key=value", help="how --input is read, as for slmrec prepare"
    )


def run(options: argparse.Namespace) -> None:
    """Write the lists for the file, or show the list for the history."""
    if (fault := next((text for is_fault, text in _faults(options) if is_fault), None)) is not None:
        options.parser.error(fault)
    files = options.input, options.output
    from slmrec.inference.batch.recommend_file import RankOptions, recommend_file

    reading, files_of_items = _reading(options), (options.candidates, options.exclude_items)
    ranking = RankOptions(
        options.k,
        not options.keep_seen,
        *files_of_items,
        reading,
        options.allow_unknown,
        options.because,
        options.rules,
        options.diversity,
    )
    if options.history is not None:
        _recommend_history(options.model, options.history, options.timestamps, ranking, options.index, options.device)
    elif options.engine == "spark":
        from slmrec.inference.batch.spark import recommend_with_spark

        recommend_with_spark(options.model, *files, ranking)
    else:
        recommend_file(options.model, *files, ranking, options.index, options.device, options.data)


def _faults(options: argparse.Namespace) -> Iterator[tuple[bool, str]]:
    """Yield whether options contradict each other, and the message."""
    sources = options.input is not None, options.all_users, options.history is not None
    reading = bool(options.overrides or options.on_bad_row)
    yield (
        sum(sources) != 1 or (options.output is None) != (options.history is not None),
        "give --input FILE and --output FILE, or --history A,B,C alone; --all-users may stand in place of --input FILE",
    )
    yield (
        options.history is not None and (reading or options.allow_unknown),
        "--history reads no file: leave out settings of prepare, --on-bad-row and --allow-unknown",
    )
    yield (
        options.timestamps is not None and options.history is None,
        "--timestamps belongs to --history; files hold times in a column",
    )
    yield (
        options.all_users and reading,
        "--all-users reads a prepared data set: leave out settings of prepare and --on-bad-row",
    )
    yield options.data is not None and not options.all_users, "--data belongs to --all-users; leave it out"
    if options.engine:
        yield options.input is None, "--engine spark reads --input FILE; give it in place of --all-users or --history"
        yield (
            bool(options.device),
            "--device does not apply to --engine spark, whose workers use CPUs; leave it out",
        )
        yield bool(options.index), "--index does not apply to --engine spark, whose search is exact; leave it out"
        yield options.because, "--because does not apply to --engine spark; leave out one of them"
        yield reading, "settings of prepare do not apply to --engine spark, which reads user_id and history"


def _reading(options: argparse.Namespace) -> "PrepareConfig":
    """Return the settings by which the file of histories is read.

    Raises:
        ConfigError: A setting is unknown, or does not say how files are read.
    """
    from slmrec.config.load import load_config

    given = [f"prepare.on_bad_row={options.on_bad_row}"] if options.on_bad_row else []
    for override in options.overrides:
        name = override.partition("=")[0]
        if name.removeprefix("prepare.") not in _READING or not name.startswith("prepare."):
            raise ConfigError(
                f"{name} does not say how histories are read; choose from "
                f"{', '.join(f'prepare.{key}' for key in sorted(_READING))}"
            )
    return load_config(None, [*options.overrides, *given]).prepare


def _recommend_history(
    model: Path, history: str, timestamps: str | None, ranking: "RankOptions", index: Path | None, device: str | None
) -> None:

    from slmrec.inference.histories import history_of
    from slmrec.inference.recommender import Recommender

    recommender = Recommender.from_pretrained(model, index=index, device=device)
    try:
        items = history_of(history, recommender.catalogue.id_pattern)
    except ValueError as error:
        raise DataError(f"--history is {history!r}: {error}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownItemsWarning)
        times = None if timestamps is None else [history_of(timestamps, r"[^\s,]+")]
        arguments = ranking.arguments()
        ranking.check(recommender, arguments)
        lists = recommender.recommend([items], timestamps=times, **arguments)
    _show(recommender, items, lists)
    if lists.lost_users:
        _LOG.warning("the history has no known item; these are the most popular items")


def _show(recommender: "Recommender", history: list[Any], lists: "Recommendations") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)  # ids and titles are shown as they are
    console.print("after " + ", ".join(_label(recommender, item) for item in history))
    table = Table("rank", "item_id", "title", "score", *lists.table.column_names[4:])
    for row in lists.table.to_pylist():
        title = recommender.title(row["item_id"]) or ""
        reasons = [f"{printable(str(each['item_id']))}: {each['share']:.0%}" for each in row.get("because", ())]
        cells = [str(row["rank"]), printable(str(row["item_id"])), printable(title), f"{row['score']:.4f}"]
        table.add_row(*cells, *(["\n".join(reasons)] if "because" in row else []))
    console.print(table)
    if lists.num_unknown:
        print(f"{lists.num_unknown} unknown items ignored, the first one {printable(repr(lists.first_unknown))}")
    if not history:
        print("the history is empty; these are the most popular items")


def _label(recommender: "Recommender", item: Any) -> str:
    title = recommender.title(item)
    return printable(f"{item} ({title})" if title else str(item))
