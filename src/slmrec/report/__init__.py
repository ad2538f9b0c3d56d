"""A run as one page: what was run, what came out, and what is missing."""

from importlib.util import find_spec

LIBRARIES = ("matplotlib", "jinja2")
INSTALL = "pip install 'slmrec[plots]'"


def missing_libraries() -> list[str]:
    """What must be installed before a report can be written."""
    return [name for name in LIBRARIES if find_spec(name) is None]
