"""Dry run: the steps that `run` would execute, with sizes, memory and time; nothing is written, no weights are read."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from slmrec.auto.architectures import ARCHITECTURES
from slmrec.auto.estimate import (
    Rates,
    Sizes,
    Work,
    measure_rates,
    padded_tokens_of,
    reading_seconds,
    sizes_of,
    tokens_of,
    training_bytes,
    training_seconds,
    training_work,
    work_of,
)
from slmrec.config import Config, DecoderSettings, TrainConfig
from slmrec.config.kinds import KINDS, load_object
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError
from slmrec.folders import read_record
from slmrec.models.backbone import Backbone, count_tokens, random_decoder, read_architecture
from slmrec.models.build import build_decoder, prompt_of
from slmrec.models.model import Model, ModelParts
from slmrec.models.text.item_text import ItemText
from slmrec.models.text.sources import text_width
from slmrec.pipeline.distill import build_student
from slmrec.pipeline.stage import pending_steps
from slmrec.pipeline.table import steps
from slmrec.training.optimization import use_bf16

CHARACTERS_PER_TOKEN = 4
VALIDATION_BATCH = 256
MIN_WIDTH = 118
NO_PROMPT = (0, 0)


class Row(NamedTuple):
    """Estimates of one training step; None where they need data that does not exist yet."""

    sizes: Sizes
    tokens: int | None = None
    padded_tokens: int | None = None
    samples: int | None = None
    num_bytes: int | None = None
    seconds: float | None = None


class Planned(NamedTuple):
    """A model that would be built, without weights."""

    model: Model
    train: TrainConfig
    supervision: str
    prompt: tuple[int, int] = NO_PROMPT
    """Number of tokens before and after the items."""
    bits: int | None = None
    """Bits of the frozen layers; None: float32."""
    num_blocks: int = 0
    """Number of blocks whose states have a cross-entropy of their own."""
    ce: bool = True
    """True if the loss contains a cross-entropy over the catalogue."""
    teacher: Model | None = None
    """Frozen teacher, which reads the samples `teacher_passes` times: once, or in every epoch."""
    teacher_passes: int = 1
    kl: bool = False
    """True if the loss compares the score distributions of student and teacher."""


def show_plan(config: Config, output: Path, force: bool) -> None:
    """Print the steps that would be executed, and what they need."""
    planned_steps = list(steps(config))
    pending = {step.folder for step in pending_steps(planned_steps, config, output, force)}
    folder = output / "prepare"
    dataset = Dataset.load(folder) if read_record(folder).get("done") else None
    notes: list[str] = []
    plans = _planned(config, dataset, notes)
    lacks_times = dataset is not None and dataset.times is None
    readers = [name for name, planned in plans.items() if planned.model.timestamp_unit and lacks_times]
    notes += [f"{name}: time_gaps reads times, which the data lack; it would stop there" for name in readers]
    rows = {name: _row(planned, dataset) for name, planned in plans.items()}
    console = Console(width=max(Console().width, MIN_WIDTH))
    console.print(_table([step.folder for step in planned_steps], pending, rows))
    for note in [_data_line(dataset, "prepare" in pending, folder), *notes]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(
        "nothing was written. Memory and time are estimates (docs/training.md gives their errors); time is that of all "
        "epochs, from rates measured on this machine for a second",
        soft_wrap=True,
    )


def _data_line(dataset: Dataset | None, is_pending: bool, folder: Path) -> str:
    if dataset is None:
        return "data: not prepared: run `slmrec prepare` first for figures of the data; parameters are without items"
    events = int(dataset.offsets[-1])
    figures = f"{dataset.num_users:,} users, {dataset.num_items:,} items, {events:,} events"
    return (
        f"data: {figures} (measured, {folder}){'; prepare would run again and may change them' if is_pending else ''}"
    )


def _planned(config: Config, dataset: Dataset | None, notes: list[str]) -> dict[str, Planned]:
    """Return the models of all training steps by the folder of the step."""
    num_items = dataset.num_items if dataset else 0
    planned = {}
    for name, settings in config.pretrain.items():
        folder = f"pretrain/{name}"
        if hasattr(settings, "backbone"):
            planned[folder] = _decoder(config, f"pretrain.{name}", settings, dataset, notes)
        else:
            text = _text(config, f"pretrain.{name}", settings, dataset, notes)
            with torch.device("meta"):
                model = load_object(KINDS[settings.kind].build)(settings, ModelParts(num_items, text))
            planned[folder] = Planned(model, settings.train, settings.supervision)
    if not config.trains_student:
        return planned
    if not config.trains_teacher:
        notes.append(f"distill.teacher is {config.distill.teacher}: sizes of teacher and student are not read")
        return planned
    finetune = config.finetune
    if finetune.backbone is None:
        notes.append("finetune.backbone is null: the sizes of the student are not estimated")
        return planned
    source = planned.get(f"pretrain/{finetune.item_vectors}")
    width = None if source is None else int(source.model.item_vectors().shape[1])
    teacher = planned["finetune"] = _decoder(config, "finetune", finetune, dataset, notes, width)
    if finetune.ensemble:
        notes.append(
            f"finetune: parameters are those of the decoder; {', '.join(finetune.ensemble)} may be mixed with it"
        )
    planned["distill"] = _student(config, teacher, dataset, notes)
    return planned


def _text(config: Config, section: str, settings: Any, dataset: Dataset | None, notes: list[str]) -> ItemText | None:
    """Return text vectors of the width that a model reads, without values; None if it would read none."""
    name = getattr(settings, "item_text", None)
    if name is None or getattr(settings, "item_side", None) == "ids":
        return None
    source, num_items = config.item_text[name], dataset.num_items if dataset else 0
    if dataset is not None and not source.reads_file:
        if not any(map(any, dataset.item_columns(source.columns).values())):
            columns = " or ".join("titles" if column == "title" else column for column in source.columns)
            stops = "; it would stop there" if source.required else ""
            notes.append(f"{section}: the items have no {columns}{stops}")
            return None
        notes.append(f"{section}: reading item texts, which happens once for all runs, is not included in the time")
    width = text_width(source, num_items, f"item_text.{name}")
    return ItemText(torch.empty(num_items + 1, width, device="meta"))


def _student(config: Config, teacher: Planned, dataset: Dataset | None, notes: list[str]) -> Planned:
    distill = config.distill
    text = _text(config, "distill.student", distill.student, dataset, notes)
    with torch.device("meta"):
        model = build_student(distill, teacher.model.num_items, teacher.model, None, text)
    weights = distill.weights
    return Planned(
        model,
        distill.train,
        config.finetune.supervision,
        teacher.prompt,
        num_blocks=distill.num_blocks - 1 if weights.multiple else 0,
        ce=weights.ce + weights.lists > 0,
        teacher=teacher.model,
        teacher_passes=distill.train.num_train_epochs if distill.augment else 1,
        kl=weights.kl + weights.stratified_kl > 0,
    )


def _row(planned: Planned, dataset: Dataset | None) -> Row:
    sizes, bf16, settings = sizes_of(planned.model), use_bf16(planned.train.bf16), planned.train
    if dataset is None:
        return Row(sizes)
    max_history_items = planned.model.max_history_items
    batch_size = _batch_size(settings)
    work = training_work(dataset, planned.supervision, max_history_items, batch_size)
    scores = _scores(planned, work, dataset.num_items)
    tokens = tokens_of(work, planned.prompt, batch_size)
    at_once = work.largest + sum(planned.prompt) * min(batch_size, work.samples)
    per_batch = (work.largest if planned.supervision == "every_position" else batch_size) * dataset.num_items
    rates = measure_rates(sizes, dataset.num_items, bf16)
    seconds = settings.num_train_epochs * training_seconds(sizes, tokens, scores, rates)
    seconds += (settings.num_train_epochs + 1) * _validation(sizes, dataset, settings, max_history_items, rates)
    if planned.teacher is not None:
        teacher = sizes_of(planned.teacher)
        seconds_of_pass = reading_seconds(teacher, tokens, 0, measure_rates(teacher, dataset.num_items, bf16=False))
        seconds += planned.teacher_passes * seconds_of_pass
    return Row(
        sizes,
        tokens,
        padded_tokens_of(work, planned.prompt, max_history_items),
        work.samples,
        training_bytes(sizes, at_once, per_batch, settings, bits=planned.bits, bf16=bf16, with_kl=planned.kl),
        seconds,
    )


def _batch_size(settings: TrainConfig) -> int:
    size = settings.per_device_train_batch_size
    return (settings.reference_batch_size or 1) if size == "auto" else size


def _scores(planned: Planned, work: Work, num_items: int) -> int:
    """Number of scores of an epoch; KL computes those of two models, multiple supervision those of further blocks."""
    passes = float(planned.ce) + planned.num_blocks + (2 if planned.kl else 0)
    return int(passes * work.positions * (planned.train.num_sampled or num_items))


def _validation(sizes: Sizes, dataset: Dataset, settings: TrainConfig, max_history_items: int, rates: Rates) -> float:
    work = work_of(dataset.held_out("valid"), max_history_items, False, VALIDATION_BATCH)
    share = min(1.0, (settings.eval_max_users or work.samples) / work.samples)
    return share * reading_seconds(sizes, work.items, work.samples * dataset.num_items, rates)


def _decoder(
    config: Config,
    section: str,
    settings: Any,
    dataset: Dataset | None,
    notes: list[str],
    item_dim: int | None = None,
) -> Planned:
    """Return the decoder of a section, without weights.

    Args:
        config: All settings.
        section: Path of the section in the YAML, for notes.
        settings: The section: `DecoderModel` or `FinetuneConfig`.
        dataset: The data set, if it is prepared.
        notes: List to which notes are added.
        item_dim: Width of the item vectors that the decoder starts from; None: the width in the settings.
    """
    num_items = dataset.num_items if dataset else 0
    architecture, is_reached = _architecture(settings, notes)
    prompt = _prompt(settings, is_reached, notes)
    text = _text(config, section, settings, dataset, notes)
    with torch.device("meta"):
        decoder = random_decoder(architecture)
        width, size = decoder.config.hidden_size, decoder.num_parameters()
        backbone = Backbone(decoder, *(torch.zeros(number, width) for number in prompt))
        vectors = torch.zeros(num_items + 1, item_dim or settings.item_dim)
        train_items = getattr(settings, "item_embeddings", "train") != "fixed"
        model = build_decoder(settings, backbone, vectors, text, section=section, train_items=train_items)
    if settings.backbone != "random":
        notes.append(f"{section}: the whole backbone is read: {size:,} parameters, {_size(4 * size)}")
    return Planned(model, settings.train, settings.supervision, prompt, _bits(settings))


def _bits(settings: DecoderSettings) -> int | None:
    if settings.quantization_config is None:
        return None
    return 4 if settings.quantization_config.get("load_in_4bit") else 8


def _architecture(settings: DecoderSettings, notes: list[str]) -> tuple[dict[str, Any], bool]:
    """Return the architecture in transformers' names, and whether it was read from the backbone itself."""
    if settings.backbone_config is not None:
        return settings.backbone_config, True
    backbone = str(settings.backbone)
    try:
        return read_architecture(backbone), True
    except CheckpointError:
        if backbone not in ARCHITECTURES:
            raise
    notes.append(f"{backbone} cannot be reached: its sizes are taken from a built-in table; `run` would stop here")
    return ARCHITECTURES[backbone], False


def _prompt(settings: DecoderSettings, is_reached: bool, notes: list[str]) -> tuple[int, int]:
    """Return the number of tokens before and after the items, including a start token."""
    if settings.backbone == "random":
        return NO_PROMPT
    template = prompt_of(settings)
    texts = (template.prefix, template.response)
    counts = [(count_tokens(str(settings.backbone), text) if is_reached else None) if text else 0 for text in texts]
    if None in counts:
        notes.append(f"prompt: the tokenizer is not available; tokens estimated as characters / {CHARACTERS_PER_TOKEN}")
    before, after = (
        len(text) // CHARACTERS_PER_TOKEN if count is None else count for text, count in zip(texts, counts, strict=True)
    )
    return before + bool(template.prefix), after


def _table(names: list[str], pending: set[str], rows: dict[str, Row]) -> Table:
    table = Table(title="what `slmrec run` would do")
    table.add_column("step")
    table.add_column("state")
    for title in ("parameters", "trained", "samples", "tokens/epoch", "if padded", "memory", "time"):
        table.add_column(title, justify="right")
    for name in names:
        table.add_row(name, "would run" if name in pending else "done", *_cells(rows.get(name), name in pending))
    return table


def _cells(row: Row | None, is_pending: bool) -> list[str]:
    if row is None:
        return []
    counts = [row.sizes.parameters, row.sizes.trainable, row.samples, row.tokens, row.padded_tokens]
    cells = [f"{count:,}" if count is not None else "?" for count in counts]
    memory = "?" if row.num_bytes is None else f"~{_size(row.num_bytes)}"
    seconds = "?" if row.seconds is None else f"~{_duration(row.seconds)}"
    return [*cells, memory, seconds if is_pending else "-"]


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
