"""Base class of every configuration section, and the checks that sections share."""

import re
from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator

from slmrec.config.secrets import without_secrets


class Section(BaseModel):
    """Frozen group of settings that refuses unknown keys; the text under each field documents it.

    URLs lose their passwords before they are validated, and pydantic's own errors, which show what was given, hide it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    @model_validator(mode="wrap")
    @classmethod
    def _remove_secrets(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return handler(without_secrets(values))


def check(condition: bool, message: str) -> None:
    """Refuse a value unless the condition holds.

    Raises:
        ValueError: The condition is false; pydantic adds the location of the setting.
    """
    if not condition:
        raise ValueError(message)


def check_folder_names(names: Iterable[str], setting: str) -> None:
    """Refuse names that are not suitable for folders.

    Raises:
        ValueError: A name has another character, or does not begin with a letter.
    """
    for name in names:
        check(
            re.fullmatch(r"[A-Za-z_][\w-]*", name) is not None,
            f"{setting} has {name!r}: names are folders; use letters, digits, '_' and '-', beginning with a letter",
        )


def check_layers(layers: tuple[int, ...] | None, num_layers: int, section: type[Section]) -> None:
    """Refuse a list of layers whose length contradicts `num_layers`.

    Raises:
        ValueError: Both are set and disagree.
    """
    default = section.model_fields["num_layers"].default
    check(
        layers is None or num_layers in (default, len(layers)),
        f"layers lists {len(layers or ())} layers but num_layers is {num_layers}; give one of them",
    )
