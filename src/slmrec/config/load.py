"""From a YAML file and overrides to a configuration, or to one line that names every fault."""

import difflib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from slmrec.config import Config, Section
from slmrec.errors import ConfigError


def load_config(path: Path | None, overrides: list[str]) -> Config:
    """The configuration of a YAML file with `key.path=value` overrides; all faults are reported at once.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    values = _read_yaml(path) if path else {}
    for override in overrides:
        _apply(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults: dict[str, list[str]] = {}
        for fault in error.errors():
            faults.setdefault(_origin(fault["loc"], path, overrides), []).append(_describe(fault))
        raise ConfigError("; ".join(f"{origin}: {'; '.join(found)}" for origin, found in faults.items())) from None


def vary(config: Config, changes: dict[str, Any], where: str) -> Config:
    """The same configuration but for some settings, given by `key.path`.

    Raises:
        ConfigError: a key is unknown, a value is out of range, or they contradict the rest; it begins with `where`.
    """
    values = config.model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        _apply(values, f"{key}={json.dumps(value, default=str)}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {'; '.join(map(_describe, error.errors()))}") from None


def _origin(location: tuple[Any, ...], path: Path | None, overrides: list[str]) -> str:
    """What gave a faulty value: an override, or the file, or, where settings contradict each other, perhaps both."""
    where = "".join(f"{part}." for part in location)
    keys = {f"{override.partition('=')[0]}.": override for override in overrides}
    named = [override for key, override in keys.items() if where.startswith(key)]
    if named:
        return f"override {named[-1]!r}"
    below = not path or any(key.startswith(where) for key in keys)
    return " and ".join(([str(path)] if path else []) + (["the command line"] if below else []))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; recipes are in configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections (prepare, pretrain, ...), got {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: expected key.path=value, for example distill.num_layers=2")
    *sections, name = key.split(".")
    for section in sections:
        below = values.get(section)
        if below is None:  # left out, or null: begun with this setting, its others as by default
            below = values[section] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"override {override!r}: {section!r} is {below!r}, which has no settings of its own; give {section}=..."
            )
        values = below
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"override {override!r}: {text!r} is not a YAML value; quote it, or close its brackets"
        ) from None


def _describe(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_suggestion(fault['loc'])}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} is {fault['input']!r}: {message}"


def _suggestion(location: tuple[Any, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        field = section.model_fields.get(part)
        candidates = (
            [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if field] if field else []
        )
        section = next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Section)), None)
        if section is None:
            return ""
    below = [name for name, field in section.model_fields.items() if str(location[-1]) in _fields(field.annotation)]
    if below:
        return f" (did you mean '{below[0]}.{location[-1]}'?)"
    close = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f"; known: {', '.join(section.model_fields)}"


def _fields(kind: Any) -> Collection[str]:
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ()
