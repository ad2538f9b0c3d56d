"""Time and memory of `slmrec prepare`, from one million to a hundred million events.

Generates logs of random events (Zipf-like items, 20 events per user, integer ids and seconds) and runs the command on
each in a new process. A plain pandas script does the same work on one of the smaller logs. Times are those of whole
processes, including start and checksums; memory is the largest resident set. Writes benchmarks/results/prepare.json.

Run: python benchmarks/prepare.py [--folder FOLDER_FOR_THE_LOGS] [--millions 1 5 20 100]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np

MILLION = 1_000_000
EVENTS_A_USER = 20
LARGEST_CSV = 20
"""Millions of events for which the log is also prepared from csv."""
PANDAS_AT = 5
"""Millions of events of the comparison with pandas."""
BARS = {20: (60.0, 4000.0), 100: (480.0, 10_000.0)}
"""Limits by millions of events: seconds and megabytes."""


def main() -> None:
    """Generate the logs, run the measurements, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "prepare.json")
    parser.add_argument("--folder", type=Path, help="folder that keeps the logs (default: deleted at the end)")
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 5, 20, 100])
    parser.add_argument("--pandas", nargs=2, metavar=("LOG", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pandas:
        prepare_with_pandas(*map(Path, arguments.pandas))
        return
    with TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = measure(folder, arguments.millions)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def measure(folder: Path, millions: list[int]) -> dict[str, Any]:
    """Return all numbers."""
    import bench

    results: dict[str, Any] = {}
    for number in millions:
        for kind in ("parquet", "csv"):
            if kind == "parquet" or number <= LARGEST_CSV:
                results |= measure_log(make_log(folder, number, kind), f"{kind}_{number}m", number == PANDAS_AT)
    seconds = [results[f"parquet_{number}m_s"] for number in millions]
    if len(millions) > 1:
        results["slope"] = float(np.polyfit(np.log(millions), np.log(seconds), 1)[0])
        results["slope_largest"] = float(np.log(seconds[-1] / seconds[-2]) / np.log(millions[-1] / millions[-2]))
    results["claims_hold"] = all(
        results[f"{kind}_{number}m_s"] <= most_s and results[f"{kind}_{number}m_peak_mb"] <= most_mb
        for number, (most_s, most_mb) in BARS.items()
        for kind in ("parquet", "csv")
        if f"{kind}_{number}m_s" in results
    )
    return results | bench.hardware()


def make_log(folder: Path, millions: int, kind: str) -> Path:
    """Return the path of a log of random events in random order, and generate it if needed."""
    path = folder / f"{millions}m.{kind}"
    if not path.exists():
        num_events = millions * MILLION
        unit = "((hash(n * 31 + {0}) % 1000000) / 1e6)"
        query = f"""
            select (hash(n) % {num_events // EVENTS_A_USER})::bigint as user_id,
                   floor(exp({unit.format(7)} * ln({max(1000, num_events // 100)})))::bigint as item_id,
                   (1600000000 + hash(n * 17 + 3) % 100000000)::bigint as timestamp
            from range({num_events}) as numbers(n)"""
        options = "format parquet" if kind == "parquet" else "header"
        with duckdb.connect() as engine:
            engine.execute(f"copy ({query}) to '{path}.partial' ({options})")
        Path(f"{path}.partial").rename(path)
    return path


def measure_log(log: Path, name: str, with_pandas: bool) -> dict[str, float]:
    """Return seconds and memory of the command on a log and, on request, of pandas."""
    command = [sys.executable, "-m", "slmrec", "prepare", "--input", str(log), "--output"]
    found = {f"{name}_{key}": value for key, value in run(command, log.parent / "prepared").items()}
    if with_pandas:
        script = [sys.executable, __file__, "--pandas", str(log)]
        slow = run(script, log.parent / "prepared")
        found |= {f"{name}_pandas_{key}": value for key, value in slow.items()}
        found[f"{name}_speedup_over_pandas"] = slow["s"] / found[f"{name}_s"]
        found[f"{name}_memory_over_pandas"] = found[f"{name}_peak_mb"] / slow["peak_mb"]
    print(json.dumps(found), flush=True)
    return found


def run(command: list[str], output: Path) -> dict[str, float]:
    """Run a process that writes into a folder; return its seconds, largest resident set, and output."""
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    process = subprocess.Popen([*command, str(output)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    written = sum(file.stat().st_size for file in output.glob("*.parquet")) / MILLION
    shutil.rmtree(output)
    return {"s": round(seconds, 2), "peak_mb": round(usage.ru_maxrss / 1024, 1), "parquet_mb": round(written, 1)}


def prepare_with_pandas(log: Path, output: Path) -> None:
    """Prepare the same tables with pandas: drop short users, number the ids, sort, count positions."""
    import pandas as pd

    events = pd.read_parquet(log) if log.suffix == ".parquet" else pd.read_csv(log)
    events = events[events.groupby("user_id")["item_id"].transform("size") >= 3]
    users, user_ids = pd.factorize(events["user_id"], sort=True)
    items, item_ids = pd.factorize(events["item_id"], sort=True)
    events = pd.DataFrame({"user": users + 1, "item": items + 1, "timestamp": events["timestamp"].to_numpy()})
    events = events.sort_values(["user", "timestamp"], kind="stable")
    events["position"] = events.groupby("user").cumcount()
    output.mkdir(parents=True)
    events.to_parquet(output / "interactions.parquet", index=False)
    pd.DataFrame({"user": range(1, len(user_ids) + 1), "user_id": user_ids}).to_parquet(output / "users.parquet")
    pd.DataFrame({"item": range(1, len(item_ids) + 1), "item_id": item_ids}).to_parquet(output / "items.parquet")


if __name__ == "__main__":
    main()
