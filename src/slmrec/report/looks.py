"""Colours and markers of models, the same in all plots of a report."""

from collections.abc import Iterable

from slmrec.plots import PALETTE

_FIXED = {
    "popularity": ("grey", "X"),
    "cooccurrence": ("green", "P"),
    "teacher": ("blue", "^"),
    "student": ("vermilion", "o"),
}
_BASE_MODELS = (("orange", "s"), ("purple", "D"), ("green", "v"), ("sky", "p"), ("grey", "h"))
Looks = dict[str, dict[str, str]]
"""Keyword arguments of `Axes.plot`, by model."""


def looks_of(models: Iterable[str]) -> Looks:
    """Return the colour and marker of each model; base models get theirs in order.

    Example:
        >>> looks_of(["sasrec", "student"])["student"]
        {'color': '#d55e00', 'marker': 'o'}
    """
    looks: Looks = {}
    num_base_models = 0
    for model in models:
        colour, marker = _FIXED.get(model) or _BASE_MODELS[num_base_models % len(_BASE_MODELS)]
        num_base_models += model not in _FIXED
        looks[model] = {"color": PALETTE[colour], "marker": marker}
    return looks
