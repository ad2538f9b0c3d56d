"""From three logs of strangers to a model by one command: is the time kept, and is the right model shipped?

Makes three logs: a shop's export (semicolons, headers of its own, a table of articles), a log of games with their
titles inside, and 300 users of a site without titles. For each, `slmrec run --input LOG --output OUT --time-budget B`
is timed, and the verdict is held against three seeds that are trained to the end, without a budget. The shipped model
is right if it is the best of popularity, co-occurrence, SASRec and student in the mean of the seeds, or if the 95 %
interval of its difference to the best (by users, on the test items) reaches 0. Runs that are done are kept in the
folder. Writes benchmarks/results/own_logs.json.

Run: python benchmarks/own_logs.py FOLDER [--minutes 5]
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bench
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slmrec.data.simulate import Shop
from slmrec.evaluation.statistics import bootstrap_interval

SEEDS = (1, 2, 3)
MODELS = ("popularity", "cooccurrence", "sasrec", "student")
"""Models that may be right; a log without titles, too short for some, has fewer."""


def main() -> None:
    """Make the logs, run everything that is missing, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the logs and runs")
    parser.add_argument("--minutes", type=float, default=5, help="time budget of each run")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "own_logs.json")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    for name, inputs in make_logs(arguments.folder).items():
        report[name] = measure(arguments.folder / name, inputs, arguments.minutes)
        print(json.dumps({name: report[name]}, indent=1), flush=True)
        arguments.output.write_text(json.dumps(report | bench.hardware(), indent=1) + "\n", encoding="utf-8")


def make_logs(folder: Path) -> dict[str, list[str]]:
    """Write the three logs, and return the arguments of the command for each."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"shop": shop_export(folder), "games": games_log(folder), "sessions": session_log(folder)}


def shop_export(folder: Path) -> list[str]:
    """Write the export of a shop, and return the arguments that read it."""
    log, articles = folder / "export.csv", folder / "articles.csv"
    shop = Shop.generate(seed=11)
    rows = (
        (f"K{user:06d}", shop.item_ids[item - 1], day(seconds), 1) for user, item, seconds in events(shop, 1500, 11)
    )
    write(log, ("Customer No", "Article No", "Order date", "Quantity"), rows, ";")
    write(articles, ("Article No", "Description"), zip(shop.item_ids, shop.titles, strict=True), ";")
    columns = {"user_col": "Customer No", "item_col": "Article No", "time_col": "Order date"}
    columns |= {"items_id_col": "Article No", "title_col": "Description"}
    return [
        "--input",
        str(log),
        "--items",
        str(articles),
        *(f"prepare.{key}={value}" for key, value in columns.items()),
    ]


def games_log(folder: Path) -> list[str]:
    """Write a log that holds the titles of its items, and return the arguments that read it."""
    log, shop = folder / "games.csv", Shop.generate(seed=12)
    rows = ((user, item, shop.titles[item - 1], day(seconds)) for user, item, seconds in events(shop, 1000, 12))
    write(log, ("Customer ID", "game", "title", "when"), rows, ",")
    return ["--input", str(log), "prepare.user_col=Customer ID", "prepare.item_col=game"]


def session_log(folder: Path) -> list[str]:
    """Write a log of 300 users without titles, and return the arguments that read it."""
    log, shop = folder / "sessions.csv", Shop.generate(seed=13, num_activities=8)
    write(log, ("user_id", "item_id", "timestamp"), events(shop, 300, 13), ",")
    return ["--input", str(log)]


def events(shop: Shop, num_users: int, seed: int) -> Iterable[tuple[int, int, int]]:
    """Return user, item and seconds of each purchase, in the order of time."""
    purchases = shop.simulate(num_users, seed)
    users, positions = np.nonzero(purchases.items)
    order = np.argsort(purchases.timestamps[users, positions], kind="stable")
    for user, position in zip(users[order], positions[order], strict=True):
        yield int(user), int(purchases.items[user, position]), int(purchases.timestamps[user, position])


def day(seconds: int) -> str:
    """Return a time to the minute, as exports write it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], separator: str) -> None:
    """Write a table of text, unless it is there."""
    if path.exists():
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def measure(folder: Path, inputs: list[str], minutes: float) -> dict[str, Any]:
    """Return the time of the command, its verdict and whether the seeds agree with it."""
    shipped = run(folder / f"budget_{minutes:g}", [*inputs, "--time-budget", f"{minutes:g}m"])
    verdict = json.loads((shipped / "verdict.json").read_text(encoding="utf-8"))
    runs = [run(folder / f"seed_{seed}", [*inputs, f"seed={seed}"]) for seed in SEEDS]
    quality = {name: np.mean([ndcg(path)[name] for path in runs], axis=0) for name in MODELS if name in ndcg(runs[0])}
    best = max(quality, key=lambda name: float(quality[name].mean()))
    timed = json.loads((shipped / "seconds.json").read_text(encoding="utf-8"))
    report = {"budget_s": 60 * minutes, **timed, "share_of_budget": timed["wall_s"] / (60 * minutes)}
    report |= {"shipped": verdict["ship"], "difference": verdict["difference"], "interval": verdict["interval"]}
    report |= {"ndcg@10_of_seeds": {name: float(values.mean()) for name, values in quality.items()}, "best": best}
    other = quality.get(verdict["ship"])
    if other is not None:
        low, high = (0.0, 0.0) if best == verdict["ship"] else bootstrap_interval(other - quality[best])
        report |= {"shipped_minus_best": [low, high], "right": high >= 0}
    return report


def run(output: Path, arguments: list[str]) -> Path:
    """Execute `slmrec run` unless it is done, with its seconds and the load of the machine beside it."""
    done = output / "seconds.json"
    if not done.exists():
        start, load = time.perf_counter(), os.getloadavg()[0]
        command = [sys.executable, "-m", "slmrec", "run", *arguments, "--output", str(output), "--quiet"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-2000:]}")
        seconds = time.perf_counter() - start
        done.write_text(json.dumps({"wall_s": seconds, "load": (load + os.getloadavg()[0]) / 2}), encoding="utf-8")
    return output


def ndcg(output: Path) -> dict[str, NDArray[np.float64]]:
    """Return NDCG@10 of each user on the test items, by model, under the primary protocol of the run."""
    primary = json.loads((output / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["primary"]
    table = pq.read_table(output / "evaluate" / "per_user.parquet")
    table = table.filter(pc.equal(table["protocol"].cast("string"), primary))
    names, ranks = np.array(table["model"].to_pylist()), table["rank"].to_numpy()
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0.0)
    return {str(name): gains[names == name] for name in np.unique(names)}


if __name__ == "__main__":
    main()
