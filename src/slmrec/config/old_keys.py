"""Keys of version 0.1, refused with the keys that replace them."""

from collections.abc import Iterator
from typing import Any

from slmrec.config.base_models import SasRecModel

Path = tuple[str, ...]

_STUDENT = ("init", "layers", "num_layers", "item_dropout")
_ITEM_EMBEDDINGS = "with fixed, train or reinitialise for frozen, trained or fresh"
_REMOVED = {
    "teacher_states": "the outputs of the teacher are cached in OUT/teacher_outputs",
    "normalized_states": "the norm loss compares states as they are",
    "layer_dropout": "the student has no layer dropout",
    "backbone_config": "a student of another size has another kind (distill.student.kind)",
}
_VARIANTS = ("ablate", "variants")


def old_keys(values: dict[str, Any]) -> Iterator[str]:
    """Yield a message for each key or value of version 0.1 in a configuration.

    Example:
        >>> list(old_keys({"distill": {"num_layers": 2}}))
        ["'distill.num_layers' is a key of version 0.1; use 'distill.student.num_layers'"]
    """
    for path, value in _settings(values, ()):
        is_changed = path[:2] == _VARIANTS and len(path) > 3
        replacement = _replacement(path[3:] if is_changed else path, value)
        if replacement:
            yield f"{'.'.join(path)!r} is a key of version 0.1; {replacement}"


def _settings(values: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield path and value of every setting and section; variants of `ablate` name settings by dotted paths."""
    for name, value in values.items() if isinstance(values, dict) else ():
        is_change = path[:2] == _VARIANTS and len(path) == 3
        below = (*path, *str(name).split(".")) if is_change else (*path, str(name))
        yield below, value
        yield from _settings(value, below)


def _replacement(path: Path, value: Any) -> str | None:
    """Return the key that replaces a setting of version 0.1; None for settings of this version."""
    result = None
    match path:
        case ("companion",):
            result = "declare a base model: pretrain.NAME with kind: decoder"
        case ("pretrain", "item_vectors") if not isinstance(value, dict):
            result = "use 'finetune.item_vectors'"
        case ("pretrain", name) if _is_sasrec_setting(name, value):
            result = f"use 'pretrain.sasrec.{name}'"
        case ("pretrain", "train", "average_decay"):
            result = "use 'pretrain.sasrec.train.ema_decay'"
        case ("finetune" | "distill", "train", "average_decay") | ("pretrain", _, "train", "average_decay"):
            result = f"use '{'.'.join(path[:-1])}.ema_decay'"
        case ("finetune", "item_table"):
            result = f"use 'finetune.item_embeddings' {_ITEM_EMBEDDINGS}"
        case ("distill", "item_table"):
            result = f"use 'distill.student.item_embeddings' {_ITEM_EMBEDDINGS}"
        case ("finetune", "titles") | ("pretrain", _, "titles"):
            result = f"declare 'item_text.NAME', and set {'.'.join(path[:-1])}.item_text to that name"
        case ("distill", name) if name in _STUDENT:
            result = f"use 'distill.student.{name}'"
        case ("distill", name) if name in _REMOVED:
            result = f"it was removed: {_REMOVED[name]}"
        case ("evaluate", "protocols") if isinstance(value, list | tuple) and "sampled" in value:
            result = "name the protocol 'sampled_999', or sampled_N for N negatives, instead of 'sampled'"
    return result


def _is_sasrec_setting(name: str, value: Any) -> bool:
    """Tell a setting of the old section `pretrain` from a base model of that name."""
    is_setting = name in SasRecModel.model_fields and name != "kind"
    is_section = name in ("train", "low_pass") and isinstance(value, dict) and "kind" not in value
    return is_setting and (is_section or not isinstance(value, dict))
