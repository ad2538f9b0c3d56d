"""What all sections are: frozen, explained beneath each setting, and strict about unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def check(condition: bool, message: str) -> None:
    """Refuses a value.

    Raises:
        ValueError: the condition does not hold.
    """
    if not condition:
        raise ValueError(message)


def check_layers(layers: tuple[int, ...] | None, num_layers: int, section: type[Section]) -> None:
    """Refuses a list of layers beside another number of them.

    Raises:
        ValueError: both are given and differ.
    """
    unset = section.model_fields["num_layers"].default
    check(
        layers is None or num_layers in (unset, len(layers)),
        f"layers lists {len(layers or ())} layers but num_layers is {num_layers}; give one of them",
    )
