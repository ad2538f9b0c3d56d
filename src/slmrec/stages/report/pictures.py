"""Charts as pictures: SVG that follows the colours of the page, and files in light colours."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from slmrec.stages.report.parts import Chart

WIDTH = 5.0
"""Inches of 72 units: about as many units as a phone is wide, so that labels keep their size there."""
INK, PAPER, LINES = "#000000", "#ffffff", "#d4d4d4"
PALETTE = {
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "grey": "#808080",
}
"""Of Okabe and Ito, which the colour-blind can tell apart; the page has its own ones for the dark."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINES,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.markersize": 6,
    "figure.facecolor": PAPER,
}


def colours(number: int) -> list[str]:
    """That many of the palette; the first ones come again where there are more."""
    values = list(PALETTE.values())
    return [values[place % len(values)] for place in range(number)]


def inline_svg(chart: Chart) -> str:
    """The picture as a part of the page: it takes over the page's colours, and its ids are its own."""
    svg = _svg(chart)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.numbers.name}-", svg)
    for colour, name in {INK: "ink", PAPER: "card", LINES: "line"}.items():
        svg = svg.replace(colour, f"var(--{name})")
    for name, colour in PALETTE.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def write_pictures(chart: Chart, folder: Path) -> None:
    """The picture as NAME.svg and NAME.png."""
    (folder / f"{chart.numbers.name}.svg").write_text(_svg(chart), encoding="utf-8")
    with _drawn(chart) as figure:
        figure.savefig(folder / f"{chart.numbers.name}.png", dpi=200)


def place_legend(figure: Any, columns: int = 3) -> None:
    """Below the axes, where it covers nothing; without entries there is none."""
    handles, labels = [], []
    for axes in figure.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            if text not in labels:
                handles.append(handle)
                labels.append(text)
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def whole_ticks(axes: Any, values: Sequence[float]) -> None:
    """Ticks of the x axis at whole numbers, no more than can be read."""
    low, high = int(min(values)), int(max(values))
    step = max(1, -(-(high - low) // 8))
    axes.set_xticks(range(low, high + 1, step))


def _svg(chart: Chart) -> str:
    stream = io.StringIO()
    with _drawn(chart) as figure:
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


@contextmanager
def _drawn(chart: Chart) -> Iterator[Figure]:
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": chart.numbers.name}):
        figure = Figure(figsize=(WIDTH, chart.height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(chart.axes), sharex=True, height_ratios=chart.axes)
        chart.draw(axes)
        place_legend(figure)
        yield figure
