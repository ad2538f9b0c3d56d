"""Reading a configuration from a YAML file and overrides; all faults are reported in one line."""

import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slmrec.config import Config, Section
from slmrec.config.kinds import KINDS, base_model_section, student_section
from slmrec.config.old_keys import old_keys
from slmrec.config.secrets import redacted, without_secrets
from slmrec.config.yaml_text import MAX_YAML_BYTES, parse_yaml
from slmrec.errors import ConfigError
from slmrec.files import one_line, read_text
from slmrec.recipes import find_recipe

_NOT_YAML = ("%", ",")
"""Beginnings of values that YAML would refuse, such as `%d.%m.%Y`; they are text."""


def load_config(source: Path | str | None, overrides: list[str]) -> Config:
    """Read a YAML file, or a recipe by its name, and apply `key.path=value` overrides.

    Args:
        source: A file, or the name of a recipe of the package (`beauty`); None for the defaults.
        overrides: Settings that replace those of the file, each as `key.path=value`.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown, or a value is out of range; the message names
            every fault.

    Example:
        >>> load_config("tiny", ["distill.student.num_layers=2"]).distill.student.num_layers
        2
    """
    path = None if source is None else find_recipe(source)
    values = _read_yaml(path) if path else {}
    for override in overrides:
        _apply(values, override)
    if faults := list(old_keys(values)):
        raise ConfigError(f"{f'{path}: ' if path else ''}{'; '.join(faults)}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults_by_origin: dict[str, list[str]] = {}
        for fault in error.errors():
            faults_by_origin.setdefault(_origin(fault["loc"], path, overrides), []).append(_describe(fault))
        message = "; ".join(f"{origin}: {'; '.join(faults)}" for origin, faults in faults_by_origin.items())
        raise ConfigError(message) from None


def vary(config: Config, changes: dict[str, Any], where: str) -> Config:
    """Return a configuration with some settings changed, each given by `key.path`.

    Raises:
        ConfigError: A key is unknown, a value is out of range, or settings contradict each other; the message begins
            with `where`.

    Example:
        >>> vary(load_config("tiny", []), {"seed": 7}, "example").seed
        7
    """
    values = config.model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        _apply(values, f"{key}={json.dumps(value, default=str)}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {'; '.join(map(_describe, error.errors()))}") from None


def _origin(location: tuple[Any, ...], path: Path | None, overrides: list[str]) -> str:
    """Name the source of a faulty value: an override, the file, or both where settings contradict each other."""
    where = "".join(f"{part}." for part in location)
    keys = {f"{override.partition('=')[0]}.": override for override in overrides}
    named = [override for key, override in keys.items() if where.startswith(key)]
    if named:
        return f"override {redacted(named[-1])!r}"
    is_below = not path or any(key.startswith(where) for key in keys)
    return " and ".join(([str(path)] if path else []) + (["the command line"] if is_below else []))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(read_text(path, MAX_YAML_BYTES))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {redacted(one_line(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {type(values).__name__}, expected sections such as prepare and pretrain")
    return dict(without_secrets(values))


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    override = redacted(override)
    if not separator or not key:
        raise ConfigError(f"override {override!r}: expected key.path=value, such as distill.student.num_layers=2")
    *sections, name = key.split(".")
    for section in sections:
        below = values.get(section)
        if below is None:  # absent or null: the override starts the section, whose other settings keep their defaults
            below = values[section] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"override {override!r}: {section!r} is {below!r}, which has no settings of its own; give {section}=..."
            )
        values = below
    try:
        values[name] = without_secrets(text if text.startswith(_NOT_YAML) else parse_yaml(text))
    except ValueError as error:
        fault = f"{text!r} is not a YAML value ({one_line(error)}); quote it, or close its brackets"
        raise ConfigError(f"override {override!r}: {redacted(fault)}") from None


def _describe(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_suggestion(fault['loc'])}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} is {fault['input']!r}: {message}"


def _suggestion(location: tuple[Any, ...]) -> str:
    name = str(location[-1])
    sections: list[type[Section]] = [Config]
    for part in location[:-1]:
        sections = [below for section in sections for below in _sections_at(section, str(part))]
    known = list(dict.fromkeys(field for section in sections for field in section.model_fields))
    owners = (section.model_fields for section in sections if name in section.model_fields)
    kinds = dict.fromkeys(str(fields["kind"].default) for fields in owners if "kind" in fields)
    if kinds:  # the name belongs to the section of another kind
        return f" (only of kind {', '.join(kinds)})"
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
        return f" (did you mean {close[0]!r}?)"
    for field in known:
        if any(name in below.model_fields for section in sections for below in _sections_at(section, field)):
            return f" (did you mean '{field}.{name}'?)"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f"; known: {', '.join(known)}" if known else ""


def _sections_at(section: type[Section], name: str) -> list[type[Section]]:
    """Section classes that a field may hold; base models and students have one for each kind."""
    if section in _NAMED:
        return _NAMED[section]
    field = section.model_fields.get(name)
    if field is None:
        return []
    if section is Config and name in ("pretrain", "item_text"):
        return [_BaseModels if name == "pretrain" else _ItemTexts]
    if name == "student":
        return [student_section(kind) for kind in KINDS.values() if kind.settings is not None]
    kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]


class _BaseModels(Section):
    """Stands for the names of base models."""


class _ItemTexts(Section):
    """Stands for the names of item texts."""


_NAMED: dict[type[Section], list[type[Section]]] = {
    _BaseModels: [base_model_section(kind) for kind in KINDS.values()],
    _ItemTexts: [Config.model_fields["item_text"].annotation.__args__[1]],  # type: ignore[union-attr]
}
