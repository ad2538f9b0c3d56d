"""`slmrec export`: a model as an ONNX graph, as an index of its items, or without adapters."""

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import new_command
from slmrec.errors import ConfigError
from slmrec.locks import target_locked

_LOG = logging.getLogger(__name__)
_RECALL = 0.95


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    text = "write a model as an ONNX graph, with 8-bit weights, or without adapters; or write an index of its items"
    command = new_command(subparsers, "export", text, run, "docs/serving.md explains how to use each format.")
    command.add_argument("--model", type=location, required=True, help="folder of a trained model")
    command.add_argument("--format", choices=("onnx", "int8", "merged", "faiss"), required=True)
    where = "FILE.onnx; for merged a new folder, for faiss any file"
    command.add_argument("--output", type=location, required=True, help=where)
    recall = f"for faiss: target share of the 10 best items that the search finds (default {_RECALL})"
    command.add_argument("--recall", type=float, help=recall)


def run(options: argparse.Namespace) -> None:
    """Write the model in the chosen format.

    Raises:
        ConfigError: an option does not belong to the format.
        CheckpointError: another process writes the output.
    """
    if options.recall is not None and options.format != "faiss":
        raise ConfigError(
            f"--recall is {options.recall}, which is only for --format faiss; leave it out for {options.format}"
        )
    with target_locked(options.output):
        _export(options)


def _export(options: argparse.Namespace) -> None:
    if options.format == "merged":
        _merge(options.model, options.output)
        return
    from slmrec.inference.export import export_graph, export_index

    if options.format == "faiss":
        export_index(options.model, options.output, _RECALL if options.recall is None else options.recall)
    else:
        export_graph(options.model, options.output, int8=options.format == "int8")


def _merge(source: Path, output: Path) -> None:
    from slmrec.folders import RULES, folder_in_place
    from slmrec.models.folder import load_recommender, read_about, save_folder
    from slmrec.models.loader import merge_adapters

    model, vocabulary = load_recommender(source)
    merged = merge_adapters(model)
    with folder_in_place(output) as folder:
        save_folder(folder, merged, vocabulary, read_about(source))
        if (source / RULES).is_file():
            shutil.copyfile(source / RULES, folder / RULES)
    _LOG.info(f"export: a model that opens without its backbone written to {output}")
