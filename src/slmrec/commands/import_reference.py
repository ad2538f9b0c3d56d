"""A checkpoint of the original SLMRec code, to a model folder."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from slmrec.data.state_dicts import read_state_dict
from slmrec.errors import ConfigError, DataError
from slmrec.folders import folder_in_place
from slmrec.models.card import About
from slmrec.models.folder import Vocabulary, save_folder
from slmrec.models.reference import decoder_of_reference


def import_reference(
    weights: Path,
    backbone_config: Path,
    prompt_ids: Path,
    response_ids: Path,
    max_history_items: int,
    output: Path,
    lora_alpha: float | None = None,
) -> None:
    """Writes a model folder that stands alone: adapters are merged, item ids are the numbers 1..V.

    Args:
        weights: a state dict of the reference's model (.safetensors, .bin, .pt, .pth).
        backbone_config: JSON, the `config.json` of its LLaMA.
        prompt_ids: JSON, a list of the token ids before the items.
        response_ids: JSON, a list of those after them.
        max_history_items: the length to which the reference pads histories.
        output: a new folder.
        lora_alpha: the adapters are scaled by alpha / r; r unless given.

    Raises:
        DataError: a file cannot be read, or holds something else.
        CheckpointError: the weights are not those of a reference model, or do not fit the configuration.
        ConfigError: a number is out of range.
    """
    if max_history_items < 1:
        raise ConfigError(f"--max-history-items is {max_history_items}, expected at least 1: the reference's max_len")
    architecture = _json(backbone_config)
    if not isinstance(architecture, dict):
        raise DataError(f"{backbone_config}: holds no JSON object; give the config.json of the backbone")
    prompt, response = _ids(prompt_ids), _ids(response_ids)
    model = decoder_of_reference(
        read_state_dict(weights),
        architecture,
        prompt_ids=prompt,
        response_ids=response,
        max_history_items=max_history_items,
        lora_alpha=lora_alpha,
    ).merged()
    item_ids = pa.array(range(1, model.num_items + 1), pa.int64())
    vocabulary = Vocabulary(item_ids, None, pa.array([0] * model.num_items, pa.int64()))
    with folder_in_place(output) as folder:
        save_folder(folder, model, vocabulary, About("A model of the original SLMRec code"))
    print(
        f"import-reference: {model.num_items} items, {model.num_layers} layers of width {model.hidden_size}, prompt of "
        f"{len(prompt)} + {len(response)} tokens, written to {output}",
        flush=True,
    )


def _ids(path: Path) -> list[int]:
    value = _json(path)
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise DataError(f"{path}: expected a JSON list of token ids, for example [1, 450, 2]; got {str(value)[:80]}")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({error})") from None
