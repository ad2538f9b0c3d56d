"""Weights and architecture of a model, to a folder and back; strict about every key."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig

from slmrec.errors import CheckpointError
from slmrec.models.backbone import keep_layers, load_decoder
from slmrec.models.build import set_trainable, standalone
from slmrec.models.decoder import DecoderRecommender, DecoderRecommenderConfig, lora_config
from slmrec.models.ensemble import Ensemble, EnsembleConfig, Member
from slmrec.models.titles import TitleMap, TitleReader
from slmrec.models.weights import adapter_state_dict, load_adapter, own_state_dict

Model = Any
_ADAPTER, _READERS = "adapter_model.safetensors", "title_readers.safetensors"


def save_model(model: Model, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors`; of an adapted model the adapters, as PEFT does, and the heads.

    Of a model that reads titles also `title_readers.safetensors`, how they are read.
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _write(_own_weights(model), folder / "model.safetensors")
    _write_readers(model, folder)
    decoder = decoder_of(model)
    if decoder is not None and decoder.config.lora:
        _write(adapter_state_dict(decoder), folder / _ADAPTER)
        settings = lora_config(decoder.config.lora)
        settings.base_model_name_or_path = decoder.config.backbone
        settings.save_pretrained(folder)


def load_model(folder: Path) -> Model:
    """The model of a folder, in eval mode.

    Raises:
        CheckpointError: a weight is missing, unknown or of another shape, or the backbone cannot be had.
    """
    config = _config(folder)
    weights = _read(folder / "model.safetensors")
    try:
        model = _empty(config, folder)
    except CheckpointError:
        raise
    except Exception as error:  # what is raised depends on what was edited
        raise _no_model(folder, error) from None
    _load_strictly(model, weights, folder)
    decoder = decoder_of(model)
    if decoder is not None and decoder.config.lora:
        _refuse(folder, load_adapter(decoder, _read(folder / _ADAPTER)))
    if (folder / _READERS).is_file():
        _read_readers(model, folder / _READERS)
    model.eval()
    return model


def decoder_of(model: Model) -> DecoderRecommender | None:
    """The decoder that a model is or has."""
    part: DecoderRecommender | None = getattr(model, "decoder_part", None)
    return part


def _config(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # the same
        raise _no_model(folder, error) from None


def _no_model(folder: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:300]
    return CheckpointError(f"{folder / 'config.json'}: makes no model ({reason}); copy the folder anew, or train it")


def alone(model: Model) -> Model:
    """The same model with the adapters of all its decoders merged, which opens without a backbone.

    Raises:
        CheckpointError: there are no adapters.
    """
    adapted = [(name, part) for name, part in model.named_modules() if isinstance(part, DecoderRecommender)]
    adapted = [(name, part) for name, part in adapted if part.config.lora]
    if not adapted:
        raise CheckpointError("the model has no adapters, so it opens without a backbone as it is; copy the folder")
    for name, part in adapted:
        if not name:
            return standalone(part)
        parent, _, own = name.rpartition(".")
        merged = standalone(part)
        setattr(model.get_submodule(parent), own, merged)
        _replace_settings(model.config.__dict__, merged.config.to_dict())
    return model


def _replace_settings(settings: dict[str, Any], new: dict[str, Any]) -> None:
    """Puts the configuration of a merged decoder in the place of the adapted one's."""
    for name, value in settings.items():
        if _is_adapted(value):
            settings[name] = new
        elif isinstance(value, dict):
            _replace_settings(value, new)


def _is_adapted(value: Any) -> bool:
    return isinstance(value, dict) and value.get("model_type") == "slmrec_decoder" and bool(value.get("lora"))


def _empty(config: PretrainedConfig, folder: Path) -> Model:
    if isinstance(config, EnsembleConfig):
        members = {name: _member(_member_config(settings), folder) for name, settings in config.members.items()}
        return Ensemble(config, members)
    return _member(config, folder)


def _member(config: PretrainedConfig, folder: Path) -> Member:
    if isinstance(config, DecoderRecommenderConfig):
        return _decoder(config)
    if config.model_type.startswith("slmrec_"):
        member: Member = AutoModel.from_config(config)
        return member
    raise CheckpointError(f"{folder}: a {config.model_type} model; expected one that slmrec trained")


def _member_config(settings: dict[str, Any]) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.for_model(**settings)
    return config


def _own_weights(model: Model) -> dict[str, Tensor]:
    """What belongs to the model alone, by name; not the backbone that adapters adapt."""
    if isinstance(model, Ensemble):
        members = model.members.items()
        return {f"members.{key}.{name}": value for key, one in members for name, value in _own_weights(one).items()}
    return own_state_dict(model) if isinstance(model, DecoderRecommender) else model.state_dict()


def _decoder(config: DecoderRecommenderConfig) -> DecoderRecommender:
    if config.lora is None:
        return DecoderRecommender(config)
    decoder = load_decoder(str(config.backbone), config.quantization)
    keep_layers(decoder, tuple(config.layers))
    model = DecoderRecommender(config, decoder)
    set_trainable(model, train_items=False)
    return model


def _write_readers(model: Model, folder: Path) -> None:
    readers = {name: one.reader for name, one in model.named_modules() if isinstance(one, TitleMap) and one.reader}
    if readers:
        tensors = {f"{name}.{part}": getattr(one, part) for name, one in readers.items() for part in ("mean", "axes")}
        told = {name: {"source": one.source, "layer": one.layer} for name, one in readers.items()}
        _write(tensors, folder / _READERS, readers=json.dumps(told))


def _read_readers(model: Model, path: Path) -> None:
    tensors = _read(path)
    try:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()["readers"])
        for name, settings in told.items():
            part = model.get_submodule(name)
            reader = TitleReader(**settings, mean=tensors[f"{name}.mean"], axes=tensors[f"{name}.axes"])
            if not isinstance(part, TitleMap) or reader.axes.shape != (len(reader.mean), part.map.in_features):
                raise ValueError(f"{name} has other titles")
            part.reader = reader
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: does not belong to the model ({reason}); copy the folder anew") from None


def _load_strictly(model: Model, weights: dict[str, Tensor], folder: Path) -> None:
    own = _own_weights(model)
    wrong = own.keys() ^ weights.keys()
    wrong |= {key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape}
    _refuse(folder, sorted(wrong))
    for key, value in weights.items():
        own[key].copy_(value)


def _refuse(folder: Path, wrong: list[str]) -> None:
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(f"{folder}: weights missing, unknown or of another shape: {shown}; train or copy it anew")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the folder is incomplete")
    try:
        return load_file(path)
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: cut off or damaged ({reason}); copy it anew") from None


def _write(weights: dict[str, Tensor], path: Path, **metadata: str) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, path, {"format": "pt", **metadata})
