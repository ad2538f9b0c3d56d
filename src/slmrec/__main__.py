"""`python -m slmrec`."""

from slmrec.cli import entry

entry()
