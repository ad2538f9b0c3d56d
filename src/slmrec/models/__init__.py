"""The models: SASRec, and a pretrained decoder over item vectors."""

import logging

# Where bitsandbytes is installed PEFT imports it, and it then warns of a kernel package that nobody here asked for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
