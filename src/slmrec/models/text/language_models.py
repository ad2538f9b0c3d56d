"""Text vectors from language models: mean hidden states of decoders, and sentence encoders."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from slmrec.config import ItemTextConfig
from slmrec.config.item_text import MINILM
from slmrec.errors import CheckpointError, ConfigError
from slmrec.files import one_line
from slmrec.models.backbone import load_decoder, load_tokenizer, resolve
from slmrec.models.text.minilm import minilm_folder
from slmrec.models.text.pooling import Pool, Pooling, mean, read_pooling
from slmrec.models.untrusted import bounded_modules, checked_source

MAX_TOKENS = 64
"""Number of tokens after which texts for a decoder are cut off where the settings do not say otherwise."""
_BATCH, _UNLIMITED = 64, 1 << 20


class _Reader(NamedTuple):
    """A language model and the way in which it reads texts."""

    model: PreTrainedModel
    tokens: list[list[int]]
    """Tokens of each text."""
    layer: int
    """Number of layers after which hidden states are read; -1: the last hidden state."""
    pool: Pool


def read_by_language_model(
    settings: ItemTextConfig,
    texts: Sequence[str],
    progress: Callable[[int], None] | None = None,
    section: str = "item_text",
) -> Tensor:
    """Return the vectors (n, H) of texts, on the CPU.

    Args:
        settings: Source, layer, number of tokens, and whether the weights are random.
        texts: Texts that are not empty.
        progress: Called after each batch with the number of texts in it.
        section: Path of the settings in the YAML, for messages.

    Raises:
        CheckpointError: The source cannot be found, or is neither a decoder nor a sentence encoder.
        ConfigError: The decoder has fewer layers, or a setting has no effect on a sentence encoder.
    """
    reader = _open(settings, texts, section)
    reader.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    order = np.argsort([len(tokens) for tokens in reader.tokens], kind="stable")
    vectors: Tensor | None = None
    for start in reversed(range(0, len(order), _BATCH)):  # the longest first: the estimate of the time errs upwards
        batch = order[start : start + _BATCH].tolist()
        values = _read(reader, [torch.tensor(reader.tokens[index]) for index in batch])
        vectors = torch.zeros(len(texts), values.shape[1]) if vectors is None else vectors
        vectors[batch] = values
        if progress:
            progress(len(batch))
    return torch.zeros(0, reader.model.config.hidden_size) if vectors is None else vectors


def language_model_folder(settings: ItemTextConfig, section: str) -> str:
    """Return a folder or hub id that transformers can open.

    Raises:
        CheckpointError: The source does not exist.
    """
    setting = f"{section}.source"
    return str(minilm_folder(setting)) if settings.source == MINILM else resolve(settings.source, setting)


def _open(settings: ItemTextConfig, texts: Sequence[str], section: str) -> _Reader:
    folder = language_model_folder(settings, section)
    pooling = read_pooling(folder, f"{section}.source")
    model = _load(settings, folder, f"{section}.source")
    tokenizer = load_tokenizer(folder, f"{section}.source")
    if pooling is not None or not _is_decoder(model):
        return _encoder(settings, texts, model, tokenizer, pooling or Pooling(), section)
    depth = len(model.layers)
    layer = settings.layer or max(1, 2 * depth // 3)
    if layer > depth:
        raise ConfigError(f"{section}.layer is {layer} but there are {depth} layers; choose 1-{depth}")
    model.layers = model.layers[: layer + (layer < depth)]  # the last hidden state has passed the final norm
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    limit = settings.max_tokens or MAX_TOKENS
    return _Reader(model, [tokens[:limit] for tokens in encoded], layer, mean)


def _encoder(
    settings: ItemTextConfig,
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: Any,
    pooling: Pooling,
    section: str,
) -> _Reader:
    if settings.layer is not None:
        raise ConfigError(
            f"{section}.layer is {settings.layer}, but {settings.source} is a sentence encoder, which is read after "
            "its last layer; leave layer out"
        )
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    most = tokenizer.model_max_length
    limit = settings.max_tokens or min(pooling.max_tokens or most, most)
    if limit > most:
        raise ConfigError(
            f"{section}.max_tokens is {limit}, but {settings.source} reads at most {most} tokens; choose 1-{most}"
        )
    given = [text.lower() if pooling.lower_case else text for text in texts]
    cut = {"truncation": True, "max_length": limit} if limit < _UNLIMITED else {}
    return _Reader(model, tokenizer(given, **cut)["input_ids"] if given else [], -1, pooling)


def _is_decoder(model: PreTrainedModel) -> bool:
    first = next(iter(getattr(model, "layers", ())), None)
    return bool(getattr(getattr(first, "self_attn", None), "is_causal", False))


def _load(settings: ItemTextConfig, folder: str, setting: str) -> PreTrainedModel:
    if not settings.random_weights:
        return load_decoder(folder, setting=setting)
    try:
        path, options = checked_source(folder, download=True)
        config = AutoConfig.from_pretrained(path, **options)
        with torch.random.fork_rng(), bounded_modules():
            torch.manual_seed(settings.seed)
            return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # the type depends on what is wrong with the files
        raise CheckpointError(f"{setting} is {settings.source!r}, which cannot be loaded ({one_line(error)})") from None


def _read(reader: _Reader, texts: list[Tensor]) -> Tensor:
    """Return vectors (B, H); padding is on the right, where a causal decoder does not see it."""
    device = reader.model.device
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    is_token = torch.arange(tokens.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
    inputs = {"input_ids": tokens.to(device)}
    if reader.layer < 0:
        inputs["attention_mask"] = is_token.long().to(device)
    with torch.inference_mode():
        if reader.layer < 0:
            states = reader.model(**inputs).last_hidden_state
        else:
            states = reader.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[reader.layer]
        return reader.pool(states.float().cpu(), is_token.float()[:, :, None])
