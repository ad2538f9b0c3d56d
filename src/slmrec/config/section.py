"""Base class of every configuration section, and the checks that sections share."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen group of settings that refuses unknown keys; the text under each field documents it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def check(condition: bool, message: str) -> None:
    """Refuse a value unless the condition holds.

    Raises:
        ValueError: The condition is false; pydantic adds the location of the setting.
    """
    if not condition:
        raise ValueError(message)


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
