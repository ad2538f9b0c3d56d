"""`update`: a run learns from newer events, and its new model is shipped if it is no worse on the newest of them."""

import logging
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slmrec.auto.amounts import Amount, seconds_of
from slmrec.auto.hardware import use_free_threads
from slmrec.config import BASELINES, Config, PrepareConfig
from slmrec.config.load import load_config
from slmrec.data.dataset import Dataset
from slmrec.data.histories import read_facts
from slmrec.errors import CheckpointError, ConfigError, DataError
from slmrec.evaluation.candidates import is_sampled
from slmrec.evaluation.metrics import user_metrics
from slmrec.files import read_json, write_json, write_text
from slmrec.folders import RULES, disk_errors_reported, link_in_place
from slmrec.locks import run_locked
from slmrec.models.folder import load_recommender
from slmrec.pipeline.decision import METRIC, Difference
from slmrec.pipeline.evaluate import model_folders
from slmrec.pipeline.prepare import as_file
from slmrec.pipeline.stage import Task, dump, run_step
from slmrec.pipeline.table import Step, steps
from slmrec.pipeline.verdict import BEST, VERDICT, Verdict
from slmrec.processes import refuse_several
from slmrec.storage.cache import local, localized, named, uris_named
from slmrec.storage.runs import opened_run, upload
from slmrec.updates.comparison import Comparison, compare, cuts_of
from slmrec.updates.merge import Changes, merge, write_changes
from slmrec.updates.new_log import items_of_first_table, read_items, read_log
from slmrec.updates.versions import (
    RECORD,
    UPDATES,
    Version,
    best_version,
    config_of,
    finish_move,
    move_best,
    versions,
)
from slmrec.updates.warm_start import carry_over, models_of

_LOG = logging.getLogger(__name__)
TIME_BUDGET = "2m"
"""Time that an update may take unless another one is given."""
TRAINING_SHARE = 0.6
"""Share of the time that is left after the data are read in which the model is trained; evaluation takes the rest."""
_TIMING_USERS = 200


class _Base(NamedTuple):
    """State of a run before an update."""

    config: Config
    """Settings of the run."""
    newest: Version
    """Version whose data the new events join."""
    best: Version
    """Version whose models learn further."""
    number: int
    """Number of the update."""


@uris_named()
def update(
    output: Path | str, events: Any, items: Any = None, *, time_budget: Amount | None = None
) -> dict[str, Any] | None:
    """Train the shipped model of a run further on newer events, and ship the result if it is no worse.

    The events of a log join those of the run; events that the run knows are not counted again. New items and users get
    numbers after the known ones. The models of the run are written to `updates/0001` (and so on) in the output folder,
    laid out as a run, and the shipped one learns from all events but the newest of some users, on which it is then
    compared with the model before. `best` leads to it if the upper end of the 95 % interval of the difference is above
    zero.

    Args:
        output: Folder of a finished run, or its URI.
        events: Path, URI or table of events.
        items: Path, URI or table of items; those that the run lacks join its catalogue.
        time_budget: Time that the update may take, in seconds or as text such as `2m`, which is the default.

    Returns:
        The content of `update.json`; None if nothing is new, and nothing was changed.

    Raises:
        CheckpointError: The folder holds no finished run with a model to ship, or another process writes into it.
        ConfigError: The shipped model belongs to another run.
        DataError: The log or the table cannot be read, or does not fit the run.
    """
    started = time.monotonic()
    refuse_several("slmrec update")
    budget = seconds_of(time_budget if time_budget is not None else TIME_BUDGET)
    assert budget is not None
    use_free_threads()
    with opened_run(output) as folder, TemporaryDirectory(prefix="slmrec-") as name:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; give the --output of a `slmrec run`")
        with disk_errors_reported(folder), run_locked(folder):
            base = _base(folder)
            try:
                changes = _changes(base, folder, Path(name), events, items)
            except DataError as error:
                raise DataError(named(str(error)).replace(f"{name}/", "the table given as ")) from None
            if changes.is_empty:
                _LOG.info("update: nothing is new in %s%s", _name_of(events), _waiting(changes))
                return None
            return _update(base, changes, folder, started, budget)


def _name_of(events: Any) -> str:
    return str(events) if isinstance(events, str | Path) else "the table"


def _waiting(changes: Changes) -> str:
    """Return what is said of events that are left out when nothing else is new."""
    if not len(changes.waiting):
        return ""
    return (
        f"; {len(changes.waiting):,} events of users or items that are too rare (prepare.min_user_events, "
        "prepare.min_item_events) are left out; give them again with later events"
    )


def _base(output: Path) -> _Base:
    known = versions(output)
    if len(known) > 1:
        finish_move(output, known)
        if known[1].record.get("first_data") != Dataset.load(output / "prepare").fingerprint:
            raise CheckpointError(
                f"{output / UPDATES}: was made from other data than {output / 'prepare'}, which was made again; remove "
                f"{output / UPDATES}, and update again"
            )
    config, best = localized(config_of(output)), best_version(output, known)
    prepared = localized(load_config(output / "prepare" / "config.yaml", []))
    if best.ship not in BASELINES and not best.model.resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"{output}: the shipped model {best.model} belongs to another run; update that run")
    return _Base(config.model_copy(update={"prepare": prepared.prepare}), known[-1], best, known[-1].number + 1)


def _changes(base: _Base, output: Path, folder: Path, events: Any, items: Any) -> Changes:
    """Read the new log and the table of items, and join them with the data of the newest version."""
    settings, source = base.config.prepare, base.newest.folder / "prepare"
    known, facts = Dataset.load(source), read_facts(source)
    log = str(local(as_file(events, folder / "events.parquet")))
    new = read_log(_reading(settings, events), known, log)
    if known.times is None and new.source in facts["sources"]:
        new = new.without_events()  # without times, a log that was given before is known by its content alone
    table, left_out = _added_items(base.best, known), None
    if items is not None:
        first = read_facts(output / "prepare")["sources"]
        path = local(as_file(items, folder / "items.parquet"))
        own = read_items(_reading(settings, items), known, path)
        left_out = items_of_first_table(settings, known, first, path, own)
        table = own if table is None else pa.concat_tables([own, table], promote_options="permissive")
    return merge(settings, source, new, table, left_out)


def _reading(settings: PrepareConfig, source: Any) -> PrepareConfig:
    """Return the settings by which a source is read; a table is Parquet, whatever the file of the run was."""
    if isinstance(source, str | Path):
        return settings
    return settings.model_copy(update={"format": "auto", "columns": None, "encoding": None})


def _added_items(best: Version, known: Dataset) -> pa.Table | None:
    """Return the items that `slmrec items add` gave to the shipped model; None if there are none."""
    vocabulary = load_recommender(best.model)[1]
    is_added = pc.invert(pc.is_in(vocabulary.item_ids, value_set=known.item_ids))
    if not pc.any(is_added).as_py():
        return None
    columns = {"item_id": vocabulary.item_ids}
    columns |= {} if vocabulary.titles is None else {"title": vocabulary.titles}
    return pa.table({**columns, **vocabulary.columns}).filter(is_added)


def _update(base: _Base, changes: Changes, output: Path, started: float, budget: float) -> dict[str, Any]:
    folder = output / UPDATES / f"{base.number:04d}"
    shutil.rmtree(folder, ignore_errors=True)  # of an update that was interrupted
    _LOG.info(
        "update %04d: %s new events, %s new users, %s new items; %s events were known",
        base.number,
        *(f"{value:,}" for value in (changes.num_new_events, changes.num_new_users, changes.num_new_items)),
        f"{changes.num_known:,}",
    )
    config = _config_of_update(base)
    sections, read = models_of(config), time.monotonic()
    until = read + TRAINING_SHARE * max(0.0, budget - (read - started))
    for step in steps(config):
        _run(step, config, folder, base, changes, sections, until)
    write_text(folder / "config.yaml", dump(config))
    trained = time.monotonic()
    shipped = model_folders(config, folder)[base.best.ship]
    dataset = Dataset.load(folder / "prepare")
    protocol, size = config.evaluate.primary_protocol, config.evaluate.batch_size
    compared = compare(base.best.model, shipped, dataset, protocol, size)
    _write_verdict(base, config, folder, compared, shipped)
    record = {
        "number": base.number,
        "previous": base.best.number,
        "previous_folder": _relative(base.best.model, output),
        "data": base.newest.number,
        "first_data": base.newest.record.get("first_data", Dataset.load(output / "prepare").fingerprint),
        "ship": base.best.ship,
        "folder": str(shipped.relative_to(folder)),
        "moved": compared.is_no_worse,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_new_events": changes.num_new_events,
        "num_new_users": changes.num_new_users,
        "num_new_items": changes.num_new_items,
        "num_known_events": changes.num_known,
        "num_waiting_events": len(changes.waiting),
        "comparison": {"protocol": protocol} | compared.as_dict(),
        "seconds": {
            "budget": budget,
            "reading": round(read - started, 3),
            "models": round(trained - read, 3),
            "all": round(time.monotonic() - started, 3),
        },
    }
    write_json(folder / RECORD, record)
    upload(output)
    verb = "stays"
    if compared.is_no_worse:
        move_best(output, Version(base.number, folder, base.best.ship, shipped, record))
        verb = "is now"
    place = shipped.relative_to(output) if compared.is_no_worse else base.best
    _LOG.info("update %04d: %s; %s %s %s", base.number, compared, output / BEST, verb, place)
    return record


def _relative(folder: Path, output: Path) -> str:
    return str(folder.relative_to(output)) if folder.is_relative_to(output) else str(folder)


def _config_of_update(base: _Base) -> Config:
    """Return the settings of a run in the folder of an update, in which the data are there already."""
    config, prepare = base.config, base.config.prepare
    protocol = config.evaluate.primary_protocol
    protocol = "full_history_excluded" if is_sampled(protocol) else protocol
    evaluated = dict.fromkeys((*BASELINES, base.best.ship))
    evaluate = {
        "primary_protocol": protocol,
        "protocols": (protocol,),
        "splits": ("test",),
        "num_negatives": None,
        "models": tuple(evaluated),
        "timing_users": min(config.evaluate.timing_users, _TIMING_USERS),
    }
    no_files = {"input": None, "items": None, "items_id_col": None, "title_col": None, "item_columns": ()}
    return config.model_copy(
        update={
            "seed": config.seed + base.number,
            "prepare": prepare.model_copy(update=no_files),
            "evaluate": config.evaluate.model_copy(update=evaluate),
        }
    )


def _run(step: Step, config: Config, folder: Path, base: _Base, changes: Changes, sections: Any, until: float) -> None:
    """Execute a step of an update: data are written, counts are made anew, and trained models are carried over."""
    source = base.best.folder / step.folder
    is_shipped = source.resolve() == base.best.model.resolve()

    def build(task: Task) -> dict[str, float]:
        if step.folder == "prepare":
            return write_changes(changes, base.newest.folder / "prepare", task.folder, cuts_of(changes, config.seed))
        learned = Dataset.load(base.best.folder / "prepare") if is_shipped else None
        metrics = carry_over(task, source, sections[step.folder], learned=learned, until=until)
        if (source / "teacher").is_dir():  # that was trained beside the student
            carry_over(_beside(task), source / "teacher", "finetune")
        return metrics

    own = step.folder == "prepare" or step.folder in sections
    run_step(step, config, folder, build=build if own else None)
    if (source / RULES).is_file():  # standing rules hold for the new model too
        shutil.copyfile(source / RULES, folder / step.folder / RULES)


def _beside(task: Task) -> Task:
    return Task(task.config, task.output, task.folder / "teacher", task.model, task.cache)


def _write_verdict(base: _Base, config: Config, folder: Path, compared: Comparison, shipped: Path) -> None:
    """Write the verdict of an update, which ships the model that learned, and let `best` in its folder lead there."""
    protocol, ship = config.evaluate.primary_protocol, base.best.ship
    ranks = pq.read_table(folder / "evaluate" / "per_user.parquet", filters=[("protocol", "=", protocol)])
    values = {
        name: user_metrics(ranks.filter(pc.equal(ranks["model"], name))["rank"].to_numpy())[METRIC]
        for name in config.evaluate.models or ()
    }
    against = max((name for name in values if name != ship), key=lambda name: values[name].mean())
    ahead = Difference.of(values[ship], values[against])
    side = "ahead of" if ahead.value >= 0 else "behind"
    reasons = (
        f"Update {base.number:04d} ships {ship}, as {base.best} does, whose weights learned further: {compared}.",
        f"On the newest events, from which it did not learn, it is {side} {against} by {abs(ahead.value):.4f} "
        f"({ahead.interval}).",
    )
    warnings = () if compared.is_no_worse else (f"It is worse than {base.best} on the newest events.",)
    content = read_json(folder / "evaluate" / "metrics.json")["protocols"][protocol]["models"]
    seconds = {name: round(1_000 / max(0.05, own["users_per_second"]), 6) for name, own in content.items()}
    verdict = Verdict(
        ship,
        str(shipped.relative_to(folder)),
        against,
        METRIC,
        protocol,
        ahead.value,
        (ahead.low, ahead.high),
        seconds,
        reasons,
        warnings,
        {"difference": ahead.value, "interval": [ahead.low, ahead.high]},
    )
    link_in_place(folder / BEST, shipped)
    write_json(folder / VERDICT, verdict._asdict())
