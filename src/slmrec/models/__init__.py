"""Models of several architectures. Importing this package lets `AutoModel` of transformers open their folders."""

import logging

# Where bitsandbytes is installed PEFT imports it, and it then warns of a kernel package that nobody here asked for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from importlib import import_module  # noqa: E402

from slmrec.config.kinds import KINDS  # noqa: E402
from slmrec.models import baselines, ensemble  # noqa: E402, F401 - each registers its models with transformers

for kind in KINDS.values():
    import_module(kind.build.partition(":")[0])
