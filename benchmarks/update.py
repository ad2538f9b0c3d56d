"""A month of `slmrec update`, against training anew every night, and against the first model left as it was.

Simulates a shop for some months: customers come and go, tastes and the popularity of items drift, and a quarter of the
items is released in the course of the last month. The first model is trained on the months before. Then, every day, the
day's events are given to `update`. On some nights a model is also trained anew, from random weights to its own end, on
the same events with the same events held out. The three models rank the events of the next day: each is a target, its
history all earlier events of the customer. A model that lacks an item ranks it last and does not read it.

Seconds are those of the processor (the machine may be busy): of the whole update, with reading and evaluation, and of
the training anew with the same reading and evaluation. Writes benchmarks/results/update.json after every day.

Run: python benchmarks/update.py FOLDER [--days 30] [--full-every 1] [--epochs 40] [--budget 2m]
"""

import argparse
import csv
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bench
import numpy as np
from numpy.typing import NDArray

import slmrec
import slmrec.run
from slmrec import Config
from slmrec.config.load import load_config
from slmrec.data.dataset import Samples
from slmrec.data.simulate import Shop
from slmrec.evaluation.metrics import user_metrics
from slmrec.evaluation.rank import EncoderScorer, evaluate_scorer
from slmrec.evaluation.statistics import bootstrap_interval
from slmrec.folders import link_in_place
from slmrec.models.folder import load_recommender
from slmrec.pipeline.stage import run_step
from slmrec.pipeline.table import steps
from slmrec.updates.update import update

DAY, START = 86_400, 1_700_000_000
MAX_PER_DAY = 4
NEW_ITEMS, POPULAR = 0.25, 2.0
"""Share of the items that are released in the days of updates, and how much more popular they are."""
MODEL = "sasrec"


class Size(NamedTuple):
    """Sizes of the shop and of the model."""

    history_days: int
    num_users: int
    users_a_day: int
    activities: int
    """Number of groups of about 49 items."""
    hidden_size: int
    num_layers: int
    components: int


SIZES = {"small": Size(60, 1_000, 120, 6, 32, 1, 64), "medium": Size(90, 2_000, 220, 12, 64, 2, 128)}
Values = NDArray[np.float64]


def main() -> None:
    """Simulate the shop, train, update every day, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the logs and models, which is emptied first")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--full-every", type=int, default=1, help="nights between two trainings anew")
    parser.add_argument("--epochs", type=int, default=25, help="epochs of a training from random weights, at most")
    parser.add_argument("--budget", default="2m", help="time budget of an update")
    parser.add_argument("--size", choices=SIZES, default="small", help="sizes of the shop and of the model")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "update.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    slmrec.run.write_report = lambda output: None  # type: ignore[assignment]
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    size = SIZES[arguments.size]
    days = list(simulate(arguments.days + 1, size))
    known = [event for day in days[: size.history_days] for event in day]
    log = write(arguments.folder / "history.csv", known)
    write_items(arguments.folder / "items.csv", size.activities)
    started = time.process_time()
    config = settings(arguments.epochs, size)
    run = slmrec.fit(log, str(arguments.folder / "items.csv"), config=config, output=arguments.folder / "run")
    link_in_place(run.folder / "best", run.folder / "pretrain" / MODEL)
    report: dict[str, Any] = {
        "settings": {key: str(value) for key, value in vars(arguments).items() if key != "folder"}
    }
    report |= {
        "first": {"seconds": time.process_time() - started, "events": len(known), "verdict": run.verdict["ship"]}
    }
    report |= {"days": []}
    for number in range(arguments.days):
        day, following = days[size.history_days + number], days[size.history_days + number + 1]
        known += day
        row, values = one_day(arguments, run.folder, number + 1, known, day, following)
        report["days"].append(row)
        print(json.dumps(row), flush=True)
        for name, own in values.items():
            report.setdefault("users", {}).setdefault(name, []).append(own.round(4).tolist())
        summary = report | {"summary": summarise(report)} | bench.hardware()
        arguments.output.write_text(json.dumps({k: v for k, v in summary.items() if k != "users"}, indent=1) + "\n")
    print(json.dumps(summarise(report), indent=1))


def simulate(num_days: int, size: Size) -> Iterator[list[tuple[str, str, int]]]:
    """Yield the events of each day, those of the history first."""
    shop, random = Shop.generate(3, size.activities), np.random.default_rng(3)
    total = size.history_days + num_days
    is_new = random.random(shop.num_items + 1) < NEW_ITEMS
    release = np.where(is_new, random.uniform(size.history_days, total - 1, shop.num_items + 1), -1)
    shop = replace(shop, released=(START + release * DAY).astype(np.int64))
    later = shop.popularity.copy()
    later[1:] = np.concatenate(
        [random.permutation(part) for part in np.split(shop.popularity[1:], shop.sizes.cumsum()[:-1])]
    )
    bases = shop.base, random.permutation(shop.base)
    boost = np.where(is_new, POPULAR, 1.0)
    items, lengths = np.zeros((size.num_users, 400), np.int64), np.zeros(size.num_users, np.int64)
    joined = np.sort(random.uniform(-40, total, size.num_users))
    for day in range(total):
        share = day / total
        popularity = boost * ((1 - share) * shop.popularity + share * later)
        today = replace(shop, base=(1 - share) * bases[0] + share * bases[1], popularity=popularity)
        there = np.flatnonzero((joined <= day) & (lengths < 300))
        users = random.choice(there, min(len(there), size.users_a_day), replace=False)
        events = []
        counts = random.integers(1, MAX_PER_DAY, len(users), endpoint=True)
        for turn in range(MAX_PER_DAY):
            buying = users[counts > turn]
            times = START + day * DAY + np.sort(random.integers(turn * 20_000, turn * 20_000 + 20_000, len(buying)))
            longest = max(1, int(lengths[buying].max()))
            weights = today.predict(items[buying, :longest], lengths[buying], times)
            drawn = (
                weights.cumsum(axis=1) > random.random((len(buying), 1)) * weights.sum(axis=1, keepdims=True)
            ).argmax(axis=1)
            items[buying, lengths[buying]] = drawn
            lengths[buying] += 1
            events += [
                (f"u{user:05d}", shop.item_ids[item - 1], int(at))
                for user, item, at in zip(buying, drawn, times, strict=True)
            ]
        yield sorted(events, key=lambda event: event[2])


def settings(epochs: int, size: Size) -> Config:
    """Return the settings of the first training, and of every training anew."""
    train = {"learning_rate": 1e-3, "num_train_epochs": epochs, "per_device_train_batch_size": 128}
    train |= {"lr_scheduler_type": "cosine", "warmup_steps": 50, "early_stopping_patience": 8}
    model = {
        "kind": "sasrec",
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": 2,
        "dropout": 0.3,
    }
    model |= {
        "positions": "relative",
        "supervision": "every_position",
        "max_history_items": 30,
        "item_text": "words",
        "item_side": "both",
    }
    evaluate = {"protocols": ["full_history_excluded"], "timing_users": 200}
    return Config.model_validate(
        {
            "item_text": {"words": {"source": "words", "num_components": size.components}},
            "pretrain": {MODEL: model | {"train": train}},
        }
        | {"distill": {"teacher": None}, "evaluate": evaluate}
    )


def one_day(
    arguments: argparse.Namespace, output: Path, number: int, known: list[Any], day: list[Any], following: list[Any]
) -> tuple[dict[str, Any], dict[str, Values]]:
    """Update, train anew where it is due, and rank the events of the next day."""
    started, wall = time.process_time(), time.monotonic()
    items = str(arguments.folder / "items.csv")
    record = update(output, write(arguments.folder / "day.csv", day), items, time_budget=arguments.budget)
    seconds, wall = time.process_time() - started, time.monotonic() - wall
    assert record is not None
    folder = output / "updates" / f"{number:04d}"
    trained = json.loads((folder / "pretrain" / MODEL / "metrics.json").read_text())["wall_s"]
    models = {"first": output / "pretrain" / MODEL, "update": output / "best"}
    row: dict[str, Any] = {"day": number, "events": len(day), "new_items": record["num_new_items"]}
    row |= {"moved": record["moved"], "update_s": round(seconds, 2), "update_wall_s": round(wall, 2)}
    row |= {"update_training_wall_s": trained, "comparison": record["comparison"]}
    if number % arguments.full_every == 0:
        models["full"], row["full_training_s"] = train_anew(arguments.folder / "full", folder)
    values = {name: next_day(path, known, following) for name, path in models.items()}
    row |= {"ndcg@10": {name: round(float(own.mean()), 4) for name, own in values.items()}}
    for past in output.glob("updates/*"):  # the models before the last ones need no disk
        if int(past.name) < number - 2:
            shutil.rmtree(past / "prepare", ignore_errors=True)
    return row, values


def train_anew(target: Path, folder: Path) -> tuple[Path, float]:
    """Train the model from random weights on the data of an update, and return its folder and the seconds."""
    shutil.rmtree(target, ignore_errors=True)
    config = load_config(folder / "config.yaml", [])
    shutil.copytree(folder / "prepare", target / "prepare")
    step = next(step for step in steps(config) if step.model == MODEL)
    started = time.process_time()
    return run_step(step, config, target), round(time.process_time() - started, 2)


def next_day(model: Path, known: list[Any], following: list[Any]) -> Values:
    """Return the NDCG@10 of each event of a day."""
    recommender, vocabulary = load_recommender(model)
    numbers = {item: number for number, item in enumerate(vocabulary.item_ids.to_pylist(), 1)}
    histories: dict[str, list[int]] = {}
    for user, item, _ in known:
        histories.setdefault(user, []).append(numbers.get(item, 0))
    flat, spans, places = [0], [], []
    values = np.zeros(len(following))
    for place, (user, item, _) in enumerate(following):
        history = histories.setdefault(user, [])
        read = [one for one in history if one]
        if read and item in numbers:
            spans.append((len(flat), len(flat) + len(read)))
            flat += [*read, numbers[item]]
            places.append(place)
        history.append(numbers.get(item, 0))
    starts, ends = np.array(spans).T
    samples = Samples.of(np.array(flat), starts, ends, np.arange(len(spans)))
    rank = partial(evaluate_scorer, batch_size=256, protocols=("full_history_excluded",))
    values[places] = user_metrics(rank(EncoderScorer(recommender), samples)["full_history_excluded"])["ndcg@10"]
    return values


def summarise(report: dict[str, Any]) -> dict[str, Any]:
    """Return the means over the days, and intervals over the days."""
    rows, result = report["days"], {}
    means = {name: np.array([row["ndcg@10"].get(name, np.nan) for row in rows]) for name in ("first", "update", "full")}
    result["num_days"] = len(rows)
    result["ndcg@10"] = {name: float(np.nanmean(own)) for name, own in means.items() if not np.isnan(own).all()}
    ahead = means["update"] - means["first"]
    result["update - first"] = {"mean": float(ahead.mean()), "interval": list(bootstrap_interval(ahead))}
    both = ~np.isnan(means["full"])
    if both.any():
        of_update, of_full = means["update"][both], means["full"][both]
        result["nights_trained_anew"] = int(both.sum())
        result["update / full on these nights"] = float(of_update.mean() / of_full.mean())
        result["update - full on these nights"] = {
            "mean": float((of_update - of_full).mean()),
            "interval": list(bootstrap_interval(of_update - of_full)),
        }
        full = [row["full_training_s"] for row in rows if "full_training_s" in row]
        spent = [row["update_s"] for row in rows]
        result["seconds"] = {"update": float(np.mean(spent)), "full_training": float(np.mean(full))}
        result["seconds"]["share"] = result["seconds"]["update"] / result["seconds"]["full_training"]
    return result


def write(path: Path, events: list[Any]) -> str:
    """Write a log, and return its path."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("user_id", "item_id", "timestamp"), *events])
    return str(path)


def write_items(path: Path, activities: int) -> None:
    """Write the table of all items of the shop, those that are released later too."""
    shop = Shop.generate(3, activities)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("item_id", "title"), *zip(shop.item_ids, shop.titles, strict=True)])


if __name__ == "__main__":
    main()
