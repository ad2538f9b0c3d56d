"""Models of several architectures. Importing this package lets `AutoModel` of transformers open their folders.

Architectures of your own derive from `Model` and `ModelConfig`; `register` adds them (docs/distillation.md).
"""

import logging
from importlib import import_module

from slmrec.config.kinds import KINDS
from slmrec.models.model import Model, ModelConfig, ModelParts, register

__all__ = ["Model", "ModelConfig", "ModelParts", "import_kinds", "register"]

# PEFT imports bitsandbytes where it is installed, which then warns of an optional package of kernels.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def import_kinds() -> None:
    """Import the modules of all architectures, which register their models with transformers."""
    for kind in KINDS.values():
        if isinstance(kind.build, str):
            import_module(kind.build.partition(":")[0])
    for name in ("baselines", "ensemble"):
        import_module(f"slmrec.models.{name}")


import_kinds()
