"""Weights and architecture of a model: written to a folder, and read from it with a check of every weight."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from slmrec.config import ItemTextConfig
from slmrec.errors import CheckpointError
from slmrec.files import one_line
from slmrec.models import import_kinds
from slmrec.models.model import Model, model_without_weights
from slmrec.models.text.item_text import TextReader
from slmrec.models.weights import adapter_state_dict, load_adapter, lora_config

_ADAPTER, _READERS = "adapter_model.safetensors", "title_readers.safetensors"


def save_model(model: Model, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`, and for a model with adapters their files as PEFT writes them.

    A model that reads item texts also gets `title_readers.safetensors`, which says how texts become vectors.
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _write(model.own_state_dict(), folder / "model.safetensors")
    _write_readers(model, folder)
    decoder = model.decoder_part
    if decoder is not None and decoder.has_adapters:
        _write(adapter_state_dict(decoder), folder / _ADAPTER)
        settings = lora_config(decoder.config.lora or {})
        settings.base_model_name_or_path = decoder.config.backbone
        settings.save_pretrained(folder)


def load_model(folder: Path) -> Model:
    """Return the model of a folder, in eval mode.

    Raises:
        CheckpointError: A weight is missing, unknown or of another shape, or the backbone cannot be found.
    """
    config = _config(folder)
    weights = _read(folder / "model.safetensors")
    try:
        model = model_without_weights(config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except Exception as error:  # the type depends on what was edited in the file
        raise _no_model(folder, error) from None
    _load_strictly(model, weights, folder)
    decoder = model.decoder_part
    if decoder is not None and decoder.has_adapters:
        _refuse(folder, load_adapter(decoder, _read(folder / _ADAPTER)))
    if (folder / _READERS).is_file():
        _read_readers(model, folder / _READERS)
    return model.eval()


def merge_adapters(model: Model) -> Model:
    """Return the model with its adapters merged into the layers, so that it opens without a backbone.

    Raises:
        CheckpointError: There are no adapters.
    """
    if not model.has_adapters:
        raise CheckpointError("the model has no adapters, so it opens without a backbone as it is; copy the folder")
    return model.merged()


def _config(folder: Path) -> PretrainedConfig:
    import_kinds()
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # the type depends on what was edited in the file
        raise _no_model(folder, error) from None


def _no_model(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder / 'config.json'}: makes no model ({one_line(error)}); copy the folder again, or train the model again"
    )


def _write_readers(model: Model, folder: Path) -> None:
    readers = {name: text.reader for name, text in model.text_maps().items() if text.reader is not None}
    if readers:
        tensors: dict[str, Tensor] = {}
        copies: dict[str, str] = {}  # members of an ensemble often read the same texts
        for name, reader in readers.items():
            for part, values in reader.tensors().items():
                equal = next((other for other, stored in tensors.items() if _is_same(stored, values)), None)
                if equal is None:
                    tensors[f"{name}.{part}"] = values
                else:
                    copies[f"{name}.{part}"] = equal
        settings = {name: reader.settings.model_dump(mode="json") for name, reader in readers.items()}
        _write(tensors, folder / _READERS, readers=json.dumps(settings), copies=json.dumps(copies))


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _read_readers(model: Model, path: Path) -> None:
    tensors, texts = _read(path), model.text_maps()
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads(file.metadata()["readers"])
            copies = json.loads(file.metadata().get("copies", "{}"))
        tensors |= {copy: tensors[name] for copy, name in copies.items()}
        for name, values in settings.items():
            own = {key.removeprefix(f"{name}."): part for key, part in tensors.items() if key.startswith(f"{name}.")}
            reader = TextReader.of(ItemTextConfig.model_validate(values), own)
            if name not in texts or reader.axes.shape[1] != texts[name].num_components:
                raise ValueError(f"{name} has other titles")
            texts[name].reader = reader
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: does not belong to the model ({one_line(error)}); copy the folder again"
        ) from None


def _load_strictly(model: Model, weights: dict[str, Tensor], folder: Path) -> None:
    own = model.own_state_dict()
    wrong = own.keys() ^ weights.keys()
    wrong |= {key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape}
    _refuse(folder, sorted(wrong))
    for key, value in weights.items():
        own[key].copy_(value)


def _refuse(folder: Path, wrong: list[str]) -> None:
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"{folder}: weights missing, unknown or of another shape: {shown}; train the model or copy the folder again"
        )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the folder is incomplete")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cut off or damaged ({one_line(error)}); copy it again") from None


def _write(weights: dict[str, Tensor], path: Path, **metadata: str) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, path, {"format": "pt", **metadata})
