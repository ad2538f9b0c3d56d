"""SLMRec: distil an LLM-based sequential recommender into a small one."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmrec.recommend import Recommender

__version__ = "0.1.0"
__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Recommender":
        from slmrec.recommend import Recommender

        return Recommender
    raise AttributeError(f"module 'slmrec' has no attribute {name!r}")
