"""Settings of a run, chosen from the data, the hardware and the time."""

import time
from pathlib import Path
from typing import NamedTuple

from slmrec.auto.facts import facts_of
from slmrec.auto.hardware import Hardware, free_hardware, use_free_threads
from slmrec.auto.measure import Measurement
from slmrec.auto.memory import fitted_to_memory
from slmrec.auto.plans import Measure, planned
from slmrec.auto.rules import Chosen, draft
from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError

_OWN = ("prepare", "evaluate", "seed", "report_to")
"""Sections of which the user may give settings although the others are chosen."""


class Choice(NamedTuple):
    """Settings that were chosen, and the reason of each."""

    config: Config
    chosen: tuple[Chosen, ...]
    is_cut: bool = False
    """True if the time allows fewer models or epochs than the data would."""

    def lines(self) -> list[str]:
        """Return a line for each choice."""
        return [f"{setting}: {value} ({reason})" for setting, value, reason in self.chosen]


def choose(
    folder: Path,
    overrides: list[str] | None = None,
    *,
    time_budget: float | None = None,
    memory: int | None = None,
    hardware: Hardware | None = None,
    measure: Measure | None = None,
) -> Choice:
    """Choose the settings of a run on a prepared data set.

    A few steps of each model are measured, which takes some seconds.

    Args:
        folder: Folder of the data set.
        overrides: Settings of the user as `key.path=value`, of the sections `prepare` and `evaluate` and of `seed`.
        time_budget: Time that is left for choosing and for the run, in seconds; None: no limit.
        memory: Memory that the run may use, in bytes; None: all that is free.
        hardware: Hardware of the run; None: that which is free now.
        measure: Function that measures the time of a run; None: a few steps on the data set.

    Raises:
        ConfigError: An override is unknown, out of range, or belongs to the settings that are chosen; or no model can
            be trained in the memory.

    Example:
        >>> import pyarrow as pa
        >>> from tempfile import TemporaryDirectory
        >>> from slmrec import prepare
        >>> events = pa.table({"user_id": ["u"] * 4, "item_id": ["a", "b", "c", "d"], "timestamp": [1, 2, 3, 4]})
        >>> with TemporaryDirectory() as output:
        ...     choice = choose(prepare(events, f"{output}/shop"))
        >>> list(choice.config.pretrain)
        []
    """
    start, facts = time.monotonic(), facts_of(Dataset.load(folder))
    made = draft(facts, check_overrides(overrides or []))
    found = hardware or free_hardware()
    use_free_threads()  # the load may have changed while the log was prepared
    measured = measure or Measurement(folder)
    if made.config.pretrain:
        made = fitted_to_memory(made, measured(made.config), memory or found.memory)
    left = None if time_budget is None else time_budget - (time.monotonic() - start)
    made = planned(made, facts, measured, left)
    machine = Chosen("hardware", str(found), "found on this machine")
    return Choice(made.config, (machine, *made.chosen), made.is_cut)


def check_overrides(overrides: list[str]) -> list[str]:
    """Return the settings of the user, which must not belong to those that are chosen.

    Raises:
        ConfigError: One of them does, is unknown, or out of range.
    """
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] not in _OWN:
            raise ConfigError(
                f"override {override!r}: without --config this setting is chosen; give --config words, sequences or "
                "OUT/config.yaml to set it, or leave it out"
            )
    load_config(None, overrides)
    return overrides
