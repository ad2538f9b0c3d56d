"""SLMRec: distil an LLM-based sequential recommender into a small one."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from slmrec.version import __version__

if TYPE_CHECKING:
    from slmrec.callbacks import Callback
    from slmrec.config import Config
    from slmrec.inference.recommender import Recommender
    from slmrec.pipeline.prepare import prepare
    from slmrec.run import fit
    from slmrec.run_folder import Run

__all__ = ["Callback", "Config", "Recommender", "Run", "__version__", "fit", "prepare"]

logging.getLogger(__name__).addHandler(logging.NullHandler())


_MODULES = {
    "Callback": "callbacks",
    "Config": "config",
    "Recommender": "inference.recommender",
    "Run": "run_folder",
    "fit": "run",
    "prepare": "pipeline.prepare",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"slmrec.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'slmrec' has no attribute {name!r}")
