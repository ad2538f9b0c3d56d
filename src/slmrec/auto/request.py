"""Request of a run without a YAML, and the settings that were chosen for it, kept in the folder of the run."""

import json
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

from slmrec.auto.choose import Choice, check_overrides, choose
from slmrec.auto.rules import Chosen
from slmrec.config import BASELINES
from slmrec.config.load import load_config
from slmrec.config.secrets import redacted
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError
from slmrec.files import write_atomically, write_json
from slmrec.folders import read_record
from slmrec.pipeline.stage import dump, run_step
from slmrec.pipeline.table import Step, stage_named
from slmrec.storage.cache import localized, named
from slmrec.version import __version__

_LOG = logging.getLogger(__name__)
CONFIG, RECORD = "config.yaml", "choice.json"
"""Files in the folder of the run: the settings, and what they were chosen for."""
SHARE_OF_DATABASE = 0.5
"""Share of the memory that DuckDB may use while the log is prepared; nothing else runs then."""


class Request(NamedTuple):
    """Log, settings of the user, time and memory of a run whose other settings are chosen."""

    overrides: tuple[str, ...] = ()
    """Settings as `key.path=value`, such as `prepare.input=orders.csv`."""
    time_budget: float | None = None
    """Time that the run may take, in seconds; None: no limit."""
    memory: int | None = None
    """Memory that the run may use, in bytes; None: all that is free."""

    def of(self, output: Path) -> dict[str, Any]:
        """Return everything that the choice for a run in a folder depends on, without passwords."""
        data = Dataset.load(output / "prepare").fingerprint
        facts = {"overrides": named(list(map(redacted, self.overrides))), "data": data, "version": __version__}
        return self._asdict() | facts


def choose_for(request: Request, output: Path, force: bool = False, *, started: float | None = None) -> Choice:
    """Prepare the data, and return the settings of the run, which are chosen unless that was done before.

    Args:
        request: What the run is asked for.
        output: Output folder of the run.
        force: Choose again.
        started: Value of `time.monotonic` when the time of the request began; None: now.

    Raises:
        ConfigError: A setting of the user belongs to those that are chosen.
        CheckpointError: The folder has a `config.yaml` that was not chosen.
    """
    started = time.monotonic() if started is None else started
    overrides = check_overrides(_with_memory(request))
    if (output / CONFIG).exists() and not (output / RECORD).exists():
        raise CheckpointError(
            f"{output / CONFIG} is not a file of chosen settings; run it with --config {output / CONFIG}, or choose "
            "another --output"
        )
    config = localized(load_config(None, overrides))
    for step in stage_named("prepare").steps(config):
        run_step(step, config, output)
    if not force and (before := _read(request, output)):
        _LOG.info("settings: as chosen before, from %s (--force chooses again)", output / CONFIG)
        return before
    for name in BASELINES:
        run_step(Step(stage_named("pretrain"), name), config, output)
    left = None if request.time_budget is None else request.time_budget - (time.monotonic() - started)
    choice = choose(output / "prepare", overrides, time_budget=left, memory=request.memory)
    for line in choice.lines():
        _LOG.info("settings: %s", line)
    _write(choice, request, output)
    _LOG.info("settings: chosen in %.0f s, written to %s", time.monotonic() - started, output / CONFIG)
    return choice


def chosen_before(request: Request, output: Path) -> Choice:
    """Return the settings that were chosen for a run, or would be chosen for it now.

    Raises:
        ConfigError: The data are not prepared.
    """
    if not read_record(output / "prepare").get("done"):
        raise ConfigError(
            f"settings are chosen from the data, which {output / 'prepare'} does not hold yet; leave --dry-run out, or "
            "give --config"
        )
    before = _read(request, output)
    return before or choose(
        output / "prepare", _with_memory(request), time_budget=request.time_budget, memory=request.memory
    )


def _with_memory(request: Request) -> list[str]:
    given = any(override.startswith("prepare.memory_limit=") for override in request.overrides)
    if request.memory is None or given:
        return list(request.overrides)
    share = max(1, int(request.memory * SHARE_OF_DATABASE) // 2**20)
    return [*request.overrides, f"prepare.memory_limit={share}MiB"]


def _read(request: Request, output: Path) -> Choice | None:
    """Return the settings that were chosen for the same request on the same data."""
    config, record = output / CONFIG, output / RECORD
    if not (config.is_file() and record.is_file()):
        return None
    content = json.loads(record.read_text(encoding="utf-8"))
    if content.get("request") != request.of(output):
        return None
    return Choice(load_config(config, []), tuple(Chosen(*entry) for entry in content["chosen"]), content["is_cut"])


def _write(choice: Choice, request: Request, output: Path) -> None:
    """Write the settings, with their reasons as comments, and what they were chosen for."""
    comments = [f"# {line}" for text in choice.lines() for line in text.splitlines()]
    with write_atomically(output / CONFIG) as temporary:
        temporary.write_text("\n".join([*comments, dump(choice.config)]), encoding="utf-8")
    facts = {"chosen": [named(list(entry)) for entry in choice.chosen], "is_cut": choice.is_cut}
    write_json(output / RECORD, {"request": request.of(output)} | facts)
