"""Tables and plots of a prepared data set."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from slmrec.data.logs.times import date
from slmrec.data.statistics.describe import Bin, Description, Histories, Popularity, Repeats, Times
from slmrec.files import printable
from slmrec.types import PER_SECOND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DAY = 86_400
BAR_CELLS = 40
EIGHTHS = " ▏▎▍▌▋▊▉"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
"""Colours of Okabe and Ito's palette, which colour-blind people can distinguish."""
MAX_TICKS = 7
DURATIONS = ((DAY, "days"), (3_600, "hours"), (60, "minutes"))
UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
Rows = Iterator[tuple[str, str]]


def tables(title: str, data: Description) -> Iterator[RenderableType]:
    """Yield the statistics of a data set, its leakage and its distributions for a rich console.

    Args:
        title: the title of the first table.
        data: the statistics.
    """
    yield _table(printable(title), rows_of(data))
    yield leakage(data)
    yield ""
    yield _histogram("events of a user", "users", data.histories.bins)
    yield ""
    yield _histogram("events of an item", "items", data.popularity.bins)
    yield ""


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


def rows_of(data: Description) -> Rows:
    """Yield the rows of the table of statistics; an empty row separates sections."""
    yield from _counts(data)
    yield "", ""
    yield from _histories(data.histories)
    yield from _repeats(data.repeats)
    yield "", ""
    yield from _times(data.times)
    yield "", ""
    yield from _popularity(data.popularity)
    yield "", ""
    yield from _split(data)


def _counts(data: Description) -> Rows:
    yield "users", f"{data.num_users:,}"
    yield "items", f"{data.num_items:,}"
    yield "events", f"{data.num_events:,}"
    yield "density (user-item pairs with an event)", _percent(data.density)
    yield "titled items", "no titles" if data.num_titled_items is None else f"{data.num_titled_items:,}"


def _histories(histories: Histories) -> Rows:
    yield "mean events of a user", f"{histories.mean:.2f}"
    yield "median", f"{histories.median:g}"
    yield "shortest history", f"{histories.shortest:,}"
    yield "longest history", f"{histories.longest:,}"


def _repeats(repeats: Repeats) -> Rows:
    yield "repeats (item earlier in the history)", _percent(repeats.share)
    yield "repeats of the preceding item", _percent(repeats.share_consecutive)
    if repeats.num_duplicates is not None:
        yield "duplicates (same user, item and time)", f"{repeats.num_duplicates:,}"


def _times(times: Times | None) -> Rows:
    if times is None:
        yield "times", "no times"
        return
    yield "first event (UTC)", _moment(times, times.first)
    yield "last event (UTC)", _moment(times, times.last)
    yield "unit of the times", UNITS[times.unit]
    yield "events at the time of the one before or after", _percent(times.share_tied)


def _popularity(popularity: Popularity) -> Rows:
    yield "events of the most popular 1 % of items", _percent(popularity.top_1_percent)
    yield "events of the most popular 10 %", _percent(popularity.top_10_percent)
    yield "Gini coefficient of popularity", f"{popularity.gini:.3f}"


def _split(data: Description) -> Rows:
    facts = data.split_facts
    yield "split", data.split
    yield "train events", f"{facts['num_train_events']:,}"
    for name in ("valid", "test"):
        targets, cold = facts[f"num_{name}_targets"], facts[f"num_cold_{name}_targets"]
        yield f"{name} targets", f"{targets:,}"
        yield "  of an item without a train event", _with_share(cold, targets)
    yield "items without a train event", _with_share(facts["num_untrained_items"], data.num_items)
    yield "users without a training sample", _with_share(facts["num_users_without_training"], data.num_users)


def leakage(data: Description) -> str:
    """Describe whether the split lets training look into the future."""
    targets, early = data.split_facts["num_test_targets"], data.split_facts.get("num_test_before_last_train")
    if early is None:
        return "Without times, it is unknown whether training looks into the future."
    finding = (
        f"{early:,} of {targets:,} test events{_in_brackets(early, targets)} are older than the newest train event"
    )
    name = data.split.replace("_", "-")
    if early == 0:
        return f"{name} does not look into the future: {finding}."
    return (
        f"{name} looks into the future: {finding}. A model then learns from events of other users after the time of a "
        "prediction, which is impossible in production; its metrics may be too high."
    )


def _moment(times: Times, time: int) -> str:
    seconds = (times.last - times.first) // PER_SECOND[times.unit]
    return date(time, times.unit, "D" if seconds > 2 * DAY else "s")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _in_brackets(part: float, whole: float) -> str:
    return f" ({_percent(part / whole)})" if whole else ""


def _with_share(part: float, whole: float) -> str:
    return f"{part:,}{_in_brackets(part, whole)}"


def _histogram(name: str, counted: str, bins: tuple[Bin, ...]) -> Table:
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
    """Return a bar of at most `BAR_CELLS` characters; positive shares are visible."""
    eighths = max(round(share * BAR_CELLS * 8), 1 if share else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def draw(data: Description, path: Path) -> None:
    """Draw the distributions of a data set into a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7 if data.times else 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{data.num_users:,} users, {data.num_items:,} items, {data.num_events:,} events")
    axes: dict[str, Any] = figure.subplot_mosaic(
        [["users", "items"], ["times", "times"]] if data.times else [["users", "items"]]
    )
    draw_powers(axes["users"], data.histories.bins, "events of a user", "users", BLUE)
    draw_powers(axes["items"], data.popularity.bins, "events of an item", "items", ORANGE)
    if data.times:
        draw_times(axes["times"], data.times)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def draw_powers(axes: "Axes", bins: tuple[Bin, ...], what: str, counted: str, colour: str) -> None:
    """Draw numbers of users or items by their number of events as bars."""
    _draw_bins(axes, bins, colour)
    bounds, step = [*(part.low for part in bins), bins[-1].high + 1], 1 + (len(bins) - 1) // MAX_TICKS
    axes.set_xticks(range(0, len(bounds), step), [f"{bound:,}" for bound in bounds[::step]])
    axes.set(title=f"{counted} by number of events", xlabel=f"{what} (powers of two)", ylabel=f"{counted} (log scale)")
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2 * max(5, *(part.num for part in bins)))  # bars of one remain visible
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")


def draw_times(axes: "Axes", times: Times) -> None:
    """Draw numbers of events over time as bars."""
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
    seconds = width / PER_SECOND[times.unit]
    size, name = next(((size, name) for size, name in DURATIONS if seconds >= size), (1, "s"))
    return f"{seconds / size:.3g} {name}"
