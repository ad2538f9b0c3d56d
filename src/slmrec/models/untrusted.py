"""Checks of configurations that others wrote, before anything is built, allocated, run or downloaded."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.utils import find_adapter_config_file
from transformers.utils.hub import try_to_load_from_cache

from slmrec.config import LoraSettings
from slmrec.config.section import check
from slmrec.data.tensor_files import TensorFacts, read_header
from slmrec.files import one_line, read_json

MAX_MODULES = 50_000
"""Largest number of modules of a model that is opened; a LLaMA layer has 13."""
MAX_HISTORY_ITEMS = 1_000_000
"""Longest history of a model that is opened."""
LOCAL = {"trust_remote_code": False, "local_files_only": True}
"""Options of transformers for files on this machine."""
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
_NUMBERS_OF_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.json of a model that others may have written.

    Raises:
        OSError: The file does not exist or cannot be read.
        ValueError: It is no JSON object, or asks to run or to download code.
    """
    values = read_json(path, allow_nan=False)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    refuse_code(values)
    return values


def refuse_code(values: Any, is_named: bool = False) -> None:
    """Refuse settings of transformers that run code of a model's author, or download kernels, at any depth.

    Args:
        values: Settings in transformers' names.
        is_named: True if the caller named the model: then its own code is ignored where transformers has the
            architecture.

    Raises:
        ValueError: There is such a setting.
    """
    for config in _objects(values):
        is_known = is_named and config.get("model_type", "llama") in CONFIG_MAPPING
        for key in _CODE_KEYS:
            if config.get(key) and not is_known:
                raise ValueError(f"{key} asks to run code of its author, which is never run")
        for key, value in config.items():
            is_remote = isinstance(value, str) and "/" in value and key.endswith("_implementation")
            if is_remote or (value and key in ("use_kernels", "kernel_config")):
                raise ValueError(f"{key} is {one_line(repr(value), 80)}, which asks to download code; that is not done")


def check_num_layers(values: dict[str, Any], num_tensors: int) -> None:
    """Refuse a configuration with more layers than tensors of weights, since each layer has some.

    Layers under adapters of a backbone are in the folder of that backbone.

    Raises:
        ValueError: There are more.
    """
    if values.get("lora") and values.get("backbone"):
        return
    for name in _NUMBERS_OF_LAYERS:
        value = values.get(name)
        if isinstance(value, int | float) and value > num_tensors:
            raise ValueError(f"{name} is {value}, but the weights are {num_tensors} tensors")
    for below in values.values():
        if isinstance(below, dict):
            check_num_layers(below, num_tensors)


def check_decoder(settings: Mapping[str, Any]) -> None:
    """Refuse settings of a decoder's architecture that no shape of a weight shows to be wrong.

    Raises:
        ValueError: A setting is out of range.
    """
    allowed = ("contiguous", "right_aligned")
    check(settings["positions"] in allowed, f"positions is {settings['positions']!r}, expected one of {allowed}")
    length = settings["max_history_items"]
    check(
        type(length) is int and 1 <= length <= MAX_HISTORY_ITEMS,
        f"max_history_items is {length!r}, expected 1 to {MAX_HISTORY_ITEMS:,}",
    )
    if settings["lora"]:
        LoraSettings.model_validate(settings["lora"])  # PEFT has settings that import modules


@contextmanager
def bounded_modules() -> Iterator[None]:
    """Stop the construction of a model that has more than `MAX_MODULES` modules.

    Raises:
        ValueError: It has more.
    """
    thread, count = threading.get_ident(), 0

    def registered(_: nn.Module, __: str, ___: nn.Module | None) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > MAX_MODULES:
                raise ValueError(f"it describes a model of more than {MAX_MODULES:,} modules")

    handle = register_module_module_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


def misfits(expected: Mapping[str, Tensor], header: Mapping[str, TensorFacts]) -> list[str]:
    """Return the names of weights that are missing, unknown, or of another shape or kind of number."""
    wrong = expected.keys() ^ header.keys()
    for name in expected.keys() & header.keys():
        tensor, facts = expected[name], header[name]
        if tuple(tensor.shape) != facts.shape or _kind(str(tensor.dtype)) != _kind(facts.dtype):
            wrong.add(name)
    return sorted(wrong)


def local_source(source: str) -> str:
    """Return the path of a pretrained model on this machine: a path itself, or the copy in the cache of the hub.

    Raises:
        ValueError: There is none.
    """
    if Path(source).exists():
        return source
    config = None
    with suppress(ValueError):  # no id of a hub
        config = try_to_load_from_cache(source, "config.json")
    if not isinstance(config, str):
        raise ValueError(
            f"{source!r} is neither a folder nor in the cache of the hub; opening a model downloads nothing: if you "
            f"trust it, run `hf download {source}` first"
        )
    return str(Path(config).parent)


def checked_source(source: str, download: bool) -> tuple[str, dict[str, Any]]:
    """Return the folder or hub id of a pretrained model, and the options with which transformers opens it safely.

    Args:
        source: A folder, or an id on a hub.
        download: True if the caller named the model, so that a hub may be asked for it; False: its copy in the cache
            is taken, without a request.

    Raises:
        OSError: A file cannot be read, or the hub not be reached.
        ValueError: Code would be run, another model opened, or sizes do not fit the weights.
    """
    source = source if download else local_source(source)
    folder = Path(source)
    options = LOCAL | {"local_files_only": folder.exists()}
    if find_adapter_config_file(source, local_files_only=folder.exists()) is not None:
        raise ValueError("it holds adapters of another model; merge them into that model first")
    if not folder.exists():
        refuse_code(PretrainedConfig.get_config_dict(source, **options)[0], is_named=True)
        return source, options
    values = read_json(folder / "config.json")
    refuse_code(values, is_named=download)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        refuse_code(read_json(tokenizer), is_named=download)
    headers = [read_header(file) for file in sorted(folder.glob("*.safetensors"))]
    if headers and isinstance(values, dict):
        check_num_layers(values, sum(map(len, headers)))
    return source, options


def _kind(dtype: str) -> str:
    """Return the kind of number of a type, by its name in PyTorch or in safetensors."""
    name = dtype.removeprefix("torch.").lower()
    return "float" if name.startswith(("float", "bfloat", "f", "bf")) else name.rstrip("0123456789")[:1]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield a value and all values in it that are objects."""
    if isinstance(value, dict):
        yield value
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in below:
        yield from _objects(one)
