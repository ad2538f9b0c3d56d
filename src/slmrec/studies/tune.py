"""Search for the settings of one stage: trials that are validated after every epoch, pruned, and resumed."""

import hashlib
import json
import logging
import shutil
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

from slmrec.callbacks import Callback, calling
from slmrec.config import Config
from slmrec.config.load import vary
from slmrec.errors import CheckpointError, ConfigError, TrainingError
from slmrec.files import write_atomically
from slmrec.pipeline.stage import dump, run_step
from slmrec.pipeline.table import Step, stage_named, steps
from slmrec.studies.ablate import link_step
from slmrec.studies.search_space import Range, search_space
from slmrec.training.trainer import MONITORED as METRIC

_LOG = logging.getLogger(__name__)
MONITORED = f"valid/{METRIC}"
FOLDER = "tune"
TUNABLE = ("pretrain", "finetune", "distill")
"""Stages whose settings can be searched."""
_UNPRUNED_TRIALS = 3
"""Number of first trials that are trained to the end, whatever they reach."""


def tune(
    config: Config,
    output: Path,
    stage: str,
    num_trials: int,
    model: str | None = None,
    time_budget: float | None = None,
    force: bool = False,
) -> Path:
    """Search for the settings of a stage that are best on validation, under the primary protocol.

    The steps before the stage are those of a run in `output`; finished ones are skipped. The first trial takes the
    settings of the recipe. A trial that lags behind the median of the earlier ones after some epochs is pruned. The
    search is in `output/tune`; the same call again continues it, an interrupted trial too.

    Args:
        config: The recipe.
        output: Folder of the run.
        stage: `pretrain`, `finetune` or `distill`.
        num_trials: Number of finished trials at which the search ends, earlier calls included.
        model: Name of the base model, for `pretrain`; it may be omitted where there is one.
        time_budget: Seconds after which no trial continues; the first trial of a search is always finished.
        force: Begin the search anew, and redo the steps before.

    Returns:
        The recipe with the best settings, `output/tune/best.yaml`.

    Raises:
        ConfigError: The stage trains nothing, or Optuna is not installed.
        CheckpointError: The folder holds a search with other settings.
        TrainingError: The loss of every trial is not finite.
    """
    started = time.monotonic()
    optuna = _optuna()
    step = _step_of(config, stage, model)
    space = search_space(config, stage, step.model)
    before = list(takewhile(lambda one: one.folder != step.folder, steps(config)))
    needed = [one for one in before if one.folder in step.stage.reads(config) or one.folder == "prepare"]
    for one in _closure(needed, before, config):
        run_step(one, config, output, force)
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    study = _study(optuna, folder, step, config, force)
    deadline = None if time_budget is None else started + time_budget
    search = _Search(optuna, study, config, output, step, space, needed, deadline)
    while search.num_finished() < num_trials and search.has_time():
        search.run_trial()
    return search.write_best(num_trials)


class _Search:
    """Trials of a study, one after the other."""

    def __init__(
        self,
        optuna: Any,
        study: Any,
        config: Config,
        output: Path,
        step: Step,
        space: tuple[Range, ...],
        needed: list[Step],
        deadline: float | None,
    ) -> None:
        self.optuna, self.study, self.config, self.output = optuna, study, config, output
        self.step, self.space, self.needed, self.deadline = step, space, needed, deadline
        state = optuna.trial.TrialState
        self.finished_states = (state.COMPLETE, state.PRUNED)
        if not study.trials:
            study.enqueue_trial({one.key: one.value for one in space})
        for trial in study.get_trials(states=(state.RUNNING,)):  # a call that was killed
            study.tell(trial.number, state=state.FAIL)
        retried = {trial.user_attrs.get("retry_of") for trial in study.trials}
        for trial in study.get_trials(states=(state.FAIL,)):
            if trial.number not in retried and trial.params:
                study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})

    def num_finished(self) -> int:
        return len(self.study.get_trials(states=self.finished_states))

    def has_time(self) -> bool:
        return self.deadline is None or time.monotonic() < self.deadline or not self._completed()

    def run_trial(self) -> None:
        """Train with the settings that the sampler proposes, and report the result."""
        trial = self.study.ask()
        state = self.optuna.trial.TrialState
        chosen = {one.key: _suggested(trial, one) for one in self.space}
        place = self.output / FOLDER / "trials" / _name_of(chosen)
        value: float | None = None
        try:
            changed = vary(self.config, chosen, f"tune: trial {trial.number}")
            for one in self.needed:
                link_step(place, self.output, one)
            pruning = _Pruning(trial, self)  # type: ignore[abstract]  # the other methods of a callback do nothing
            with calling([pruning]):
                run_step(self.step, changed, place, cache=self.output / "teacher_outputs")
            metrics = json.loads((place / self.step.folder / "metrics.json").read_text(encoding="utf-8"))
            value = float(metrics[MONITORED])
            self.study.tell(trial, value)
        except (_PrunedError, TrainingError) as error:
            _LOG.debug("tune: trial %d is pruned: %s", trial.number, error)
            self.study.tell(trial, state=state.PRUNED)
        except BaseException:
            self.study.tell(trial, state=state.FAIL)
            raise
        self._keep_the_best(place)
        shown = ", ".join(f"{key.rpartition('.')[2]} {value:.4g}" for key, value in chosen.items())
        reached = "pruned" if value is None else f"{MONITORED} {value:.4f}"
        _LOG.info("tune: trial %d: %s (%s)", trial.number, reached, shown)

    def write_best(self, num_trials: int) -> Path:
        """Write the recipe with the settings of the best trial, and log what it reached."""
        if not self._completed():
            raise TrainingError(
                f"none of {self.num_finished()} trials was trained to the end; lower {self.space[0].key} of the recipe"
            )
        best, first = self.study.best_trial, self._completed()[0]
        path = self.output / FOLDER / "best.yaml"
        text = dump(vary(self.config, best.params, "tune"))
        with write_atomically(path) as partial:
            partial.write_text(text, encoding="utf-8")
        finished, pruned = self.num_finished(), self.num_finished() - len(self._completed())
        if finished < num_trials:
            _LOG.warning(
                "tune: the time was over after %d of %d trials; the same command continues", finished, num_trials
            )
        _LOG.info(
            "tune: best of %d trials (%d pruned): %s %.4f, the first one has %.4f; validation chose it, so "
            "the gain on other items is smaller",
            finished,
            pruned,
            MONITORED,
            best.value,
            first.value,
        )
        return path

    def _completed(self) -> list[Any]:
        found: list[Any] = self.study.get_trials(states=self.finished_states[:1])
        return found

    def _keep_the_best(self, place: Path) -> None:
        """Remove the folder of a trial, unless it is the best; then remove that of the best one before it."""
        trials = self.output / FOLDER / "trials"
        best = _name_of(self.study.best_trial.params) if self._completed() else place.name
        for folder in trials.iterdir():
            if folder.name != best:
                shutil.rmtree(folder)


class _PrunedError(Exception):
    """A trial is stopped."""


class _Pruning(Callback):
    """Reports every epoch, and stops trials that are behind, and all when the time is over."""

    def __init__(self, trial: Any, search: _Search) -> None:
        self.trial, self.search = trial, search

    def on_epoch_end(self, stage: str, epoch: int, metrics: dict[str, float]) -> None:
        self.trial.report(metrics[MONITORED], epoch)
        if self.trial.should_prune():
            raise _PrunedError(f"{MONITORED} {metrics[MONITORED]:.4f} after epoch {epoch} is below the median")
        if not self.search.has_time():
            raise _PrunedError("the time is over")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("tune needs optuna, not installed here; run: pip install 'slmrec[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _step_of(config: Config, stage: str, model: str | None) -> Step:
    """Return the step whose settings are searched."""
    if stage != "pretrain" and model is not None:
        raise ConfigError(f"--model is {model!r}, but {stage} trains one model; it is for --stage pretrain")
    if stage == "finetune" and config.finetune.backbone is None:
        raise ConfigError(
            "finetune.backbone is null: this teacher is a weighted sum, and nothing of it is trained; tune --stage "
            "pretrain, or distill"
        )
    if not stage_named(stage).is_needed(config):
        raise ConfigError(f"--stage is {stage}, which this recipe does not train: distill.teacher is null")
    found = [one for one in stage_named(stage).steps(config) if stage != "pretrain" or one.model in config.pretrain]
    if model is None and len(found) > 1:
        names = ", ".join(str(one.model) for one in found)
        raise ConfigError(f"--stage pretrain trains {names}; choose one with --model NAME")
    chosen = [one for one in found if model in (None, one.model)]
    if not chosen:
        names = ", ".join(str(one.model) for one in found)
        raise ConfigError(f"--model is {model!r}, which pretrain does not train; choose from {names}")
    return chosen[0]


def _closure(needed: list[Step], before: list[Step], config: Config) -> list[Step]:
    """Return the steps that some steps need, and these, in order."""
    folders = {one.folder for one in needed}
    for one in reversed(before):
        if one.folder in folders:
            folders |= set(one.stage.reads(config))
    return [one for one in before if one.folder in folders]


def _study(optuna: Any, folder: Path, step: Step, config: Config, force: bool) -> Any:
    """Open the search in a folder, or begin one."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
    storage = optuna.storages.JournalStorage(backend)
    names = [study.study_name for study in optuna.get_all_study_summaries(storage)]
    if force and step.folder in names:
        optuna.delete_study(study_name=step.folder, storage=storage)
    study = optuna.create_study(
        study_name=step.folder,
        storage=storage,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED_TRIALS, n_warmup_steps=1),
    )
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))
    settings = hashlib.sha256(dump(config).encode()).hexdigest()
    if study.user_attrs.get("settings", settings) != settings:
        raise CheckpointError(
            f"{folder} holds a search for {step.folder} with other settings; give the settings of that search, another "
            "--output, or --force, which begins it anew"
        )
    study.set_user_attr("settings", settings)
    return study


def _suggested(trial: Any, one: Range) -> float:
    if one.is_integer:
        return int(trial.suggest_int(one.key, int(one.low), int(one.high)))
    return float(trial.suggest_float(one.key, one.low, one.high, log=one.log))


def _name_of(chosen: dict[str, Any]) -> str:
    """Return the folder of a trial, which is that of the same settings again."""
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
