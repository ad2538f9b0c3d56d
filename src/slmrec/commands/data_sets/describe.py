"""The commands `slmrec data describe` and `slmrec drift`: statistics of prepared data sets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from slmrec.data.logs.times import date
from slmrec.data.statistics import describe as data
from slmrec.data.statistics import drift as compared
from slmrec.data.statistics.describe import Description
from slmrec.errors import ConfigError
from slmrec.files import printable, write_json
from slmrec.report.describe import draw, tables
from slmrec.storage.cache import named
from slmrec.studies.tables import show_table


def describe(folder: Path, png: Path | None = None) -> None:
    """Print the statistics of a data set and draw its distributions.

    Args:
        folder: the folder of a data set or of a run.
        png: the file for the plots; None: `describe.png` in the folder.

    Raises:
        ConfigError: the name of the file does not end in .png.
        DataError: the folder is not a data set.
    """
    png = png or folder / "describe.png"
    if png.suffix != ".png" or png.is_dir():
        raise ConfigError(f"{png}: the picture is a .png file; give --output NAME.png")
    description = data.describe(folder)
    console = Console(markup=False, highlight=False)
    for part in tables(str(folder), description):
        console.print(part)
    try:
        draw(description, png)
    except ModuleNotFoundError:
        print("no picture: it needs matplotlib; pip install 'slmrec[plots]'", flush=True)
    else:
        print(f"picture: {printable(named(str(png)))}", flush=True)


def drift(old: Path, new: Path, output: Path | None = None) -> None:
    """Print the differences between two data sets.

    Args:
        old: the folder of a data set or of a run.
        new: the folder of a later data set or run.
        output: JSON file for the numbers.

    Raises:
        ConfigError: the name of the file does not end in .json.
        DataError: a folder is not a data set, or their ids cannot be compared.
    """
    if output and (output.suffix != ".json" or output.is_dir()):
        raise ConfigError(f"{output}: numbers are written as JSON; give --output NAME.json")
    result = compared.drift(old, new)
    show_table(printable(named(f"{old} and {new}")), ["", "old", "new"], _sides(result.old, result.new))
    show_table("drift", ["", "value"], _differences(result))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, named({"old_folder": str(old), "new_folder": str(new), **_content(result)}))
        print(f"written to {printable(named(str(output)))}", flush=True)


def _sides(*both: Description) -> Iterator[list[str]]:
    yield ["users", *(f"{data.num_users:,}" for data in both)]
    yield ["items", *(f"{data.num_items:,}" for data in both)]
    yield ["events", *(f"{data.num_events:,}" for data in both)]
    for name in ("first", "last"):
        times = (data.times for data in both)
        yield [f"{name} event (UTC)", *(date(getattr(one, name), one.unit) if one else "no times" for one in times)]
    yield ["mean events of a user", *(f"{data.histories.mean:.2f}" for data in both)]
    yield ["median", *(f"{data.histories.median:g}" for data in both)]
    yield ["events of the most popular 10 % of items", *(f"{data.popularity.top_10_percent:.1%}" for data in both)]


def _differences(result: compared.Drift) -> Iterator[list[str]]:
    for name, of_events, entries in (
        ("items", "on new items", result.items),
        ("users", "of new users", result.users),
    ):
        yield [f"new {name}", f"{entries.num_new:,} ({entries.share_new:.1%} of the new data set)"]
        yield [f"events {of_events}", f"{entries.share_events:.1%}"]
        yield [
            f"{name} without events in the new data set",
            f"{entries.num_gone:,} ({entries.share_gone:.1%} of the old)",
        ]
    yield ["users with a new item", f"{result.share_users_new_item:.1%}"]
    yield ["users whose newest item is new", f"{result.share_users_newest_item_new:.1%}"]
    common = result.common_popularity_distance
    yield ["shift of popularity (Jensen-Shannon distance, 0 equal to 1 disjoint)", f"{result.popularity_distance:.3f}"]
    yield ["the same among items of both", "no common items" if common is None else f"{common:.3f}"]
    yield ["shift of history lengths (the same distance)", f"{result.length_distance:.3f}"]


def _content(result: compared.Drift) -> dict[str, Any]:
    sides = {
        name: {
            "num_users": data.num_users,
            "num_items": data.num_items,
            "num_events": data.num_events,
            "times": data.times and {"unit": data.times.unit, "first": data.times.first, "last": data.times.last},
            "mean_history": data.histories.mean,
            "median_history": data.histories.median,
            "top_10_percent": data.popularity.top_10_percent,
        }
        for name, data in (("old", result.old), ("new", result.new))
    }
    entries = {name: getattr(result, name)._asdict() for name in ("items", "users")}
    return result._asdict() | sides | entries
