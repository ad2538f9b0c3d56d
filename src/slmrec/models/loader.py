"""Weights and architecture of a model: written to a folder, and read from it with a check of every weight."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from slmrec.config import ItemTextConfig
from slmrec.data.tensor_files import TensorFacts, read_header, read_metadata, read_tensors
from slmrec.errors import CheckpointError, ConfigError
from slmrec.files import one_line, parse_json
from slmrec.models import import_kinds
from slmrec.models.model import Model, model_without_weights, register, skeleton_of
from slmrec.models.text.item_text import TextReader
from slmrec.models.untrusted import bounded_modules, check_num_layers, misfits, read_config
from slmrec.models.weights import adapter_state_dict, load_adapter, lora_config

_WEIGHTS, _ADAPTER, _READERS = "model.safetensors", "adapter_model.safetensors", "title_readers.safetensors"


def save_model(model: Model, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`, and for a model with adapters their files as PEFT writes them.

    A model that reads item texts also gets `title_readers.safetensors`, which says how texts become vectors.
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _write(model.own_state_dict(), folder / _WEIGHTS)
    _write_readers(model, folder)
    decoder = model.decoder_part
    if decoder is not None and decoder.has_adapters:
        _write(adapter_state_dict(decoder), folder / _ADAPTER)
        settings = lora_config(decoder.config.lora or {})
        settings.base_model_name_or_path = decoder.config.backbone
        settings.save_pretrained(folder)


def load_model(folder: Path, model_class: type[Model] | None = None) -> Model:
    """Return the model of a folder, in eval mode.

    The folder may come from a stranger: no code in it is run, nothing is downloaded, and the sizes of the configuration
    are compared with the header of the weights before memory is taken for them.

    Args:
        folder: The folder.
        model_class: Architecture of the caller's own that the model is or contains, which is registered; None: one that
            is known already.

    Raises:
        CheckpointError: A weight is missing, unknown, of another shape or not finite, the configuration is not one that
            slmrec wrote, or the backbone cannot be found.
        ConfigError: `model_class` is no architecture.
    """
    register_given(model_class)
    header = _header(folder / _WEIGHTS)
    with _faults_reported(folder), bounded_modules():
        config = _config(folder, len(header))
        skeleton = skeleton_of(config)
    _refuse(folder, misfits(skeleton.own_state_dict(), header))
    if (decoder := skeleton.decoder_part) is not None and decoder.has_adapters:
        _refuse(folder, misfits(adapter_state_dict(decoder), _header(folder / _ADAPTER)))
    with _faults_reported(folder):
        model = model_without_weights(config)
    if model_class is not None and not any(isinstance(part, model_class) for part in model.modules()):
        raise CheckpointError(
            f"{folder}: holds a {type(model).__name__}, but model_class is {model_class.__name__}; leave model_class "
            "out, or give the class that was saved"
        )
    _load(model, folder)
    return model.eval()


def register_given(model_class: Any) -> None:
    """Register an architecture that was handed in to open a folder; None: there is none.

    Raises:
        ConfigError: It cannot be registered.
    """
    try:
        if model_class is not None:
            register(model_class)
    except ValueError as error:
        raise ConfigError(f"model_class: {error}") from None


def merge_adapters(model: Model) -> Model:
    """Return the model with its adapters merged into the layers, so that it opens without a backbone.

    Raises:
        CheckpointError: There are no adapters.
    """
    if not model.has_adapters:
        raise CheckpointError("the model has no adapters, so it opens without a backbone as it is; copy the folder")
    return model.merged()


def _config(folder: Path, num_tensors: int) -> PretrainedConfig:
    import_kinds()
    values = read_config(folder / "config.json")
    check_num_layers(values, num_tensors)
    _refuse_unknown(values)
    return AutoConfig.for_model(**values)


def _refuse_unknown(values: dict[str, Any]) -> None:
    """Refuse a model, or a member of an ensemble, of an architecture that no module has registered.

    Raises:
        CheckpointError: It is unknown; no code is imported by its name.
    """
    kind, members = values.get("model_type"), values.get("members", {})
    if isinstance(kind, str) and kind not in CONFIG_MAPPING:
        [name] = (values.get("architectures") or ["unknown"])[:1]
        raise CheckpointError(
            f"the architecture {one_line(str(name), 80)} (model_type {one_line(repr(kind), 80)}) is not part of "
            "slmrec; if you trust it, import its class and give it to Recommender.from_pretrained as model_class"
        )
    for member in members.values() if isinstance(members, dict) else ():
        if isinstance(member, dict):
            _refuse_unknown(member)


@contextmanager
def _faults_reported(folder: Path) -> Iterator[None]:
    """Report whatever a configuration causes that was edited or made up.

    Raises:
        CheckpointError: The configuration makes no model.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except Exception as error:  # the type depends on what was edited in the file
        raise CheckpointError(
            f"{folder / 'config.json'}: makes no model ({one_line(error)}); copy the folder again, or train the model "
            "again"
        ) from None


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
        metadata = read_metadata(path)
        settings, copies = parse_json(metadata["readers"]), parse_json(metadata.get("copies", "{}"))
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


def _load(model: Model, folder: Path) -> None:
    """Load the weights, adapters and text readers of a folder, and check the values."""
    own, weights = model.own_state_dict(), _read(folder / _WEIGHTS)
    for key, value in weights.items():
        own[key].copy_(value)
        _check_finite(folder / _WEIGHTS, key, own[key])
    decoder = model.decoder_part
    if decoder is not None and decoder.has_adapters:
        adapters = _read(folder / _ADAPTER)
        _refuse(folder, load_adapter(decoder, adapters))
        for key, value in adapters.items():
            _check_finite(folder / _ADAPTER, key, value.float())
    if (folder / _READERS).is_file():
        _read_readers(model, folder / _READERS)
    try:
        model.check_values()
    except ValueError as error:
        raise CheckpointError(
            f"{folder / _WEIGHTS}: {error}; copy the folder again, or train the model again"
        ) from None


def _check_finite(path: Path, name: str, value: Tensor) -> None:
    if not value.isfinite().all():
        raise CheckpointError(
            f"{path}: the weights {name} contain NaN or infinity; copy the folder again, or train again"
        )


def _refuse(folder: Path, wrong: list[str]) -> None:
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"{folder}: weights missing, unknown or of another shape: {shown}; train the model or copy the folder again"
        )


def _header(path: Path) -> dict[str, TensorFacts]:
    with _damage_reported(path):
        return read_header(path)


def _read(path: Path) -> dict[str, Tensor]:
    with _damage_reported(path):
        return read_tensors(path)


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; the folder is incomplete") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cut off or damaged ({one_line(error)}); copy it again") from None


def _write(weights: dict[str, Tensor], path: Path, **metadata: str) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, path, {"format": "pt", **metadata})
