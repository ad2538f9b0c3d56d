"""The models: SASRec, and a pretrained decoder over item vectors. Importing it lets `AutoModel` open their folders."""

import logging

# Where bitsandbytes is installed PEFT imports it, and it then warns of a kernel package that nobody here asked for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from slmrec.models import decoder, ensemble, sasrec  # noqa: E402, F401 - each registers its model with transformers
