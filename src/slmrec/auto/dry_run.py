"""What `run` would do, with sizes, memory and time of each stage; nothing is written, no weights are read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

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
from slmrec.config import Config, DecoderConfig, DistillConfig, PretrainConfig, TitleSettings, TrainConfig
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError
from slmrec.models.backbone import Backbone, choose_layers, count_tokens, random_decoder, read_architecture
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.loader import Model
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.models.titles import Titles
from slmrec.pipeline.decoder import assemble, prompt_of
from slmrec.pipeline.distill import begin_student
from slmrec.pipeline.stage import Stage, is_done, read_record
from slmrec.training.trainer import use_bf16

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
"""Of the recipes' backbones, as their publishers give them: where the hub is out of reach, a plan needs no more."""
CHARACTERS_PER_TOKEN = 4
VALIDATION_BATCH = 256


class Row(NamedTuple):
    """What is known of a training stage; None: not without data."""

    sizes: Sizes
    tokens: int | None = None
    padded: int | None = None
    samples: int | None = None
    num_bytes: int | None = None
    seconds: float | None = None


class Planned(NamedTuple):
    """A decoder that would be built."""

    model: DecoderRecommender
    """Without weights."""
    prompt: tuple[int, int]
    """Tokens before and after the items."""
    whole: int
    """Parameters of its backbone, with the layers that are dropped."""


def pending_stages(stages: Iterable[Stage], config: Config, output: Path, force: bool) -> list[str]:
    """The stages that would run, in order: those that are not done, and all that read one of them."""
    pending: list[str] = []
    for stage in stages:
        if force or set(stage.needs(config)) & set(pending) or not is_done(stage, config, output):
            pending.append(stage.name)
    return pending


def show_plan(stages: list[Stage], config: Config, output: Path, force: bool) -> None:
    """Prints what would be done, and what it would take."""
    pending = pending_stages(stages, config, output, force)
    folder = output / "prepare"
    dataset = Dataset.load(folder) if read_record(folder).get("done") else None
    notes: list[str] = []
    rows = _rows(config, [stage.name for stage in stages], dataset, notes)
    console = Console(width=max(Console().width, 118))
    console.print(_table([stage.name for stage in stages], pending, rows))
    for note in [_data_line(dataset, "prepare" in pending, folder), *notes]:
        print(note, flush=True)
    print(
        "nothing was written. Memory and time are estimates (docs/training.md: how far off they were): time from this "
        "machine's rates, measured for a second, for all epochs"
    )


def _data_line(dataset: Dataset | None, anew: bool, folder: Path) -> str:
    if dataset is None:
        return "data: not prepared: run `slmrec prepare` first for figures of the data; parameters are without items"
    events = int(dataset.offsets[-1])
    figures = f"{dataset.num_users:,} users, {dataset.num_items:,} items, {events:,} events"
    return f"data: {figures} (measured, {folder}){'; these are of before, prepare would run anew' if anew else ''}"


def _rows(config: Config, names: list[str], dataset: Dataset | None, notes: list[str]) -> dict[str, Row]:
    rows, num_items = {}, dataset.num_items if dataset else 0
    if not config.pretrain.item_vectors:
        rows["pretrain"] = _row(config, "pretrain", _sasrec(config, num_items), dataset, (0, 0))
    if config.companion is not None:
        companion = _decoder(config, "companion", dataset, notes)
        rows["companion"] = _row(config, "companion", companion.model, dataset, companion.prompt)
    if "finetune" not in names:
        notes.append(f"distill.teacher is {config.distill.teacher}: its sizes are not read, nor those of its student")
        return rows
    teacher, prompt, whole = _decoder(config, "finetune", dataset, notes)
    rows["finetune"] = _row(config, "finetune", teacher, dataset, prompt)
    if config.finetune.ensemble:
        notes.append(f"finetune: its parameters are the decoder's; {', '.join(config.finetune.ensemble)} may join them")
    rows["distill"] = _row(config, "distill", _student(config.distill, teacher), dataset, prompt, teacher)
    notes.append(f"loading the backbone whole: {whole:,} parameters, {_size(4 * whole)} of this machine's memory")
    return rows


def _titles(name: str, wanted: TitleSettings | None, dataset: Dataset | None, notes: list[str]) -> TitleSettings | None:
    """What is done with titles, given what the data have."""
    if wanted is None or dataset is None:
        return wanted
    if dataset.titles is not None:
        notes.append(f"{name}: reading the titles, once for all runs, is not in its time")
        return wanted
    notes.append(f"{name}: the items have no titles" + ("; it would stop there" if wanted.required else ""))
    return None


def _row(
    config: Config,
    name: str,
    model: Model,
    dataset: Dataset | None,
    prompt: tuple[int, int],
    teacher: DecoderRecommender | None = None,
) -> Row:
    section = _samples_of(config, name)
    settings: TrainConfig = getattr(config, name).train
    sizes, bf16 = sizes_of(model), use_bf16(settings.bf16)
    if dataset is None:
        return Row(sizes)
    batch_size = _batch_size(settings)
    work = training_work(dataset, section.supervision, section.max_history_items, batch_size)
    scores = _scores(config, name, work, dataset.num_items)
    tokens = tokens_of(work, prompt, batch_size)
    bits = _bits(section) if isinstance(section, DecoderConfig) and name != "distill" else None
    at_once = work.largest + sum(prompt) * min(batch_size, work.samples)
    per_batch = (work.largest if section.supervision == "every_position" else batch_size) * dataset.num_items
    rates = measure_rates(sizes, dataset.num_items, bf16)
    seconds = settings.num_train_epochs * training_seconds(sizes, tokens, scores, rates)
    seconds += (settings.num_train_epochs + 1) * _validation(sizes, dataset, settings, section.max_history_items, rates)
    if teacher is not None:
        taught = sizes_of(teacher)
        seconds += reading_seconds(taught, tokens, 0, measure_rates(taught, dataset.num_items, bf16=False))
    return Row(
        sizes,
        tokens,
        padded_tokens_of(work, prompt, section.max_history_items),
        work.samples,
        training_bytes(sizes, at_once, per_batch, settings, bits=bits, bf16=bf16, with_kl=_uses_kl(config, name)),
        seconds,
    )


def _samples_of(config: Config, name: str) -> PretrainConfig | DecoderConfig:
    """The section that says what a stage trains on; the student takes the teacher's samples."""
    section: PretrainConfig | DecoderConfig = getattr(config, "finetune" if name == "distill" else name)
    return section


def _uses_kl(config: Config, name: str) -> bool:
    return name == "distill" and config.distill.weights.kl > 0


def _batch_size(settings: TrainConfig) -> int:
    size = settings.per_device_train_batch_size
    return (settings.reference_batch_size or 1) if size == "auto" else size


def _scores(config: Config, name: str, work: Work, num_items: int) -> int:
    """Of an epoch; KL computes those of two models, multiple supervision those of each block but the last."""
    settings: TrainConfig = getattr(config, name).train
    weights = config.distill.weights
    passes = 1.0
    if name == "distill":
        blocks = config.distill.num_blocks - 1 if weights.multiple else 0
        passes = float(weights.ce > 0) + blocks + (2 if weights.kl else 0)
    return int(passes * work.read_outs * (settings.num_sampled or num_items))


def _validation(sizes: Sizes, dataset: Dataset, settings: TrainConfig, max_history_items: int, rates: Rates) -> float:
    work = work_of(dataset.held_out("valid"), max_history_items, False, VALIDATION_BATCH)
    share = min(1.0, (settings.eval_max_users or work.samples) / work.samples)
    return share * reading_seconds(sizes, work.items, work.samples * dataset.num_items, rates)


def _bits(settings: DecoderConfig) -> int | None:
    if settings.quantization_config is None:
        return None
    return 4 if settings.quantization_config.get("load_in_4bit") else 8


def _sasrec(config: Config, num_items: int) -> SasRec:
    settings = config.pretrain
    with torch.device("meta"):
        return SasRec(
            SasRecConfig(
                num_items=num_items,
                hidden_size=settings.hidden_size,
                num_hidden_layers=settings.num_hidden_layers,
                num_attention_heads=settings.num_attention_heads,
                max_history_items=settings.max_history_items,
            )
        )


def _decoder(config: Config, name: str, dataset: Dataset | None, notes: list[str]) -> Planned:
    """The decoder of a section, without weights."""
    settings: DecoderConfig = getattr(config, name)
    num_items = dataset.num_items if dataset else 0
    architecture, reached = _architecture(settings, notes)
    prompt = _prompt(settings, reached, notes)
    wanted = _titles(name, settings.titles, dataset, notes)
    with torch.device("meta"):
        decoder = random_decoder(architecture)
        width, whole = decoder.config.hidden_size, decoder.num_parameters()
        backbone = Backbone(decoder, *(torch.zeros(number, width) for number in prompt))
        vectors = torch.zeros(num_items + 1, config.pretrain.hidden_size)
        titles = None
        if wanted is not None:
            titles = Titles(torch.zeros(num_items + 1, wanted.num_components), wanted.width, wanted.side)
        return Planned(assemble(name, settings, backbone, vectors, titles), prompt, whole)


def _architecture(settings: DecoderConfig, notes: list[str]) -> tuple[dict[str, Any], bool]:
    """In transformers' names, and whether it was read from the backbone itself."""
    if settings.backbone_config is not None:
        return settings.backbone_config, True
    try:
        return read_architecture(settings.backbone), True
    except CheckpointError:
        if settings.backbone not in ARCHITECTURES:
            raise
    notes.append(f"{settings.backbone} cannot be reached: its sizes are from slmrec's own table; `run` would stop here")
    return ARCHITECTURES[settings.backbone], False


def _student(settings: DistillConfig, teacher: DecoderRecommender) -> DecoderRecommender:
    listed = None if isinstance(settings.layers, str) else settings.layers  # layers chosen by name are as many
    with torch.device("meta"):
        fresh = settings.init == "fresh"
        layers = () if fresh else choose_layers(teacher.num_layers, settings.num_layers, 1, listed, "distill")
        return begin_student(settings, teacher, layers)


def _prompt(settings: DecoderConfig, reached: bool, notes: list[str]) -> tuple[int, int]:
    """Tokens before and after the items; a start token is counted."""
    if settings.backbone == "random":
        return 0, 0
    template = prompt_of(settings)
    texts = (template.prefix, template.response)
    asked = (count_tokens(settings.backbone, text) if reached else None for text in texts if text)
    counts = [next(asked) if text else 0 for text in texts]
    if None in counts:
        notes.append(f"prompt: the tokenizer cannot be had; tokens taken as characters / {CHARACTERS_PER_TOKEN}")
    before, after = (
        len(text) // CHARACTERS_PER_TOKEN if count is None else count for text, count in zip(texts, counts, strict=True)
    )
    return before + bool(template.prefix), after


def _table(names: list[str], pending: list[str], rows: dict[str, Row]) -> Table:
    table = Table(title="what `slmrec run` would do")
    table.add_column("stage")
    table.add_column("state")
    for title in ("parameters", "trained", "samples", "tokens/epoch", "if padded", "memory", "time"):
        table.add_column(title, justify="right")
    for name in names:
        table.add_row(name, "would run" if name in pending else "done", *_cells(rows.get(name), name in pending))
    return table


def _cells(row: Row | None, pending: bool) -> list[str]:
    if row is None:
        return []
    counts = [row.sizes.parameters, row.sizes.trainable, row.samples, row.tokens, row.padded]
    known = [f"{count:,}" if count is not None else "?" for count in counts]
    memory = "?" if row.num_bytes is None else f"~{_size(row.num_bytes)}"
    taken = "?" if row.seconds is None else f"~{_duration(row.seconds)}"
    return [*known, memory, taken if pending else "-"]


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
