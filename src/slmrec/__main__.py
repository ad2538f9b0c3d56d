"""`python -m slmrec`."""

from slmrec.commands.main import entry

entry()
