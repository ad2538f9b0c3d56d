"""A prepared data set as tables and pictures: in the terminal, and as a PNG."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from slmrec.data import describe as data
from slmrec.data.describe import Bin, Description, Histories, Popularity, Repeats, Times, date
from slmrec.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DAY = 86_400
BAR_CELLS = 40
EIGHTHS = " ▏▎▍▌▋▊▉"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
"""Of Okabe and Ito's palette, which the colour-blind can tell apart."""
MAX_TICKS = 7
DURATIONS = ((DAY, "days"), (3_600, "hours"), (60, "minutes"))
UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
Rows = Iterator[tuple[str, str]]


def describe(folder: Path, png: Path | None = None) -> None:
    """Prints the figures of a data set, and draws them.

    Args:
        folder: of a data set, or of a run.
        png: where the picture goes; None: `describe.png` in the folder.

    Raises:
        ConfigError: the picture cannot be of that name.
        DataError: the folder is no data set.
    """
    png = png or folder / "describe.png"
    if png.suffix != ".png" or png.is_dir():
        raise ConfigError(f"{png}: the picture is a .png file; give --output NAME.png")
    found = data.describe(folder)
    console = Console(markup=False, highlight=False)
    console.print(_table(f"{folder}", rows_of(found)))
    console.print(leakage(found))
    console.print()
    console.print(_picture("events of a user", "users", found.histories.bins))
    console.print()
    console.print(_picture("events of an item", "items", found.popularity.bins))
    console.print()
    _draw(found, png)


def _table(title: str, rows: Rows) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        if name:
            table.add_row(name, value)
        else:
            table.add_section()
    return table


def rows_of(found: Description) -> Rows:
    """What the table says; an empty row separates."""
    yield from _counts(found)
    yield "", ""
    yield from _histories(found.histories)
    yield from _repeats(found.repeats)
    yield "", ""
    yield from _times(found.times)
    yield "", ""
    yield from _popularity(found.popularity)
    yield "", ""
    yield from _split(found)


def _counts(found: Description) -> Rows:
    yield "users", f"{found.num_users:,}"
    yield "items", f"{found.num_items:,}"
    yield "events", f"{found.num_events:,}"
    yield "density (user-item pairs with an event)", _percent(found.density)
    yield "titled items", "no titles" if found.num_titled_items is None else f"{found.num_titled_items:,}"


def _histories(histories: Histories) -> Rows:
    yield "mean events of a user", f"{histories.mean:.2f}"
    yield "median", f"{histories.median:g}"
    yield "shortest history", f"{histories.shortest:,}"
    yield "longest history", f"{histories.longest:,}"


def _repeats(repeats: Repeats) -> Rows:
    yield "repeats (item that the user had before)", _percent(repeats.share)
    yield "repeats of the item right before", _percent(repeats.share_consecutive)
    if repeats.num_duplicates is not None:
        yield "duplicates (same user, item and time)", f"{repeats.num_duplicates:,}"


def _times(times: Times | None) -> Rows:
    if times is None:
        yield "times", "no times"
        return
    yield "first event (UTC)", _moment(times, times.first)
    yield "last event (UTC)", _moment(times, times.last)
    yield "unit of the times, by their magnitude", UNITS[times.unit]
    yield "events at the time of the one before or after", _percent(times.share_tied)


def _popularity(popularity: Popularity) -> Rows:
    yield "events of the most popular 1 % of items", _percent(popularity.top_1_percent)
    yield "events of the most popular 10 %", _percent(popularity.top_10_percent)
    yield "Gini coefficient of popularity", f"{popularity.gini:.3f}"


def _split(found: Description) -> Rows:
    facts = found.split_facts
    yield "split", found.split
    yield "train events", f"{facts['num_train_events']:,}"
    for name in ("valid", "test"):
        targets, cold = facts[f"num_{name}_targets"], facts[f"num_cold_{name}_targets"]
        yield f"{name} targets", f"{targets:,}"
        yield "  of an item without a train event", _part(cold, targets)
    yield "items without a train event", _part(facts["num_untrained_items"], found.num_items)
    yield "users without a training sample", _part(facts["num_users_without_training"], found.num_users)


def leakage(found: Description) -> str:
    """Whether the split lets training look into the future, in words."""
    targets, early = found.split_facts["num_test_targets"], found.split_facts.get("num_test_before_last_train")
    if early is None:
        return "Without times nobody can tell whether training looks into the future."
    finding = (
        f"{early:,} of {targets:,} test events{_in_brackets(early, targets)} are older than the newest train event"
    )
    name = found.split.replace("_", "-")
    if early == 0:
        return f"{name} does not look into the future: {finding}."
    return (
        f"{name} looks into the future: {finding}. A model has then learnt from what others did after the moment that "
        "it is asked about, which no model in use can; its figures may be too good."
    )


def _moment(times: Times, time: int) -> str:
    seconds = (times.last - times.first) // data.PER_SECOND[times.unit]
    return date(time, times.unit, "D" if seconds > 2 * DAY else "s")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _in_brackets(part: float, whole: float) -> str:
    return f" ({_percent(part / whole)})" if whole else ""


def _part(part: float, whole: float) -> str:
    return f"{part:,}{_in_brackets(part, whole)}"


def _picture(name: str, counted: str, bins: tuple[Bin, ...]) -> Table:
    table = Table(box=None, header_style="")
    table.add_column(name, justify="right")
    table.add_column("", width=BAR_CELLS)
    table.add_column(counted, justify="right")
    most = max(part.num for part in bins)
    for part in bins:
        table.add_row(_bounds(part), _bar(part.num / most), f"{part.num:,}")
    return table


def _bounds(part: Bin) -> str:
    return f"{part.low:,}" if part.low == part.high else f"{part.low:,}-{part.high:,}"


def _bar(share: float) -> str:
    """A bar of up to `BAR_CELLS`; what is not nothing can be seen."""
    eighths = max(round(share * BAR_CELLS * 8), 1 if share else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _draw(found: Description, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no picture: it needs matplotlib; pip install 'slmrec[plots]'", flush=True)
        return
    figure = Figure(figsize=(10, 7 if found.times else 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{found.num_users:,} users, {found.num_items:,} items, {found.num_events:,} events")
    axes: dict[str, Any] = figure.subplot_mosaic(
        [["users", "items"], ["times", "times"]] if found.times else [["users", "items"]]
    )
    draw_powers(axes["users"], found.histories.bins, "events of a user", "users", BLUE)
    draw_powers(axes["items"], found.popularity.bins, "events of an item", "items", ORANGE)
    if found.times:
        draw_times(axes["times"], found.times)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    print(f"picture: {path}", flush=True)


def draw_powers(axes: "Axes", bins: tuple[Bin, ...], what: str, counted: str, colour: str) -> None:
    """Bars of how many have how many events."""
    _draw_bins(axes, bins, colour)
    bounds, step = [*(part.low for part in bins), bins[-1].high + 1], 1 + (len(bins) - 1) // MAX_TICKS
    axes.set_xticks(range(0, len(bounds), step), [f"{bound:,}" for bound in bounds[::step]])
    axes.set(title=f"{counted} by number of events", xlabel=f"{what} (powers of two)", ylabel=f"{counted} (log scale)")
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2 * max(5, *(part.num for part in bins)))  # a bar of one can be seen
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")


def draw_times(axes: "Axes", times: Times) -> None:
    """Bars of when the events happened."""
    _draw_bins(axes, times.bins, GREEN)
    width = times.bins[0].high - times.bins[0].low + 1
    edges = sorted({round(part * len(times.bins) / 5) for part in range(6)})
    ends = [min(times.first + edge * width, times.last) for edge in edges]
    axes.set_xticks(edges, [_moment(times, end).replace(" ", "\n") for end in ends])
    axes.locator_params(axis="y", integer=True)
    axes.set(title="events over time", xlabel="time (UTC)", ylabel=f"events per {_duration(width, times)}")


def _draw_bins(axes: "Axes", bins: tuple[Bin, ...], colour: str) -> None:
    axes.bar(range(len(bins)), [part.num for part in bins], width=0.92, align="edge", color=colour)
    axes.set_xlim(0, len(bins))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def _duration(width: int, times: Times) -> str:
    seconds = width / data.PER_SECOND[times.unit]
    size, name = next(((size, name) for size, name in DURATIONS if seconds >= size), (1, "s"))
    return f"{seconds / size:.3g} {name}"
