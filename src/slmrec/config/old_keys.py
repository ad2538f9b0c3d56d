"""Keys of version 0.1, refused with the keys that replace them."""

from collections.abc import Iterator
from typing import Any

from slmrec.config.base_models import SasRecModel

_RENAMED = {"item_table": "item_embeddings", "average_decay": "ema_decay"}
_STUDENT = ("init", "layers", "num_layers", "item_table", "item_dropout")
_REMOVED = {
    "distill.teacher_states": "the outputs of the teacher are cached in OUT/teacher_outputs",
    "distill.normalized_states": "the norm loss compares states as they are",
    "distill.layer_dropout": "the student has no layer dropout",
    "distill.backbone_config": "a student of another size has another kind (distill.student.kind)",
}
_ITEM_TEXT = ("source", "layer", "num_components", "required")


def old_keys(values: dict[str, Any]) -> Iterator[str]:
    """Yield a message for each key or value of version 0.1 in a configuration."""
    for key, value in _leaves(values, ()):
        replacement = _replacement(key.split("."), value)
        if replacement:
            yield f"{key!r} is a key of version 0.1; {replacement}"


def _leaves(values: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of every setting, of dictionaries too."""
    for name, value in values.items() if isinstance(values, dict) else ():
        yield ".".join((*path, str(name))), value
        yield from _leaves(value, (*path, str(name)))


def _replacement(path: list[str], value: Any) -> str | None:
    key, (section, *rest) = ".".join(path), path
    if section == "companion":
        return "declare a base model: pretrain.NAME with kind: decoder" if not rest else None
    if key in _REMOVED:
        return f"it was removed: {_REMOVED[key]}"
    if section == "pretrain" and len(rest) == 1 and rest[0] == "item_vectors":
        return "use 'finetune.item_vectors'"
    if section == "pretrain" and len(rest) == 1 and _is_sasrec_setting(rest[0], value):
        return f"use 'pretrain.sasrec.{rest[0]}'"
    if section == "distill" and len(rest) == 1 and rest[0] in _STUDENT:
        return f"use 'distill.student.{_RENAMED.get(rest[0], rest[0])}'"
    if path[-1] == "titles":
        return "declare 'item_text.NAME' and set item_text: NAME in the model"
    if path[-1] in _RENAMED:
        return f"use '{'.'.join(path[:-1])}.{_RENAMED[path[-1]]}'"
    if key == "evaluate.protocols" and isinstance(value, list | tuple) and "sampled" in value:
        return "name the protocol 'sampled_999' (or sampled_N)"
    return None


def _is_sasrec_setting(name: str, value: Any) -> bool:
    """Tell a setting of the old section `pretrain` from a base model of that name."""
    is_setting = name in SasRecModel.model_fields and name != "kind"
    return is_setting and not (isinstance(value, dict) and "kind" in value)
