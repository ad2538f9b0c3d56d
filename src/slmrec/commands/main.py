"""The command line: one command a stage; exit code 0 done, 2 the user's mistake, 1 ours."""

import argparse
import json
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slmrec.errors import ConfigError, SlmrecError
from slmrec.version import __version__

STAGES = {
    "prepare": "raw logs to a data-set folder",
    "pretrain": "SASRec and its item vectors",
    "finetune": "the teacher: a pretrained decoder, pruned and tuned",
    "distill": "the student: fewer layers, taught by the teacher",
    "evaluate": "all models side by side on the test split",
    "run": "all of the above, what is done is skipped",
    "ablate": "variants of the distillation with several seeds, after one teacher",
    "depth": "teachers of several depths, and what each layer of the deepest does",
}
TAKE_INPUT = ("prepare", "run", "ablate", "depth")
DEFAULTS = "each has its default: the paper's recipe on smollm2-135m"
FORMATS = """
formats, told by the content (plain, .gz or .zst; a file or a folder of parts):
  Amazon reviews 2014, 2018 and 2023   json lines (2014 also as Python literals), and files of ratings alone
  MovieLens 100K, 1M, 20M and newer    u.data, ratings.dat, ratings.csv
  RecBole                              .inter
  one user a line                      user item item ...
  the reference's processed csv        a row a user, with lists of items and titles
  any table                            csv, tsv, parquet or json lines with user, item and time
--items FILE takes the metadata of the same (meta_*.json, u.item, movies.dat, movies.csv, .item), or any table of items.
Other names of columns: prepare.user_col=NAME and so on; a table without header: prepare.columns=[...].
"""

SERVE_LIBRARIES = ("starlette", "uvicorn", "httptools", "prometheus_client")
SERVE = """
Examples: slmrec serve --model out/beauty/distill --teacher out/beauty/finetune
          curl -H 'Content-Type: application/json' -d '{"history": [9, 18, 27], "k": 5}' localhost:8000/recommend
The page is at http://127.0.0.1:8000/, the interface at /docs; docs/serving.md explains both.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; the exit code."""
    options = _parse(arguments)
    try:
        _dispatch(options)
    except SlmrecError as error:
        print(f"slmrec: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("slmrec: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


def entry() -> None:
    """The installed command."""
    sys.exit(main())


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:  # argparse itself would show the usage of `slmrec` alone
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slmrec", description="Distil an LLM-based sequential recommender.")
    parser.add_argument("--version", action="version", version=f"slmrec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in STAGES.items():
        command = _add(commands, name, text, epilog=_epilog(name))
        command.add_argument("--config", type=str, help="YAML with the settings of all stages; see configs/")
        command.add_argument("--output", type=Path, required=True, help="folder of the run")
        command.add_argument("--force", action="store_true", help="redo what is done")
        if name in TAKE_INPUT:
            _add_data_options(command)
        if name == "run":
            about = "show what would be done and what it would take; write nothing"
            command.add_argument("--dry-run", action="store_true", help=about)
        command.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings over those of the YAML")
    demo = commands.add_parser("demo", help="the whole pipeline on a simulated shop, in minutes")
    demo.add_argument("--output", type=Path, required=True, help="folder of the run")
    demo.add_argument("--force", action="store_true", help="redo what is done")
    demo.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings over those of the demo")
    _add_recommend(commands)
    _add_serve(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_data_commands(commands)
    _add_import_reference(commands)
    _add_export(commands)
    _add_item_commands(commands)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def _add(commands: Any, name: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return added


def _add_recommend(commands: Any) -> None:
    example = (
        "Examples: slmrec recommend --model out/beauty/distill --input histories.parquet --output recs.parquet --k 10\n"
        "          slmrec recommend --model out/beauty/distill --history 9,18,27\n"
        "A second run of an interrupted command goes on where it stopped. docs/serving.md tells more."
    )
    recommend = _add(commands, "recommend", "top-k lists for a file of histories, or for one history", epilog=example)
    recommend.add_argument("--model", type=Path, required=True, help="folder of a trained model, or its hub id")
    recommend.add_argument("--history", help="item ids of one history, oldest first, between commas; prints titles")
    recommend.add_argument("--input", type=Path, help="rows of user_id, history, or user_id, item_id, timestamp")
    recommend.add_argument("--output", type=Path, help=".parquet, .csv or .jsonl to write")
    recommend.add_argument("--k", type=int, default=10, help="at most this many items a user (default 10)")
    recommend.add_argument("--keep-seen", action="store_true", help="recommend items of the history too")
    recommend.add_argument("--candidates", type=Path, metavar="FILE", help="rank the items of this file alone")
    recommend.add_argument("--exclude-items", type=Path, metavar="FILE", help="items that nobody gets")
    recommend.add_argument(
        "--index", type=Path, metavar="FILE", help="search in an index of slmrec export --format faiss"
    )
    about = "compute on Spark: Parquet of user_id, history in, a folder of Parquet files out"
    recommend.add_argument("--engine", choices=("spark",), help=about)


def _add_serve(commands: Any) -> None:
    from slmrec.serving.limits import Limits

    serve = _add(commands, "serve", "recommendations over HTTP, with a page to look at", epilog=SERVE)
    serve.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    serve.add_argument("--teacher", type=Path, help="folder of another model, to compare with on the page")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine alone)"
    )
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0 for any free one")
    serve.add_argument("--token-file", type=Path, help="a file with a token that requests must bring")
    serve.add_argument("--examples", type=Path, help=".jsonl of user_id, history: users to pick on the page")
    serve.add_argument("--threads", type=int, help="CPU threads of the model (default: as PyTorch chooses)")
    for limit in fields(Limits):
        about = f"{limit.metadata['help']} (default {limit.default})"
        serve.add_argument(
            f"--{limit.name.replace('_', '-')}", type=type(limit.default), default=limit.default, help=about
        )


def _add_compare(commands: Any) -> None:
    example = (
        "Examples: slmrec compare out/beauty out/seed1\n"
        "          slmrec compare out/beauty out/beauty --model teacher --model-b student --metric mrr\n"
        "Differences are B - A, user by user; docs/statistics.md says how to read them."
    )
    compare = _add(commands, "compare", "two evaluated models: differences, intervals, tests, slices", epilog=example)
    compare.add_argument("run_a", type=Path, metavar="RUN_A", help="folder of an evaluated run")
    compare.add_argument("run_b", type=Path, metavar="RUN_B", help="folder of another one, or the same")
    compare.add_argument("--model", default="student", help="the model of RUN_A (default: student)")
    compare.add_argument("--model-b", help="the model of RUN_B (default: that of RUN_A)")
    compare.add_argument("--protocol", help="for example full (default: the primary one of RUN_A)")
    compare.add_argument(
        "--metric", action="append", help="for example hit@5; may be repeated, the first one is shown by slices too"
    )
    compare.add_argument("--output", type=Path, help="JSON file to write the numbers to as well")


def _add_report(commands: Any) -> None:
    example = (
        "Example: slmrec report out/beauty\n"
        "What is missing or broken is told in its place, with the command that makes it. docs/report.md tells more."
    )
    report = _add(commands, "report", "a run as one page: figures, tables and examples", epilog=example)
    report.add_argument("run", type=Path, metavar="OUT", help="folder of a run, or of an ablation")
    about = "the page (default: OUT/report.html); figures and tables go into a folder of that name without .html"
    report.add_argument("--output", type=Path, metavar="FILE.html", help=about)


def _add_import_reference(commands: Any) -> None:
    text = "a checkpoint of the original SLMRec code, to a model folder"
    command = _add(commands, "import-reference", text, epilog="Item ids are the numbers 1..V. See docs/serving.md.")
    command.add_argument("--weights", type=Path, required=True, help="its state dict: .safetensors, .bin, .pt or .pth")
    command.add_argument("--backbone-config", type=Path, required=True, help="config.json of its LLaMA")
    command.add_argument("--prompt-ids", type=Path, required=True, help="JSON list of the token ids before the items")
    command.add_argument("--response-ids", type=Path, required=True, help="JSON list of the token ids after them")
    command.add_argument("--max-history-items", type=int, required=True, help="the length it pads histories to")
    command.add_argument("--lora-alpha", type=float, help="adapters are scaled by alpha / r (default: r)")
    command.add_argument("--output", type=Path, required=True, help="a new model folder")


def _add_export(commands: Any) -> None:
    text = "a model in another form: an ONNX graph, with 8-bit weights, without adapters; or an index of its items"
    command = _add(commands, "export", text, epilog="How each is used stands in docs/serving.md.")
    command.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    command.add_argument("--format", choices=("onnx", "int8", "merged", "faiss"), required=True)
    where = "FILE.onnx; for merged a new folder, for faiss any file"
    command.add_argument("--output", type=Path, required=True, help=where)
    command.add_argument("--recall", type=float, help="for faiss: wanted share of the 10 best items (default 0.95)")


def _add_item_commands(commands: Any) -> None:
    text = "add items to a model without training, remove some, restore them"
    inner = _add(commands, "items", text).add_subparsers(dest="items_command", required=True, metavar="COMMAND")
    for name, about, table in (
        ("add", "new items by their vectors, or by items that they are like", "item_id, perhaps title; vector or like"),
        ("remove", "items that shall no longer be recommended", "item_id"),
        ("restore", "removed items that may be recommended again", "item_id"),
    ):
        command = _add(inner, name, about)
        command.add_argument("--model", type=Path, required=True, help="folder of a trained model")
        command.add_argument("--items", type=Path, required=True, help=f".parquet, .jsonl or .csv with {table}")
        command.add_argument("--output", type=Path, help="a new folder (default: the model's own is replaced)")
        command.set_defaults(parser=command)


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--input", help="the log, a file or folder; the same as prepare.input=FILE")
    command.add_argument("--items", help="a table of items with titles; the same as prepare.items=FILE")
    command.add_argument(
        "--on-bad-row", choices=("error", "skip"), help="rows that are no events; the same as prepare.on_bad_row=..."
    )


def _add_data_commands(commands: Any) -> None:
    text = "look at, check and download data"
    inner = _add(commands, "data", text).add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    describe = _add(inner, "describe", "what is in a prepared data set: counts, distributions, split, leakage")
    describe.add_argument("folder", type=Path, help="folder of a data set, or of a run")
    describe.add_argument("--output", type=Path, help="the picture to write (default: FOLDER/describe.png)")
    validate = _add(inner, "validate", "whether a log can be prepared, and all that is wrong with it", epilog=FORMATS)
    validate.add_argument("file", help="the log, a file or folder")
    validate.add_argument("overrides", nargs="*", metavar="prepare.key=value", help="how it is read")
    fetch = _add(inner, "fetch", "download a public data set")
    fetch.add_argument("name", nargs="?", help="which one; without a name, a list of them")
    fetch.add_argument("--output", type=Path, default=Path("data"), help="folder to download into (default: data)")
    for command in inner.choices.values():
        command.set_defaults(parser=command)


def _epilog(name: str) -> str:
    data = "--input FILE " if name in TAKE_INPUT else ""
    bare = {"prepare": "the data set itself is written into the output folder"}.get(name, DEFAULTS)
    example = (
        f"Example: slmrec {name} --config configs/tiny.yaml {data}--output out/tiny seed=1\n"
        f"All settings are explained in src/slmrec/config/. Without --config {bare}."
    )
    return f"{example}\n{FORMATS}" if name == "prepare" else example


def _dispatch(options: argparse.Namespace) -> None:
    if options.command == "recommend":
        _recommend(options)
    elif options.command == "demo":
        from slmrec.commands.demo import demo

        demo(options.output, options.overrides, options.force)
    elif options.command == "serve":
        _serve(options)
    elif options.command == "compare":
        _compare(options)
    elif options.command == "report":
        _report(options)
    elif options.command == "data":
        _run_data_command(options)
    elif options.command == "import-reference":
        _import_reference(options)
    elif options.command == "export":
        from slmrec.commands.export import export

        export(options.model, options.format, options.output, options.recall)
    elif options.command == "items":
        _run_items_command(options)
    else:
        _run_stage(options)


def _recommend(options: argparse.Namespace) -> None:
    files = options.input, options.output
    if None in files if options.history is None else any((*files, options.engine)):
        options.parser.error("give --input FILE and --output FILE, or --history A,B,C alone")
    if options.engine and options.index:
        options.parser.error("--index is not for --engine spark, whose search is exact; leave it out")
    from slmrec.commands.recommend import Wanted, recommend_file, recommend_history

    wanted = Wanted(options.k, not options.keep_seen, options.candidates, options.exclude_items)
    if options.history is not None:
        recommend_history(options.model, options.history, wanted, options.index)
    elif options.engine == "spark":
        from slmrec.inference.batch.spark import recommend_with_spark

        recommend_with_spark(options.model, *files, wanted)
    else:
        recommend_file(options.model, *files, wanted, options.index)


def _serve(options: argparse.Namespace) -> None:
    from slmrec.serving.limits import Limits

    limits = Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)})
    missing = [name for name in SERVE_LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}; install them with: pip install 'slmrec[serve]'")
    from slmrec.serving.run import serve

    serve(
        options.model,
        options.teacher,
        limits,
        host=options.host,
        port=options.port,
        token_file=options.token_file,
        examples=options.examples,
        num_threads=options.threads,
    )


def _compare(options: argparse.Namespace) -> None:
    from slmrec.studies.compare import METRICS, compare

    compare(
        options.run_a,
        options.run_b,
        model=options.model,
        model_b=options.model_b,
        protocol=options.protocol,
        metrics=tuple(options.metric or METRICS),
        output=options.output,
    )


def _report(options: argparse.Namespace) -> None:
    from slmrec.report import INSTALL, missing_libraries

    if missing := missing_libraries():
        raise ConfigError(f"report needs {', '.join(missing)}; install with: {INSTALL}")
    from slmrec.report.page import report

    report(options.run, options.output)


def _import_reference(options: argparse.Namespace) -> None:
    from slmrec.commands.import_reference import import_reference

    import_reference(
        options.weights,
        options.backbone_config,
        options.prompt_ids,
        options.response_ids,
        options.max_history_items,
        options.output,
        options.lora_alpha,
    )


def _run_items_command(options: argparse.Namespace) -> None:
    from slmrec.inference.items import add_items, mark_items

    if options.items_command == "add":
        add_items(options.model, options.items, options.output)
    else:
        mark_items(options.model, options.items, options.items_command == "remove", options.output)


def _run_data_command(options: argparse.Namespace) -> None:
    if options.data_command == "describe":
        from slmrec.commands.describe import describe

        describe(options.folder, options.output)
    elif options.data_command == "fetch":
        from slmrec.commands.fetch import fetch, list_datasets

        fetch(options.name, options.output) if options.name else list_datasets()
    else:
        from slmrec.commands.validate import validate

        validate(options.file, options.overrides)


def _run_stage(options: argparse.Namespace) -> None:
    from slmrec.config.load import load_config

    given = {name: getattr(options, name, None) for name in ("input", "items", "on_bad_row")}
    named = [f"prepare.{name}={json.dumps(text, ensure_ascii=False)}" for name, text in given.items() if text]
    overrides = [*options.overrides, *named]
    config = load_config(options.config, overrides)
    if options.command == "run":
        from slmrec.run import plan, run

        (plan if options.dry_run else run)(config, options.output, options.force)
        return
    if options.command == "ablate":
        from slmrec.studies.ablate import ablate

        ablate(config, options.output, options.force)
        return
    if options.command == "depth":
        from slmrec.studies.depth import depth

        depth(config, options.output, options.force)
        return
    from slmrec.pipeline.run import run_stage
    from slmrec.pipeline.stage import run_step
    from slmrec.pipeline.table import stage_named

    if options.command == "prepare" and options.config is None:
        run_step(stage_named("prepare").steps(config)[0], config, options.output, options.force, target=options.output)
        return
    folders = run_stage(options.command, config, options.output, options.force, getattr(options, "model", None))
    if options.command == "evaluate":
        from slmrec.pipeline.evaluation_tables import show

        show(folders[0])
