"""Charts as images: inline SVG that follows the colours of the page, and SVG and PNG files in light colours."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from slmrec.plots import PALETTE
from slmrec.report.parts import Chart

WIDTH = 4.6
"""Width in inches of 72 units: about the width of a phone in pixels, so that labels keep their size there."""
MARGIN = 0.1
"""Margin in inches around the axes, since the fonts of the reader may be larger than those of the layout."""
LONG = 14
"""Number of characters of a legend entry above which the legend has two columns."""
INK, PAPER, LINES = "#000000", "#ffffff", "#d4d4d4"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINES,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.5,
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.markersize": 6,
    "figure.facecolor": PAPER,
}


def colours(number: int) -> list[str]:
    """Return a number of colours of the palette, repeated if there are too few."""
    values = list(PALETTE.values())
    return [values[place % len(values)] for place in range(number)]


def svg_of(chart: Chart) -> str:
    """Return a chart as an SVG file in light colours."""
    stream = io.StringIO()
    with drawn(chart) as figure:
        figure.savefig(stream, format="svg", dpi=200, metadata={"Date": None})
    return stream.getvalue()


def inline_svg(name: str, svg: str) -> str:
    """Return an SVG file as a part of a page, with the colours of the page and unique ids.

    Args:
        name: Name of the chart.
        svg: Output of `svg_of`.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in {INK: "ink", PAPER: "card", LINES: "line"}.items():
        svg = svg.replace(colour, f"var(--{variable})")
    for variable, colour in PALETTE.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def write_png(chart: Chart, path: Path) -> None:
    """Write a chart as a PNG file in light colours."""
    with drawn(chart) as figure:
        figure.savefig(path, dpi=200)


def place_legend(figure: Any) -> None:
    """Place the legend below the axes, if there are entries."""
    handles, labels = [], []
    for axes in figure.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            if text not in labels:
                handles.append(handle)
                labels.append(text)
    if labels:
        columns = 2 if max(map(len, labels)) > LONG else 3
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def whole_ticks(axes: Any, values: Sequence[float]) -> None:
    """Set ticks of the x axis at whole numbers, at most about eight."""
    low, high = int(min(values)), int(max(values))
    step = max(1, -(-(high - low) // 8))
    axes.set_xticks(range(low, high + 1, step))


@contextmanager
def drawn(chart: Chart) -> Iterator[Figure]:
    """Give the figure of a chart, drawn in the style of the report."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": chart.numbers.name}):
        figure = Figure(figsize=(WIDTH, chart.height), layout=ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN))
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(chart.axes), sharex=True, height_ratios=chart.axes)
        chart.draw(axes)
        place_legend(figure)
        yield figure
