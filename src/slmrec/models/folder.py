"""Weights and architecture of a model, to a folder and back; strict about every key."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from slmrec.errors import CheckpointError
from slmrec.models.backbone import keep_layers, load_decoder
from slmrec.models.decoder import (
    DecoderRecommender,
    DecoderRecommenderConfig,
    adapter_state_dict,
    load_adapter,
    lora_config,
    own_state_dict,
    set_trainable,
)
from slmrec.models.sasrec import SasRec, SasRecConfig

Model = SasRec | DecoderRecommender
_ADAPTER = "adapter_model.safetensors"


def save_model(model: Model, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors`; of an adapted model the adapters, as PEFT does, and the heads."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    weights = model.state_dict() if isinstance(model, SasRec) else own_state_dict(model)
    _write(weights, folder / "model.safetensors")
    if isinstance(model, DecoderRecommender) and model.config.lora:
        _write(adapter_state_dict(model), folder / _ADAPTER)
        settings = lora_config(model.config.lora)
        settings.base_model_name_or_path = model.config.backbone
        settings.save_pretrained(folder)


def load_model(folder: Path) -> Model:
    """The model of a folder, in eval mode.

    Raises:
        CheckpointError: a weight is missing, unknown or of another shape, or the backbone cannot be had.
    """
    config = AutoConfig.from_pretrained(folder)
    if isinstance(config, SasRecConfig):
        model: Model = SasRec(config)
    elif isinstance(config, DecoderRecommenderConfig):
        model = _decoder(config)
    else:
        raise CheckpointError(f"{folder}: a {config.model_type} model; expected one that slmrec trained")
    _load_strictly(model, _read(folder / "model.safetensors"), folder)
    if isinstance(model, DecoderRecommender) and model.config.lora:
        wrong = load_adapter(model, _read(folder / _ADAPTER))
        _refuse(folder, wrong)
    model.eval()
    return model


def _decoder(config: DecoderRecommenderConfig) -> DecoderRecommender:
    if config.lora is None:
        return DecoderRecommender(config)
    decoder = load_decoder(str(config.backbone), config.quantization)
    keep_layers(decoder, tuple(config.layers))
    model = DecoderRecommender(config, decoder)
    set_trainable(model, train_items=False)
    return model


def _load_strictly(model: Model, weights: dict[str, Tensor], folder: Path) -> None:
    own: dict[str, Any] = model.state_dict() if isinstance(model, SasRec) else own_state_dict(model)
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
    return load_file(path)


def _write(weights: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, path, {"format": "pt"})
