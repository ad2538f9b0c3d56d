"""`slmrec import-reference`: a checkpoint of the original SLMRec code as a model folder."""

import argparse
import logging
from pathlib import Path
from typing import Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import new_command
from slmrec.errors import ConfigError, DataError
from slmrec.files import one_line, read_json
from slmrec.locks import target_locked

_LOG = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    text = "convert a checkpoint of the original SLMRec code to a model folder"
    epilog = "Item ids are the numbers 1..V. See docs/serving.md."
    command = new_command(subparsers, "import-reference", text, run, epilog)
    for option, about in (
        ("--weights", "state dict: .safetensors, .bin, .pt or .pth"),
        ("--backbone-config", "config.json of the LLaMA backbone"),
        ("--prompt-ids", "JSON list of the token ids before the items"),
        ("--response-ids", "JSON list of the token ids after the items"),
    ):
        command.add_argument(option, type=location, required=True, help=about)
    command.add_argument(
        "--max-history-items", type=int, required=True, help="length to which the reference pads histories (max_len)"
    )
    command.add_argument("--lora-alpha", type=float, help="scale of the adapters is alpha / r (default alpha: r)")
    command.add_argument("--output", type=location, required=True, help="new model folder")


def run(options: argparse.Namespace) -> None:
    """Write a model folder that needs no other files: adapters are merged, item ids are the numbers 1..V.

    Raises:
        DataError: a file cannot be read, or has unexpected content.
        CheckpointError: the weights are not those of a reference model, or do not fit the configuration.
        ConfigError: a number is out of range.
    """
    if options.max_history_items < 1:
        raise ConfigError(
            f"--max-history-items is {options.max_history_items}, expected at least 1: the reference's max_len"
        )
    architecture = _read_json(options.backbone_config)
    if not isinstance(architecture, dict):
        raise DataError(f"{options.backbone_config}: is not a JSON object; give the config.json of the backbone")
    prompt, response = _read_token_ids(options.prompt_ids), _read_token_ids(options.response_ids)
    from slmrec.data.state_dicts import read_state_dict
    from slmrec.models.reference import decoder_of_reference

    decoder = decoder_of_reference(
        read_state_dict(options.weights),
        architecture,
        prompt_ids=prompt,
        response_ids=response,
        max_history_items=options.max_history_items,
        lora_alpha=options.lora_alpha,
    )
    model = decoder.merged()
    _save(model, options.output)
    _LOG.info(
        f"import-reference: {model.num_items} items, {model.num_layers} layers of width {model.hidden_size}, prompt of "
        f"{len(prompt)} + {len(response)} tokens, written to {options.output}"
    )


def _save(model: Any, output: Path) -> None:
    import pyarrow as pa

    from slmrec.folders import folder_in_place
    from slmrec.models.card import About
    from slmrec.models.folder import Vocabulary, save_folder

    item_ids = pa.array(range(1, model.num_items + 1), pa.int64())
    vocabulary = Vocabulary(item_ids, None, pa.array([0] * model.num_items, pa.int64()))
    with target_locked(output), folder_in_place(output) as folder:
        save_folder(folder, model, vocabulary, About("A model of the original SLMRec code"))


def _read_token_ids(path: Path) -> list[int]:
    value = _read_json(path)
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise DataError(f"{path}: expected a JSON list of token ids, for example [1, 450, 2]; got {str(value)[:80]}")
    return value


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({one_line(error)})") from None
