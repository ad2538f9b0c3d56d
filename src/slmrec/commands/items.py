"""`slmrec items`: change the catalogue of a trained model without training."""

import argparse
from typing import Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import new_command


def add_parser(subparsers: Any) -> None:
    """Add the commands `items add`, `items remove` and `items restore`."""
    text = "add items to a trained model, remove or restore items"
    inner = new_command(subparsers, "items", text).add_subparsers(
        dest="items_command", required=True, metavar="COMMAND"
    )
    for name, about, columns in (
        ("add", "add items by their vectors, or by similar items", "item_id, optionally title; vector or like"),
        ("remove", "stop recommending items", "item_id"),
        ("restore", "recommend removed items again", "item_id"),
    ):
        command = new_command(inner, name, about, run)
        command.add_argument("--model", type=location, required=True, help="folder of a trained model")
        command.add_argument("--items", type=location, required=True, help=f".parquet, .jsonl or .csv with {columns}")
        command.add_argument("--output", type=location, help="new folder (default: replace the model's own folder)")


def run(options: argparse.Namespace) -> None:
    """Add, remove or restore the items of a table."""
    from slmrec.inference.items import add_items, mark_items

    if options.items_command == "add":
        add_items(options.model, options.items, options.output)
    else:
        mark_items(options.model, options.items, options.items_command == "remove", options.output)
