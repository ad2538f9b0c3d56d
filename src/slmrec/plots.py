"""Colours of all plots."""

PALETTE = {
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "grey": "#808080",
}
"""Okabe and Ito's palette, which colour-blind people can distinguish; the HTML report replaces it in dark mode."""
