"""Architectures by name: `kind` in the sections of base models and of the student.

A new architecture is one module with its settings and its model, and one line in `KINDS`; a user adds one by
`slmrec.models.register`.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, GetJsonSchemaHandler, create_model
from pydantic.json_schema import JsonSchemaValue

from slmrec.config.base_models import BaseModelSettings, StudentSettings
from slmrec.config.section import Section, check


class Kind(NamedTuple):
    """Functions and classes of an architecture, each as `module:name`, imported when they are needed, or as it is."""

    build: str | Callable[..., Any]
    """Function `build(settings, parts)` that makes a model with initial weights."""
    settings: str | type[StudentSettings] | None
    """Section of a student of this architecture; None: it is no student."""
    base_model: str | None = None
    """Section of a base model; None: `settings` together with `BaseModelSettings`."""
    build_student: str | None = None
    """Function that makes a student, where it differs from `build`."""


KINDS: dict[str, Kind] = {
    "sasrec": Kind(
        "slmrec.models.sasrec:build_sasrec",
        "slmrec.config.base_models:SasRecStudent",
        "slmrec.config.base_models:SasRecModel",
        "slmrec.models.sasrec:build_sasrec_student",
    ),
    "text": Kind(
        "slmrec.models.sasrec:build_sasrec",
        None,
        "slmrec.config.base_models:TextModel",
    ),
    "decoder": Kind(
        "slmrec.models.build:build_decoder_model",
        "slmrec.config.distill:DecoderStudent",
        "slmrec.config.decoder:DecoderModel",
        "slmrec.models.build:build_decoder_student",
    ),
}
DEFAULT_BASE_MODEL, DEFAULT_STUDENT = "sasrec", "decoder"


def load_object(path: Any) -> Any:
    """Import an object given as `module:name`; return any other object as it is."""
    if not isinstance(path, str):
        return path
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@cache
def base_model_section(kind: Kind) -> type[BaseModelSettings]:
    """Return the section class of base models of an architecture."""
    if kind.base_model is not None:
        section: type[BaseModelSettings] = load_object(kind.base_model)
        return section
    settings: Any = student_section(kind)
    return create_model(f"{settings.__name__}BaseModel", __base__=(settings, BaseModelSettings))


def student_section(kind: Kind) -> type[Section]:
    """Return the section class of students of an architecture."""
    assert kind.settings is not None
    section: type[Section] = load_object(kind.settings)
    return section


class _ByKind(NamedTuple):
    """Reads settings by the section class of their `kind`."""

    default: str
    section_of: Callable[[Kind], type[Section]]
    fits: Callable[[Kind], bool] = lambda _: True

    def parse(self, values: Any) -> Any:
        if isinstance(values, Section):
            return values
        check(isinstance(values, dict), f"got {values!r}, expected settings such as {{kind: {self.default}}}")
        kind = values.get("kind", self.default)
        names = self._names()
        check(isinstance(kind, str) and kind in names, f"kind is {kind!r}; choose from {', '.join(names)}")
        return self.section_of(KINDS[kind]).model_validate(values)

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schemas of all kinds; only the default kind may be left out."""
        schemas: list[JsonSchemaValue] = []
        for name in self._names():
            schema = handler(self.section_of(KINDS[name]).__pydantic_core_schema__)
            schemas.append(schema if name == self.default else schema | {"required": ["kind"]})
        return {"anyOf": schemas}

    def _names(self) -> list[str]:
        return [name for name, kind in KINDS.items() if self.fits(kind)]


_BASE_MODEL = _ByKind(DEFAULT_BASE_MODEL, base_model_section)
_STUDENT = _ByKind(DEFAULT_STUDENT, student_section, lambda kind: kind.settings is not None)
BaseModelByKind = Annotated[BaseModelSettings, BeforeValidator(_BASE_MODEL.parse), _BASE_MODEL]
"""Settings of a base model, read by the section class of its `kind`."""
StudentByKind = Annotated[StudentSettings, BeforeValidator(_STUDENT.parse), _STUDENT]
"""Settings of a student, read by the section class of its `kind`."""
