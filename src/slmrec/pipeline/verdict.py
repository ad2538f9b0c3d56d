"""The verdict of a run: the model to ship, decided on validation, in `OUT/verdict.json` and as `OUT/best`."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slmrec.config import Config
from slmrec.data.dataset import Dataset, Samples
from slmrec.errors import CheckpointError, DataError
from slmrec.evaluation.metrics import user_metrics
from slmrec.files import one_line, read_json, write_text
from slmrec.folders import link_in_place, read_record
from slmrec.locks import run_locked
from slmrec.pipeline.caveats import improvements, warnings_about
from slmrec.pipeline.decision import METRIC, Candidate, Decision, Difference, Floats, decide, doubts, reasons
from slmrec.pipeline.evaluate import VALIDATION_RANKS, model_folders
from slmrec.storage.cache import named

_LOG = logging.getLogger(__name__)
VERDICT, BEST = "verdict.json", "best"
"""Names in the folder of a run: the verdict, and the model to ship."""
_SLOWEST = 0.05
"""Users per second that are written as 0.0."""


class Verdict(NamedTuple):
    """Content of `verdict.json`."""

    ship: str
    """Name of the model to ship."""
    folder: str
    """Its folder, relative to that of the run; the whole path or URI of a model of another run."""
    against: str
    """Name of the best of popularity, co-occurrence and SASRec without text, other than the shipped model."""
    metric: str
    protocol: str
    difference: float
    """How far the shipped model is ahead of `against` on validation."""
    interval: tuple[float, float]
    """Interval of the difference over the users."""
    seconds_per_1000_users: dict[str, float]
    """Cost of every evaluated model."""
    reasons: tuple[str, ...]
    """Sentences: why this model, how far it is ahead, and what could make it better."""
    warnings: tuple[str, ...]
    """Sentences: what makes the results doubtful."""
    test: dict[str, Any] | None
    """The difference and its interval on the test split, which decides nothing; None if it was not evaluated."""

    def lines(self, place: str) -> Iterator[str]:
        """Yield the verdict as text, with the place of the model."""
        yield f"Ship {self.ship}, in {place}:"
        yield from self.reasons
        yield from (f"Warning: {warning}" for warning in self.warnings)


def write_verdict(config: Config, output: Path) -> Verdict | None:
    """Decide which model to ship, write `verdict.json`, and let `best` lead to the model's folder.

    A verdict that is newer than the evaluation stays, and so does the model to which `best` leads then.

    Args:
        config: Settings of the run.
        output: Folder of a run that was evaluated.

    Returns:
        The verdict; None if the evaluation lacks what decides, which is logged with its remedy.

    Raises:
        CheckpointError: `best` is a folder of something else.
    """
    with run_locked(output):
        refuse_foreign_best(output)
        if _is_current(output):
            return read_verdict(output)
        path = output / "evaluate" / VALIDATION_RANKS
        made = _decided(config, output) if path.is_file() else _no_validation(output)
        if isinstance(made, str):
            (output / VERDICT).unlink(missing_ok=True)
            stays = f"; {output / BEST} stays as it was" if (output / BEST).exists() else ""
            _LOG.warning("verdict: none, since %s%s", made, stays)
            return None
        link_in_place(output / BEST, model_folders(config, output)[made.ship])
        verdict, text = output / VERDICT, json.dumps(made._asdict(), indent=1) + "\n"
        if not verdict.is_file() or verdict.read_bytes() != text.encode():  # a store keeps what is equal
            write_text(verdict, text)
        return made


def _is_current(output: Path) -> bool:
    """Return whether there are a verdict that is newer than all that it depends on, and a model to ship."""
    verdict, sources = output / VERDICT, [*(output / "evaluate").iterdir(), output / "choice.json"]
    if not verdict.is_file() or not (output / BEST).exists():
        return False
    newest = max(path.stat().st_mtime_ns for path in sources if path.exists())
    try:
        return verdict.stat().st_mtime_ns > newest and read_verdict(output) is not None
    except CheckpointError:
        return False


def read_verdict(output: Path) -> Verdict | None:
    """Return the verdict of a run; None if there is none.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = output / VERDICT
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        lists = {name: tuple(content[name]) for name in ("interval", "reasons", "warnings")}
        return Verdict(**content | lists)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: is damaged ({one_line(error)}); remove it and run again") from None


def refuse_foreign_best(output: Path) -> None:
    """Refuse a run in whose folder `best` is neither a link nor a model folder of slmrec.

    Raises:
        CheckpointError: It is something else.
    """
    best = output / BEST
    if best.is_symlink() or not best.exists() or (best.is_dir() and read_record(best)):
        return
    raise CheckpointError(
        f"{best} exists and is no output of slmrec, but the model to ship goes there; rename it, or choose another "
        "--output; nothing was changed"
    )


def _no_validation(output: Path) -> str:
    """Return why no validation item was ranked."""
    try:
        Dataset.load(output / "prepare").held_out("valid")
    except DataError as error:
        return f"{error} (prepare.valid_share, or prepare.split=leave_one_out)"
    command = f"slmrec evaluate --config {output / 'evaluate' / 'config.yaml'} --output {output} --force"
    return f"{output / 'evaluate'} has no ranks of validation items; make them with: {command}"


def _decided(config: Config, output: Path) -> Verdict | str:
    """Return the verdict, or why there is none."""
    protocol = config.evaluate.primary_protocol
    user_ids, values = _read_values(output / "evaluate" / VALIDATION_RANKS, protocol)
    seconds = _seconds(output / "evaluate", protocol)
    models = {name: Candidate(own, seconds[name]) for name, own in values.items()}
    baselines = _baselines(config)
    decision = decide(models, baselines)
    if decision is None:
        return (
            f"{', '.join(models)} alone were evaluated, and the model to ship is compared with one of "
            f"{', '.join(baselines)}; leave evaluate.models out, or name one of these there"
        )
    dataset, ship = Dataset.load(output / "prepare"), decision.ship
    samples = _samples_of(dataset, user_ids)
    test = _on_test(output / "evaluate", decision, protocol)
    why = [
        *reasons(models, decision, baselines, protocol),
        *_about_test(test),
        *improvements(config, output, dataset, samples, ship),
    ]
    warnings = [*doubts(models, decision, test), *warnings_about(dataset, samples, models[ship].values, ship, protocol)]
    return Verdict(
        ship,
        named(_relative(model_folders(config, output)[ship], output)),
        decision.against,
        METRIC,
        protocol,
        decision.difference.value,
        (decision.difference.low, decision.difference.high),
        seconds,
        tuple(why),
        tuple(warnings),
        None if test is None else {"difference": test.value, "interval": [test.low, test.high]},
    )


def _baselines(config: Config) -> list[str]:
    """Return the models with which the shipped one is compared: SASRec models without text among them."""
    of_ids = [name for name, model in config.pretrain.items() if model.kind == "sasrec" and not _reads_text(model)]
    return ["popularity", "cooccurrence", *of_ids]


def _reads_text(model: Any) -> bool:
    return getattr(model, "item_text", None) is not None


def _relative(folder: Path, output: Path) -> str:
    try:
        return folder.resolve().relative_to(output.resolve()).as_posix()
    except ValueError:
        return str(folder.resolve())


def _read_values(path: Path, protocol: str, models: list[str] | None = None) -> tuple[pa.Array, dict[str, Floats]]:
    """Return the users of a file of ranks, and the metric of each of them (num_users,) by model."""
    chosen = pc.field("protocol") == protocol
    if models is not None:
        chosen &= pc.field("model").isin(models)
    rows = pq.read_table(path, columns=["user_id", "model", "rank"], filters=chosen)
    values = {}
    for model in pc.unique(rows["model"]).to_pylist():
        own = rows.filter(pc.equal(rows["model"], model))  # the users of all models have one order
        user_ids = own["user_id"].combine_chunks()
        values[model] = user_metrics(np.asarray(own["rank"].to_numpy(), np.int64))[METRIC]
    return user_ids, values


def _seconds(folder: Path, protocol: str) -> dict[str, float]:
    """Return the seconds for 1,000 users of each evaluated model."""
    content = read_json(folder / "metrics.json")
    if "protocols" not in content:  # the test split was not evaluated
        content = read_json(folder / "metrics_valid.json")
    models = content["protocols"][protocol]["models"]
    return {name: round(1_000 / max(_SLOWEST, own["users_per_second"]), 6) for name, own in models.items()}


def _samples_of(dataset: Dataset, user_ids: pa.Array) -> Samples:
    """Return the validation samples of some users, in their order."""
    samples = dataset.held_out("valid")
    users = pc.index_in(user_ids, value_set=dataset.user_ids).to_numpy()
    return samples.take(np.searchsorted(samples.users(), users))


def _on_test(folder: Path, decision: Decision, protocol: str) -> Difference | None:
    path = folder / "per_user.parquet"
    if not path.is_file():
        return None
    _, values = _read_values(path, protocol, [decision.ship, decision.against])
    return Difference.of(values[decision.ship], values[decision.against])


def _about_test(test: Difference | None) -> list[str]:
    return [] if test is None else [f"On test, which decides nothing, the difference is {test}."]
