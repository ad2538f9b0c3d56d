"""Study of cold items: how well models rank items that left training and histories, and of which only the text stays.

All events of some items are taken from the log, and the models of the run are trained anew on the rest. The users whose
held-out item is one of these are then ranked by the new models, by the models that were trained on everything, and by
the new models with the mean of all item vectors in place of the withheld ones (the floor).
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from slmrec.config import BASELINES, Config
from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.errors import ConfigError, DataError
from slmrec.evaluation.rank import EncoderScorer, evaluate_scorer
from slmrec.files import write_json
from slmrec.folders import read_record
from slmrec.models.folder import load_recommender
from slmrec.models.item_tables import mean_of_others
from slmrec.pipeline.evaluate import model_folders
from slmrec.pipeline.stage import Task, run_step
from slmrec.pipeline.table import Stage, Step, stage_named, steps
from slmrec.studies.cold_report import FLOOR, PROTOCOL, TRAINED, WITHHELD, Content, report
from slmrec.studies.withheld import (
    build_with_rows,
    origin_of_rows,
    withheld_items,
    withhold_items,
    write_target_users,
)

_LOG = logging.getLogger(__name__)
FOLDER = "cold"
RUN = f"{FOLDER}/run"
"""Folder of the run without the withheld items."""
RunStep = Callable[..., Path]
"""Function that executes a step, with the parameters of `run_step`."""


def cold(
    config: Config,
    output: Path,
    force: bool = False,
    split: Literal["valid", "test"] = "valid",
    run: RunStep = run_step,
    *,
    shown: bool = True,
) -> Content:
    """Train the models of a run without some items, rank these items, and write `OUT/cold/cold.json` and `cold.md`.

    The run itself is completed first, as far as needed. Finished steps are skipped. Without `prepare.input`, the data
    set of the run is used as it is.

    Args:
        config: The recipe, with its section `cold`.
        output: Folder of the run.
        force: Redo finished steps.
        split: Split whose held-out items are ranked.
        run: Function that executes the steps of the pipeline.
        shown: Print the table and the sentences.

    Returns:
        The content of `cold.json`.

    Raises:
        ConfigError: The teacher is not trained in the run, or too few items have enough training events.
        DataError: No held-out item of the split is withheld.
    """
    if not config.trains_teacher:
        raise ConfigError(
            f"distill.teacher is {config.distill.teacher!r}, which was trained with the items that are to be withheld; "
            "leave distill.teacher out, so that the teacher is trained in the run"
        )
    planned, altered = training_steps(config), output / RUN
    for step in planned:
        if not (step.stage.name == "prepare" and uses_prepared(config, output)):
            run(step, config, output, force)
    run(_withholding(output), config, altered, force, build=partial(withhold_items, source=output / "prepare"))
    for step in planned[1:]:
        run(step, config, altered, force, build=partial(build_with_rows, step=step))
    folder = output / FOLDER / split
    build = partial(rank_cold_items, split=split)
    run_step(_ranking(config, altered), config, output, force, target=folder, build=build)
    return report(output / FOLDER, folder, config, split, shown=shown)


def training_steps(config: Config) -> list[Step]:
    """Return the steps that make the models of `evaluate.models`, in order; `prepare` is the first."""
    models = config.evaluate.models
    omitted = {"evaluate"} if models is None or "student" in models else {"evaluate", "distill"}
    return [step for step in steps(config) if step.stage.name not in omitted]


def uses_prepared(config: Config, output: Path) -> bool:
    """Return whether the data set of a run is taken as it is, since the settings name no log."""
    return config.prepare.input is None and read_record(output / "prepare").get("done", False)


def _withholding(output: Path) -> Step:
    """Return the step `prepare` of the run without the withheld items."""
    sources = tuple(str(output / "prepare" / name) for name in ("dataset.json", "items.parquet"))
    stage = replace(
        stage_named("prepare"),
        help="withhold items from a data set",
        sections=lambda config: ("cold",),
        files=lambda config, section: sources,
    )
    return Step(stage)


def _ranking(config: Config, altered: Path) -> Step:
    folders = tuple(str(folder) for name, folder in model_folders(config, altered).items() if name not in BASELINES)
    read = tuple(step.folder for step in training_steps(config))
    stage = Stage(
        FOLDER,
        "rank withheld items",
        reads=lambda config: read,
        sections=lambda config: ("evaluate", "distill"),
        files=lambda config, section: folders,
    )
    return Step(stage)


def rank_cold_items(task: Task, split: Literal["valid", "test"]) -> dict[str, float]:
    """Rank the withheld targets by the models of both runs; write the ranks, and how each model knows these items."""
    prepared, altered = task.output / "prepare", task.output / RUN
    dataset, items = Dataset.load(prepared), withheld_items(altered / "prepare")
    tables, origins = [], {}
    with TemporaryDirectory(dir=task.folder, prefix=".users") as folder:
        num_targets = write_target_users(prepared, Path(folder), split, items)
        if not num_targets:
            raise DataError(
                f"none of the held-out items of the {split} split is among the {len(items)} withheld items; raise "
                f"cold.share ({task.config.cold.share:g})"
            )
        users = Dataset.load(Path(folder)).held_out(split)
        everyone = dataset.held_out(split)
        same_users = everyone.take(np.flatnonzero(np.isin(everyone.users(), users.users())))
        user_ids = dataset.user_ids.take(pa.array(users.users()))
        withheld, folders = Dataset.load(altered / "prepare"), model_folders(task.config, altered)
        for name, whole in model_folders(task.config, task.output).items():
            if name in BASELINES:
                continue
            _LOG.info("cold: %s ranks the withheld items of %d users", name, len(users))
            model = _open(folders[name])
            origins[name] = origin_of_rows(name, model, task.config, withheld)
            scorers = {
                TRAINED: (EncoderScorer(_open(whole)), same_users),
                WITHHELD: (EncoderScorer(model), users),
                FLOOR: (EncoderScorer(model, partial(_with_mean, items=items)), users),
            }
            for row, (scorer, samples) in scorers.items():
                ranks = _ranks(scorer, samples, task.config)
                columns = {"user_id": user_ids, "model": [name] * len(ranks), "items": [row] * len(ranks)}
                tables.append(pa.table({**columns, "rank": ranks}))
    pq.write_table(pa.concat_tables(tables), task.folder / "per_user.parquet")
    facts: dict[str, Any] = {
        "num_items": dataset.num_items,
        "num_withheld_items": len(items),
        "num_users_without_history": num_targets - len(users),
        "origin": origins,
    }
    write_json(task.folder / "facts.json", facts)
    return {"num_users": len(users)}


def _open(folder: Path) -> Any:
    return load_recommender(folder)[0].to("cuda" if torch.cuda.is_available() else "cpu")


def _with_mean(vectors: Tensor, items: Ints) -> Tensor:
    """Return item vectors (V+1, D) with the mean of all other items in place of some items."""
    replaced = vectors.clone()
    replaced[torch.from_numpy(items).to(vectors.device)] = mean_of_others(vectors, items)
    return replaced


def _ranks(scorer: EncoderScorer, samples: Samples, config: Config) -> Ints:
    size = config.evaluate.batch_size
    return evaluate_scorer(scorer, samples, batch_size=size, protocols=(PROTOCOL,))[PROTOCOL]
