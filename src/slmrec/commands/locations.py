"""Options that are paths or URIs; a command is given paths on this machine in place of URIs."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from slmrec.config.secrets import without_secrets
from slmrec.errors import ConfigError
from slmrec.processes import main_first
from slmrec.storage.cache import local
from slmrec.storage.outputs import written
from slmrec.storage.remote import is_uri
from slmrec.storage.runs import opened_run

_WRITE_RUNS = {
    "prepare",
    "pretrain",
    "finetune",
    "distill",
    "evaluate",
    "run",
    "ablate",
    "cold",
    "depth",
    "demo",
    "update",
}


class Uri(str):
    """A URI that was given as an option."""


def location(text: str) -> Path | Uri:
    """Return the value of an option: a path, or a URI, from which passwords are removed."""
    return Uri(without_secrets(text)) if is_uri(text) else Path(text)


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[None]:
    """Replace URIs among the options by paths on this machine; outputs are uploaded.

    A run is uploaded as it grows, a file or new folder when the command is done.

    Raises:
        StorageError: A URI cannot be read or written.
        ConfigError: The command works on local paths only.
    """
    values = {name: value for name, value in vars(options).items() if isinstance(value, Uri)}
    if getattr(options, "engine", None) == "spark":  # reads and writes URIs itself
        values = {name: value for name, value in values.items() if name not in {"input", "output"}}
    if not values:
        yield
        return
    _refuse(options, values)
    writers = {"output": opened_run if options.command in _WRITE_RUNS else written}
    writers |= {"folder": opened_run} if options.command == "report" else {}
    with main_first():
        inputs = {name: local(value) for name, value in values.items() if name not in writers}
    for name, path in inputs.items():
        setattr(options, name, path)
    with ExitStack() as outputs:
        for name in writers.keys() & values.keys():
            setattr(options, name, outputs.enter_context(writers[name](values[name])))
        yield


def _refuse(options: argparse.Namespace, values: dict[str, Uri]) -> None:
    """Refuse URIs of folders that a command changes in place."""
    if getattr(options, "dry_run", False) and "output" in values:
        raise ConfigError(f"--dry-run reads a local folder and writes nothing, got --output {values['output']}")
    if getattr(options, "data_command", None) == "fetch" and values:
        raise ConfigError(f"--output is {values['output']}, expected a local folder to download into; copy it then")
    in_place = {"items": "model", "data": "folder"}.get(options.command)
    if in_place in values and options.output is None:
        raise ConfigError(f"slmrec {options.command}: {values[in_place]} is not changed in place; give --output")
