"""The report: a run as one HTML page, with its plots and tables as files."""

from importlib.util import find_spec

LIBRARIES = ("matplotlib", "jinja2")
INSTALL = "pip install 'slmrec[plots]'"


def missing_libraries() -> list[str]:
    """Return the libraries that must be installed before a report can be written."""
    return [name for name in LIBRARIES if find_spec(name) is None]
