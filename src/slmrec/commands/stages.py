"""`slmrec prepare` and the other stages of the pipeline, and `slmrec run`, `ablate`, `cold`, `depth` and `tune`."""

import argparse
import json
import time
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import add_split_option, new_command
from slmrec.errors import ConfigError
from slmrec.locks import run_locked
from slmrec.pipeline.table import PIPELINE, stage_named
from slmrec.processes import is_main, refuse_several

if TYPE_CHECKING:
    from slmrec.config import Config


_STUDIES = (
    ("ablate", "train variants of the student, or controls of its language, and compare them"),
    ("cold", "withhold items from training, and rank them by what their texts say"),
    ("depth", "train teachers of several depths, and measure what each layer of the deepest contributes"),
    ("tune", "search for the settings of one stage that are best on validation"),
)
LINE = 118
"""Width of the verdict on the terminal."""
FORMATS = """
The format is recognised by the content (plain, .gz, .zst or .zip; a file, or a folder of parts):
  Amazon reviews 2014, 2018 and 2023   JSON lines (2014 also as Python literals), and files of ratings only
  MovieLens 100K, 1M, 20M and newer    u.data, ratings.dat, ratings.csv
  RecBole                              .inter
  one user per line                    user item item ...
  the reference's processed csv        one row per user, with lists of items and titles
  any table                            csv, tsv, Parquet or JSON lines with user, item and time
--items FILE takes the metadata of these formats (meta_*.json, u.item, movies.dat, movies.csv, .item), or any table of
items. For other column names, set prepare.user_col=NAME and so on; for a table without header, prepare.columns=[...].
"""
"""Help about the input formats."""


def add_parser(subparsers: Any) -> None:
    """Add one command for each stage, then `run` and the studies."""
    for stage in PIPELINE:
        command = _add(subparsers, stage.name, stage.help)
        command.set_defaults(in_several_processes=True)
        if stage.models is not None:
            command.add_argument("--model", metavar="NAME", help="train only the model of this name (default: all)")
    run_all = _add(subparsers, "run", "run all stages in order, and skip those that are finished and unchanged")
    run_all.set_defaults(in_several_processes=True)
    run_all.add_argument(
        "--dry-run", action="store_true", help="show what would run and the resources it needs; write nothing"
    )
    run_all.add_argument(
        "--time-budget", metavar="TIME", help="without --config: time that the run may take, such as 20m, 2h or 1h30m"
    )
    run_all.add_argument(
        "--memory", metavar="SIZE", help="without --config: memory that the run may use, such as 8g or 800m"
    )
    for name, text in _STUDIES:
        study = _add(subparsers, name, text)
        if name in ("ablate", "cold"):
            add_split_option(study)
        if name == "ablate":
            study.add_argument(
                "--what",
                choices=("distillation", "language", "paper"),
                default="distillation",
                help="variants of the student's loss (default), controls that say whether text, pretraining and "
                "distillation pay, or the tables of the paper",
            )
        if name == "tune":
            _add_search_options(study)
        if name == "cold":
            study.add_argument("--share", metavar="X", help="share of the items to withhold; the same as cold.share=X")


def _add_search_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--stage", choices=("pretrain", "finetune", "distill"), default="distill", help="default: distill"
    )
    command.add_argument("--model", metavar="NAME", help="base model, for --stage pretrain")
    command.add_argument("--trials", type=int, default=20, help="number of finished trials to reach (default 20)")
    command.add_argument("--time-budget", metavar="TIME", help="time after which no trial continues, such as 2h")


def run(options: argparse.Namespace) -> None:
    """Run a stage, all stages, or a study."""
    if options.command == "run":
        _run_all(options)
        return
    config = _config(options)
    if options.command == "ablate":
        _ablate(options, config)
    elif options.command == "cold":
        from slmrec.studies.cold import cold

        with run_locked(options.output):
            cold(config, options.output, options.force, options.split)
    elif options.command == "tune":
        _tune(options, config)
    elif options.command == "depth":
        from slmrec.run import write_report
        from slmrec.studies.depth import depth

        with run_locked(options.output):
            depth(config, options.output, options.force)
            write_report(options.output, always=True)
    else:
        _run_stage(options, config)


def _run_all(options: argparse.Namespace) -> None:
    """Run all stages with the settings of a YAML file or with chosen ones, or show what would run."""
    if options.dry_run:
        refuse_several("slmrec run --dry-run")
    started, chosen = time.monotonic(), options.config is None
    if not chosen and (options.time_budget or options.memory):
        name = "--time-budget" if options.time_budget else "--memory"
        raise ConfigError(f"{name} chooses settings, and --config gives them; leave one of the two out")
    from slmrec.auto.amounts import bytes_of, seconds_of
    from slmrec.auto.request import Request, chosen_before
    from slmrec.run import plan, run_chosen
    from slmrec.run import run as run_pipeline

    if chosen:
        refuse_several("slmrec run without --config")
        request = Request(tuple(_overrides(options)), seconds_of(options.time_budget), bytes_of(options.memory))
    if options.dry_run:
        config = chosen_before(request, options.output).config if chosen else _config(options)
        plan(config, options.output, options.force)
        return
    if chosen:
        run_chosen(request, options.output, options.force, started=started)
    else:
        run_pipeline(_config(options), options.output, options.force)
    if is_main():
        show_verdict(options.output)


def _ablate(options: argparse.Namespace, config: "Config") -> None:
    if options.what == "language":
        from slmrec.studies.language.study import study_language as study
    elif options.what == "paper":
        from slmrec.studies.paper.study import study_paper as study
    else:
        from slmrec.studies.ablate import ablate as study
    with run_locked(options.output):
        study(config, options.output, options.force, options.split)


def _tune(options: argparse.Namespace, config: "Config") -> None:
    from slmrec.auto.amounts import seconds_of
    from slmrec.studies.tune import tune

    if options.trials < 1:
        raise ConfigError(f"--trials is {options.trials}; give at least 1")
    budget = seconds_of(options.time_budget)
    with run_locked(options.output):
        best = tune(config, options.output, options.stage, options.trials, options.model, budget, options.force)
    print(f"the best settings are in {best}: slmrec run --config {best} --output NEW")


def _add(subparsers: Any, name: str, text: str) -> argparse.ArgumentParser:
    command = new_command(subparsers, name, text, run, _epilog(name))
    command.add_argument(
        "--config", type=location, help="recipe of the package (for example words), or YAML file with all settings"
    )
    command.add_argument("--output", type=location, required=True, help="folder of the run")
    command.add_argument("--force", action="store_true", help="run again even if the result exists and is up to date")
    _add_data_options(command)
    command.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings that replace those of the YAML file"
    )
    return command


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--input", help="interaction log, a file, folder or URI; the same as prepare.input=FILE")
    command.add_argument("--items", help="table of items with titles; the same as prepare.items=FILE")
    command.add_argument(
        "--on-bad-row",
        choices=("error", "skip"),
        help="what to do with rows that are not valid events; the same as prepare.on_bad_row=...",
    )


def _epilog(name: str) -> str:
    without_config = {
        "prepare": "the data set itself is written into the output folder",
        "run": "the settings\nare chosen for the data, the free hardware and --time-budget, and written to "
        "OUTPUT/config.yaml",
    }.get(name, "every setting has its default: the paper's recipe on smollm2-135m")
    recipe = "smollm2" if name in ("depth", "ablate") else "words"
    example = (
        f"Example: slmrec {name} --config {recipe} --input LOG --items ITEMS --output out/shop seed=1\n"
        "Your own log: --config words if its items have titles, sequences if not; tiny tries the commands in seconds.\n"
        f"`slmrec config schema` explains all settings. Without --config, {without_config}."
    )
    return f"{example}\n{FORMATS}" if name == "prepare" else example


def _config(options: argparse.Namespace) -> "Config":
    from slmrec.config.load import load_config
    from slmrec.storage.cache import localized

    return localized(load_config(options.config, _overrides(options)))


def _overrides(options: argparse.Namespace) -> list[str]:
    """Return the settings of the command line as `key.path=value`."""
    shortcuts = {name: getattr(options, name, None) for name in ("input", "items", "on_bad_row")}
    overrides = [f"prepare.{name}={json.dumps(text, ensure_ascii=False)}" for name, text in shortcuts.items() if text]
    if getattr(options, "share", None) is not None:
        overrides.append(f"cold.share={options.share}")
    return [*options.overrides, *overrides]


def _run_stage(options: argparse.Namespace, config: "Config") -> None:
    if options.command == "prepare":  # without the module of `run_stage`, since preparing data needs no torch
        from slmrec.pipeline.stage import run_step

        (step,) = stage_named("prepare").steps(config)
        target = options.output if options.config is None else None
        run_step(step, config, options.output, options.force, target=target)
        return
    from slmrec.pipeline.run import run_stage

    folders = run_stage(options.command, config, options.output, options.force, getattr(options, "model", None))
    if options.command == "evaluate" and is_main():
        from slmrec.pipeline.evaluation_tables import show

        show(folders[0])
        show_verdict(options.output)


def show_verdict(output: Path) -> None:
    """Print the verdict of a run, if it has one: the model to ship, and why."""
    from slmrec.pipeline.verdict import BEST, read_verdict
    from slmrec.storage.cache import named

    if verdict := read_verdict(output):
        headline, *lines = verdict.lines(named(str(output / BEST)))
        print(f"\n{headline}")
        for line in lines:
            print(fill(line, LINE, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False))
