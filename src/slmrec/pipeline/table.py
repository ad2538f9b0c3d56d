"""The pipeline: every stage, in order, in one table. The command line, `run`, `evaluate` and the report read it.

A new stage is a module of this folder with a function `build(task)`, and one row here. This module imports no torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

from slmrec.config import BASELINES, Config
from slmrec.config.item_text import MINILM, WORDS


def _nothing(*_: object) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Stage:
    """A row of the pipeline."""

    name: str
    """Name of the command, of the section of the YAML, of the module and of the output folder."""
    help: str
    """Description on the command line."""
    reads: Callable[[Config], tuple[str, ...]] = _nothing
    """Folders of other steps, relative to the output folder of the run, whose content the result depends on."""
    sections: Callable[[Config], tuple[str, ...]] = _nothing
    """Further sections of the YAML that the result depends on."""
    files: Callable[[Config, Any], tuple[str | None, ...]] = _nothing
    """Files outside the run that the result depends on, given the settings and the section of the step."""
    is_needed: Callable[[Config], bool] = lambda config: True
    """True if `run` executes the stage."""
    models: Callable[[Config], tuple[str, ...]] | None = None
    """Names of the models that the stage trains, each into a folder of its own; None: the stage writes one folder."""
    validates: bool = False
    """True if the stage chooses weights or epochs by the primary protocol, so that its result depends on it."""

    def steps(self, config: Config) -> tuple["Step", ...]:
        """Return the steps of the stage: one, or one for each model."""
        if self.models is None:
            return (Step(self),)
        return tuple(Step(self, model) for model in self.models(config))


@dataclass(frozen=True)
class Step:
    """A unit of work with a folder of its own: a stage, or one model of a stage."""

    stage: Stage
    model: str | None = None
    """Name of the model; None where the stage writes one folder."""

    @property
    def folder(self) -> str:
        """Folder relative to the output folder of the run, such as `pretrain/sasrec`."""
        return self.stage.name if self.model is None else f"{self.stage.name}/{self.model}"

    def build(self, task: Any) -> dict[str, float]:
        """Execute the step; this imports the module of the stage."""
        metrics: dict[str, float] = import_module(f"slmrec.pipeline.{self.stage.name}").build(task)
        return metrics


def teacher_base_models(config: Config) -> tuple[str, ...]:
    """Return the names of the base models that the teacher starts from or is mixed with."""
    names = [config.base_model_of_teacher, *config.finetune.ensemble]
    return tuple(dict.fromkeys(name for name in names if name))


def _local(*sources: str | None) -> tuple[str | None, ...]:
    """Keep the sources that are files here; a model of a hub is identified by its name in the settings."""
    return tuple(source for source in sources if source and Path(source).exists())


def _backbones(config: Config, model: Any) -> tuple[str | None, ...]:
    """Return the files of the backbone and of the item text of a model; baselines have neither."""
    name = getattr(model, "item_text", None)
    text = config.item_text[name] if name else None
    source = text.source if text and text.source not in {WORDS, MINILM} else None
    return _local(getattr(model, "backbone", None), source)


def _reads_of_evaluate(config: Config) -> tuple[str, ...]:
    """Return the folders of all steps before `evaluate`."""
    return tuple(step.folder for step in takewhile(lambda step: step.stage.name != "evaluate", steps(config)))


def _item_vectors_file(config: Config) -> tuple[str | None, ...]:
    source = config.finetune.item_vectors
    return () if source in config.pretrain or config.finetune.backbone is None else (source,)


PIPELINE = (
    Stage(
        "prepare",
        "prepare a data-set folder from raw logs",
        files=lambda config, prepare: (prepare.input, prepare.items),
    ),
    Stage(
        "pretrain",
        "train the base models, such as SASRec",
        reads=lambda config: ("prepare",),
        files=_backbones,
        models=lambda config: (*BASELINES, *config.pretrain),
        validates=True,
    ),
    Stage(
        "finetune",
        "train the teacher: a pruned, pretrained decoder over item vectors, mixed with base models",
        reads=lambda config: ("prepare", *(f"pretrain/{name}" for name in teacher_base_models(config))),
        files=lambda config, finetune: (*_backbones(config, finetune), *_item_vectors_file(config)),
        is_needed=lambda config: config.trains_teacher,
        validates=True,
    ),
    Stage(
        "distill",
        "train the student from the teacher",
        is_needed=lambda config: config.trains_student,
        reads=lambda config: ("prepare", "finetune") if config.trains_teacher else ("prepare",),
        sections=lambda config: ("finetune",),
        files=lambda config, distill: (
            *_backbones(config, distill),
            *(() if config.trains_teacher else (distill.teacher,)),
            *((distill.lists,) if distill.lists else ()),
        ),
        validates=True,
    ),
    Stage(
        "evaluate",
        "evaluate all models side by side on the test split",
        reads=_reads_of_evaluate,
    ),
)


def stage_named(name: str) -> Stage:
    """Return the row of a stage.

    Example:
        >>> stage_named("distill").help
        'train the student from the teacher'
    """
    return next(stage for stage in PIPELINE if stage.name == name)


def steps(config: Config) -> Iterator[Step]:
    """Yield all steps that `run` executes, in order.

    Example:
        >>> [step.folder for step in steps(Config())][:3]
        ['prepare', 'pretrain/popularity', 'pretrain/cooccurrence']
    """
    for stage in PIPELINE:
        if stage.is_needed(config):
            yield from stage.steps(config)
