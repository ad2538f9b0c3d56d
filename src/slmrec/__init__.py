"""SLMRec: distil an LLM-based sequential recommender into a small one."""

import logging
from typing import TYPE_CHECKING, Any

from slmrec.version import __version__

if TYPE_CHECKING:
    from slmrec.config import Config
    from slmrec.inference.recommender import Recommender
    from slmrec.pipeline.prepare import prepare

__all__ = ["Config", "Recommender", "__version__", "prepare"]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "Config":
        from slmrec.config import Config

        return Config
    if name == "Recommender":
        from slmrec.inference.recommender import Recommender

        return Recommender
    if name == "prepare":
        from slmrec.pipeline.prepare import prepare

        return prepare
    raise AttributeError(f"module 'slmrec' has no attribute {name!r}")
