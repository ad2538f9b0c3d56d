"""`slmrec demo`: the whole pipeline on a simulated shop in which titles matter, and the model to ship."""

import argparse
import json
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import new_command
from slmrec.commands.stages import show_verdict
from slmrec.files import write_atomically
from slmrec.locks import run_locked

if TYPE_CHECKING:
    from slmrec.config import Config
    from slmrec.data.dataset import Dataset
    from slmrec.inference.recommender import Recommender

_LOG = logging.getLogger(__name__)
_SEED = 0
_NUM_USERS = 2000
_NUM_EXAMPLES = 20
_NUM_SHOWN = 2


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    demo = new_command(subparsers, "demo", "run the whole pipeline on a simulated shop, in minutes", run)
    demo.add_argument("--output", type=location, required=True, help="folder of the run")
    demo.add_argument("--force", action="store_true", help="run again even if the result exists and is up to date")
    demo.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace those of the demo")


def run(options: argparse.Namespace) -> None:
    """Simulate a shop, run the pipeline on its files, and show which model to ship and what it recommends."""
    from slmrec.commands.demo_summary import show_summary
    from slmrec.data.simulate import write_shop
    from slmrec.pipeline.verdict import read_verdict
    from slmrec.run import run as run_pipeline

    output, raw = options.output, options.output / "raw"
    with run_locked(output):
        raw.mkdir(parents=True, exist_ok=True)
        purchases = write_shop(raw, _SEED, _NUM_USERS)
        _LOG.info(f"demo: the log and the titles of a simulated shop are in {raw}")
        run_pipeline(demo_config(raw, options.overrides), output, options.force)
        verdict = read_verdict(output)
        if verdict is None:  # it was logged why
            return
        show_summary(output, verdict.ship, purchases.best_ranks)
        _show_recommendations(output, verdict.ship)
        show_verdict(output)


def demo_config(raw: Path, overrides: list[str]) -> "Config":
    """Return the settings of the demo.

    Args:
        raw: folder of the simulated log.
        overrides: settings as `key.path=value`, which replace those of the recipe `demo`.
    """
    from slmrec.config.load import load_config

    files = {"input": raw / "interactions.csv", "items": raw / "items.csv"}
    inputs = [f"prepare.{name}={json.dumps(str(path))}" for name, path in files.items()]
    return load_config("demo", [*inputs, *overrides])


def _show_recommendations(output: Path, chosen: str) -> None:
    """Print lists that contain the new or rare item that was bought next, and commands that use the model."""
    from slmrec.commands.demo_summary import BASELINE, RARE, rare_targets
    from slmrec.data.dataset import Dataset
    from slmrec.inference.recommender import Recommender
    from slmrec.pipeline.verdict import BEST

    folder = output / BEST
    recommender, dataset = Recommender.from_pretrained(folder), Dataset.load(output / "prepare")
    rare, found = rare_targets(output, list(dict.fromkeys([BASELINE, "teacher", chosen])))
    counts = dict(zip(dataset.item_ids.to_pylist(), dataset.train_counts()[1:].tolist(), strict=True))
    hits = ", ".join(f"{len(users)} by {name}" for name, users in found.items())
    print(f"\n{len(rare)} users bought an item next that has fewer than {RARE} training events. In the top 10: {hits}.")
    for start, end, user in zip(*dataset.held_out("test").spans(found[chosen][:_NUM_SHOWN]), strict=True):
        print(f"\n{dataset.user_ids[int(user)].as_py()} bought:")
        *history, target = _item_ids(dataset, start, end + 1)
        print("\n".join(_recommendation(recommender, history, target, counts)))
    examples = _write_examples(dataset, output / "examples.jsonl")
    newest = [str(item_id) for item_id in examples[0]["history"][-3:]]
    others = f"--model sasrec={output / 'pretrain' / 'sasrec'} --teacher {output / 'finetune'}"
    for line in (
        f"\nuse it:       slmrec recommend --model {folder} --history {','.join(newest)}",
        f'in Python:    slmrec.Recommender.from_pretrained("{folder}").recommend([{newest}])',
        f"as a page:    slmrec serve --model {folder} {others} --examples {output / 'examples.jsonl'}",
    ):
        _LOG.info(line)


def _recommendation(
    recommender: "Recommender", history: list[Any], target: Any, counts: dict[Any, int]
) -> Iterator[str]:
    """Yield the newest items of a history and the recommendations for it, as lines."""
    for item_id in history[-4:]:
        yield f"      {recommender.title(item_id)}"
    yield "  recommended (with the number of training events):"
    (best,) = recommender.recommend([history], k=10).to_lists()
    for rank, (item_id, _) in enumerate(best, start=1):
        bought = "  <- bought next" if item_id == target else ""
        yield f"  {rank:2d}. {recommender.title(item_id)} ({counts[item_id]}){bought}"


def _item_ids(dataset: "Dataset", start: int, end: int) -> list[Any]:
    return [dataset.item_ids[int(item) - 1].as_py() for item in dataset.flat[start:end]]


def _write_examples(dataset: "Dataset", path: Path) -> list[dict[str, Any]]:
    """Write the first users for the page of `slmrec serve --examples`, and return them."""
    users = [
        {"user_id": dataset.user_ids[user].as_py(), "history": _item_ids(dataset, start, end)}
        for user, (start, end) in enumerate(pairwise(dataset.offsets[: _NUM_EXAMPLES + 1].tolist()))
    ]
    with write_atomically(path) as temporary:
        temporary.write_text("".join(json.dumps(user) + "\n" for user in users), encoding="utf-8")
    return users
