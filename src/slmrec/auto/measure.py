"""Time of each part of a run, from a few real steps of its models on the data and on this machine."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from slmrec import processes
from slmrec.auto.estimate import sizes_of, training_bytes, work_of
from slmrec.config import Config, TrainConfig
from slmrec.config.load import vary
from slmrec.data.dataset import Dataset
from slmrec.models.ensemble import Ensemble
from slmrec.models.model import Model
from slmrec.pipeline.distill import build_student
from slmrec.pipeline.ensemble_weights import MAX_USERS, fit_factor, mixture_ndcg, model_vectors
from slmrec.pipeline.fitting import catalogue_loss, timestamp_unit, training_samples
from slmrec.pipeline.item_text import read_item_text
from slmrec.pipeline.pretrain import untrained
from slmrec.pipeline.stage import Task
from slmrec.pipeline.validation import validation
from slmrec.training.losses import DistillationLoss
from slmrec.training.optimization import use_bf16
from slmrec.training.samples import Step, Steps, TrainingSamples
from slmrec.training.teacher import FrozenTeacher
from slmrec.types import Batch, Encoded

WARM_UP = 2
"""Number of steps before those that are measured."""
MEASURED_S = 1.0
"""Time of the steps that are measured, for each model."""
MEASURED_USERS = 256
SMALLEST_BATCH = 8
CANDIDATES = 6
"""Number of mixtures whose time is measured; fitting the weights tries some `MIXTURES`."""
MIXTURES = 60
STUDENT = "student"


class ModelCost(NamedTuple):
    """Time of a model."""

    epoch: float
    """Seconds of an epoch, without validation."""
    user: float
    """Seconds in which one user is encoded, and the catalogue ranked."""
    memory: dict[int, int] = {}  # noqa: RUF012
    """Peak bytes of a training step, an estimate, by the number of parts into which its batch is divided."""


@dataclass(frozen=True)
class Costs:
    """Time of the parts of a run."""

    models: dict[str, ModelCost] = field(default_factory=dict)
    """Base models by name, and the student."""
    mix: float = 0.0
    """Seconds in which the weights of the teacher are fitted."""
    teacher_outputs: float = 0.0
    """Seconds in which the teacher reads the training samples once."""


class Measurement:
    """Measures configurations of one data set; a model whose settings were measured before is not measured again."""

    def __init__(self, folder: Path) -> None:
        self._dataset, self._folder = Dataset.load(folder), folder
        self._costs: dict[str, tuple[Model, ModelCost]] = {}

    def __call__(self, config: Config) -> Costs:
        """Return the time of the parts of a run."""
        task = Task(config, self._folder.parent, self._folder)
        measured = {name: self._base_model(task, name) for name in config.pretrain}
        costs = {name: cost for name, (_, cost) in measured.items()}
        if not config.trains_student:
            return Costs(costs)
        models = {name: measured[name][0] for name in config.finetune.ensemble}
        mix = self._mix(task, list(models.values()))
        costs[STUDENT], teacher_outputs = self._student(task, Ensemble.of(models, dict.fromkeys(models, 1.0)))
        return Costs(costs, mix, teacher_outputs)

    def _base_model(self, task: Task, name: str) -> tuple[Model, ModelCost]:
        settings = task.config.pretrain[name]
        key = settings.model_copy(update={"seed": None}).model_dump_json(exclude={"train": {"num_train_epochs"}})
        if key not in self._costs:
            model, loss, data = untrained(task.config, name, self._dataset)
            epoch = epoch_seconds(loss, data, settings.train, task.config.seed)
            memory = self._memory(model, data, settings.train)
            self._costs[key] = model, ModelCost(epoch, self._user_seconds(task, model), memory)
        return self._costs[key]

    def _student(self, task: Task, teacher: Model) -> tuple[ModelCost, float]:
        """Return the time of the student, and that in which its teacher reads all samples before the training."""
        config = vary(task.config, {"distill.student.init": "random"}, "measurement")
        settings, dataset = config.distill, self._dataset
        text = read_item_text(config, "distill.student", settings.item_text, dataset)
        unit = timestamp_unit(dataset, settings.student, "distill.student")
        student = build_student(settings, dataset.num_items, teacher, None, text, unit)
        data = training_samples(dataset, config.finetune.supervision, student.max_history_items)
        timed = _TimedTeacher(teacher)
        loss = DistillationLoss(student, timed, settings, catalogue_loss(dataset, settings.train))
        whole = epoch_seconds(loss, data, settings.train, config.seed)
        is_cached = settings.augment is None  # else the teacher reads every batch
        outputs = timed.seconds / timed.samples * len(data) if is_cached else 0.0
        cost = ModelCost(max(whole - outputs, 0.2 * whole), self._user_seconds(task, student))
        return cost._replace(memory=self._memory(student, data, settings.train, with_kl=True)), outputs

    def _user_seconds(self, task: Task, model: Model) -> float:
        measured_on = validation(task, self._dataset, MEASURED_USERS)
        model.to(processes.device())
        measured_on.metrics(model)
        start = time.perf_counter()
        measured_on.metrics(model)
        return (time.perf_counter() - start) / len(measured_on.samples)

    def _mix(self, task: Task, models: list[Model]) -> float:
        start, users = time.perf_counter(), validation(task, self._dataset, MEASURED_USERS)
        vectors = [model_vectors(model, users) for model in models]
        fit_factor(vectors, [1 / len(models)] * len(models), users)
        once = time.perf_counter()
        mixture_ndcg(vectors, torch.full((CANDIDATES, len(models)), 1 / len(models)), users)
        seconds = once - start + MIXTURES / CANDIDATES * (time.perf_counter() - once)
        return seconds * min(MAX_USERS, len(self._dataset.held_out("valid"))) / len(users.samples)

    def _memory(
        self, model: Model, data: TrainingSamples, settings: TrainConfig, with_kl: bool = False
    ) -> dict[int, int]:
        """Return the peak bytes of a training step by the number of parts of its batch."""
        batch, bf16, sizes = int(settings.per_device_train_batch_size), use_bf16(settings.bf16), sizes_of(model)
        memory, parts = {}, 1
        while parts == 1 or batch // parts >= SMALLEST_BATCH:
            work = work_of(data.samples, data.max_history_items, data.every_position, batch // parts)
            positions = work.largest if data.every_position else batch // parts
            scores = positions * (settings.num_sampled or self._dataset.num_items)
            memory[parts] = training_bytes(sizes, work.largest, scores, settings, bits=None, bf16=bf16, with_kl=with_kl)
            parts *= 2
        return memory


class _TimedTeacher(FrozenTeacher):
    """A frozen teacher that measures its own time, after the warm-up."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.seconds, self.samples, self._calls = 0.0, 0, 0

    def outputs(self, batch: Batch, num_blocks: int) -> Encoded:
        start = time.perf_counter()
        encoded = super().outputs(batch, num_blocks)
        _synchronize()
        self._calls += 1
        if self._calls > WARM_UP:
            self.seconds += time.perf_counter() - start
            self.samples += len(batch.histories.items)
        return encoded


def epoch_seconds(loss: nn.Module, data: TrainingSamples, settings: TrainConfig, seed: int) -> float:
    """Return the time of an epoch without validation, from a few steps, the first of which are not counted."""
    device, bf16 = processes.device(), use_bf16(settings.bf16)
    loss.to(device).train()
    parameters = [value for value in loss.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    steps, start, num_samples = Steps(data, settings, seed), 0.0, 0
    for number, step in enumerate(_steps(steps), start=1):
        for rows in step.micro_batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                terms = loss(data.collate(rows).to(device))
            terms.total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _synchronize()
        if number == WARM_UP:
            start = time.perf_counter()
        elif number > WARM_UP:
            num_samples += sum(map(len, step.micro_batches))
            if time.perf_counter() - start > MEASURED_S:
                break
    return (time.perf_counter() - start) / num_samples * len(data)


def _steps(steps: Steps) -> Iterator[Step]:
    """Yield the steps of one epoch after the other, without end."""
    return chain.from_iterable(steps.of_epoch(epoch, steps.batch_size) for epoch in count())


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
