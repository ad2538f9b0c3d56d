"""Pretrained decoders from a hub, a folder, a GGUF file or a registry package; and decoders with random weights.

A `setting` is the path of the source in the YAML, such as `finetune.backbone`; messages name it.
"""

import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from slmrec.errors import CheckpointError, ConfigError
from slmrec.files import cache_folder, one_line, sha256
from slmrec.models.untrusted import LOCAL, bounded_modules, checked_source, refuse_code
from slmrec.packaged import DECODERS

_LOG = logging.getLogger(__name__)
_NOT_ARCHITECTURE = {"quantization_config", "architectures", "dtype", "transformers_version", "_name_or_path"}


class Backbone(NamedTuple):
    """A whole pretrained decoder, and the vectors of the prompt."""

    decoder: PreTrainedModel
    """Layers and final norm; the token embeddings are needed only for the prompt."""
    prefix: torch.Tensor
    """(P, H) vectors of the prompt tokens before the items."""
    response: torch.Tensor
    """(S, H) vectors of the prompt tokens after the items."""


def load_backbone(
    source: str,
    prefix: str = "",
    response: str = "",
    quantization: dict[str, Any] | None = None,
    setting: str = "backbone",
) -> Backbone:
    """Load a pretrained decoder in float32, with the token vectors of a prompt.

    Args:
        source: A hub id, a local folder, a .gguf file, `smollm2-135m` or `gemma-3-270m`.
        prefix: Text before the items; a start token is put before it if the tokenizer has one.
        response: Text after the items.
        quantization: As in `load_decoder`.
        setting: Path of the source in the YAML.

    Raises:
        CheckpointError: The source cannot be found, or is not a decoder.
        ConfigError: It cannot be quantised in this way.
    """
    decoder = load_decoder(source, quantization, setting)
    if not prefix and not response:
        nothing = torch.zeros(0, decoder.config.hidden_size)
        return Backbone(decoder, nothing, nothing)
    tokenizer = load_tokenizer(source, setting)
    before = tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    if before and tokenizer.bos_token_id is not None:
        before = [tokenizer.bos_token_id, *before]
    after = tokenizer(response, add_special_tokens=False)["input_ids"] if response else []
    embed = decoder.get_input_embeddings()  # called, not indexed: some architectures scale the embeddings
    with torch.no_grad():
        vectors = [
            embed(torch.tensor(tokens, dtype=torch.int64, device=decoder.device)).cpu() for tokens in (before, after)
        ]
    return Backbone(decoder, *vectors)


def load_decoder(
    source: str, quantization: dict[str, Any] | None = None, setting: str = "backbone", download: bool = True
) -> PreTrainedModel:
    """Load a pretrained decoder in float32, without its output head; code of its author is never run.

    Args:
        source: As in `load_backbone`.
        quantization: `quantization_config` of transformers: the linear maps are stored in fewer bits, on the device
            that the library chooses.
        setting: Path of the source in the YAML.
        download: True if a hub is asked for a source that the caller named; False: only its local copy is opened.

    Raises:
        CheckpointError: The source cannot be found, or is not a decoder.
        ConfigError: It cannot be quantised in this way.
    """
    path = resolve(source, setting)
    settings: dict[str, Any] = {"quantization_config": _quantization(quantization, setting)} if quantization else {}
    try:
        folder, options = checked_source(path, download)
        settings |= options | {"use_safetensors": True, "adapter_kwargs": {"local_files_only": True}}
        with _without_progress_bars(), bounded_modules():
            model, report = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **settings)
    except Exception as error:  # the type depends on what is wrong with the files
        raise _cannot_be_loaded(source, setting, error, download) from None
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)  # a pooler is not read
    if missing:  # transformers would leave random weights
        raise CheckpointError(f"{setting} is {source!r}, which lacks weights, the first {missing[0]}; copy it again")
    return model


def load_tokenizer(source: str, setting: str = "backbone", download: bool = True) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a pretrained decoder.

    Args:
        source: As in `load_backbone`.
        setting: Path of the source in the YAML.
        download: As in `load_decoder`.

    Raises:
        CheckpointError: The source cannot be found, or has no tokenizer.
    """
    path = resolve(source, setting)
    try:
        folder, options = checked_source(path, download)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # the type depends on what is wrong with the files
        raise _cannot_be_loaded(source, setting, error, download) from None
    return tokenizer


def random_decoder(settings: dict[str, Any], setting: str = "backbone_config") -> PreTrainedModel:
    """Return a decoder with random weights.

    Args:
        settings: Architecture in transformers' names.
        setting: Path of these settings in the YAML.

    Raises:
        ConfigError: `model_type` is missing or unknown, or the sizes do not fit together.
    """
    values = dict(settings)
    try:
        refuse_code(values)
        kind = values.pop("model_type")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(f"{kind!r} is no causal decoder of transformers")
        config = AutoConfig.for_model(kind, **values)
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{setting} is {settings!r}, which makes no decoder ({one_line(error)}); give model_type (for example "
            "llama) and the sizes of that architecture"
        ) from None


def check_backbone(source: str, quantization: dict[str, Any] | None = None, setting: str = "backbone") -> None:
    """Check that a backbone can be found and quantised; at most its configuration is read.

    Raises:
        CheckpointError: The source cannot be found.
        ConfigError: It cannot be quantised in this way.
    """
    if quantization:
        _quantization(quantization, setting)
    read_architecture(source, setting)


def read_architecture(source: str, setting: str = "backbone", download: bool = True) -> dict[str, Any]:
    """Read the architecture of a backbone in transformers' names, without its weights.

    Args:
        source: As in `load_backbone`.
        setting: Path of the source in the YAML.
        download: As in `load_decoder`.

    Raises:
        CheckpointError: The source cannot be found, or is not a model.
    """
    gguf = _gguf(source, setting)
    try:
        if gguf is None:
            place, options = checked_source(source, download)
            config = AutoConfig.from_pretrained(place, **options)
        elif (folder := _dequantized_folder(gguf)).is_dir():
            config = AutoConfig.from_pretrained(folder, **LOCAL)
        else:
            config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, **LOCAL)
    except Exception as error:  # the type depends on what is wrong with the files
        raise _cannot_be_loaded(source, setting, error, download) from None
    values: dict[str, Any] = config.to_diff_dict()
    kept = {key: value for key, value in values.items() if key not in _NOT_ARCHITECTURE}
    return kept | {"model_type": config.model_type}


def count_tokens(source: str, text: str) -> int | None:
    """Return the number of tokens of a text; None if the tokenizer of the backbone is not at hand."""
    gguf = _gguf(source)
    folder = source if gguf is None else str(_dequantized_folder(gguf))
    if gguf is not None and not Path(folder).is_dir():
        return None
    try:
        return len(load_tokenizer(folder)(text, add_special_tokens=False)["input_ids"])
    except CheckpointError:
        return None


def resolve(source: str, setting: str = "backbone") -> str:
    """Return a folder or hub id that transformers can open; a GGUF file is dequantised once, into the cache.

    Raises:
        CheckpointError: A file or package does not exist.
    """
    gguf = _gguf(source, setting)
    return source if gguf is None else str(_dequantized(gguf))


def content_of(source: str) -> str:
    """Return a text that identifies the weights of a backbone: the checksums of its files, or its id on a hub."""
    if source in DECODERS or source.endswith(".gguf"):
        return Path(resolve(source)).name
    files = sorted(file for file in Path(source).rglob("*") if file.is_file())
    return " ".join(map(sha256, files)) or source


def _cannot_be_loaded(source: str, setting: str, error: Exception, download: bool) -> CheckpointError:
    if not download and not Path(source).exists():
        return CheckpointError(f"{setting}: {error}")
    return CheckpointError(
        f"{setting} is {source!r}, which cannot be loaded ({one_line(error)}); give a hub id that can be reached, a "
        f"local folder, a .gguf file, or one of {', '.join(map(repr, DECODERS))}"
    )


def _quantization(settings: dict[str, Any], setting: str) -> BitsAndBytesConfig:
    def refused(reason: object) -> ConfigError:
        section, dot, _ = setting.rpartition(".")
        return ConfigError(
            f"{section}{dot}quantization_config is {settings!r}: {one_line(reason)}; for example "
            "{load_in_4bit: true, bnb_4bit_quant_type: nf4}"
        )

    unknown = sorted(settings.keys() - signature(BitsAndBytesConfig).parameters.keys())  # transformers ignores them
    if unknown:
        raise refused(f"{unknown[0]} is no setting of transformers' BitsAndBytesConfig")
    if not (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        raise refused("neither load_in_4bit nor load_in_8bit is true")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise refused("bitsandbytes is not installed; run: pip install 'slmrec[quantization]'")
    try:
        return BitsAndBytesConfig(**settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise refused(error) from None


def _gguf(source: str, setting: str = "backbone") -> Path | None:
    """Return the GGUF file of a backbone; None if it is not a GGUF file."""
    if source in DECODERS:
        return DECODERS[source].find(setting)
    if not source.endswith(".gguf"):
        return None
    if not Path(source).is_file():
        raise CheckpointError(f"{setting} is {source!r}: no such file")
    return Path(source)


def _dequantized(file: Path) -> Path:
    target = _dequantized_folder(file)
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    _LOG.info("unpacking %s into %s (once)", file, target)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _dequantize(file, partial)
        partial.rename(target)
    except OSError:
        if not (target / "config.json").is_file():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _dequantized_folder(file: Path) -> Path:
    return cache_folder() / f"{file.stem}-{sha256(file)[:12]}"  # by content: all copies of a file share a folder


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


@_without_progress_bars()
def _dequantize(file: Path, folder: Path) -> None:
    try:
        if (file.parent / "adapter_config.json").exists():
            raise ValueError("adapter_config.json beside it names another model; move the file to a folder of its own")
        with bounded_modules():
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **LOCAL)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **LOCAL)
    except Exception as error:  # the type depends on what is wrong with the file
        raise CheckpointError(f"{file}: not a GGUF decoder: {one_line(error)}") from None
    del model.config.quantization_config  # the weights are float32 now
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
