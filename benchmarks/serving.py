"""Benchmark of a trained model in use: one request, one event of a session, many users, a large catalogue.

The baseline runs the same model folder in the common way: every history is padded to the longest one that the model
reads, with the prompt in front of each, followed by a softmax over all items and a full sort, from which seen items are
removed; the members of an ensemble run one after the other. Both sides run in turn in every round.

A request is timed as `Recommender.recommend`, including its table. An event of a session is timed in the engine of the
server, including ranking, without HTTP. The window of a full session is slid before the event, as the server does when
it is idle (its time is `pause`); the event is also timed without that (`no_pause`). The share of matrix products is the
time of the bare products of the model and the catalogue, one by one on the same shapes, divided by the time of the
whole command `slmrec recommend` (reading, ranking and writing, without loading the model). The products are those of
transformers' own layers; fused layers compute no queries that the last layer does not use.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from slmrec import Recommender
    from slmrec.types import SequenceEncoder

K = 10
LARGE_ITEMS, LARGE_WIDTH = 1_000_000, 128
EVENT_LENGTHS = (5, 20, 50, 200)
Histories = list[list[Any]]


def main() -> None:
    """Run the benchmark, print the numbers and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a student, such as OUT/distill")
    parser.add_argument("--data", type=Path, required=True, help="data set that the model was trained on, OUT/prepare")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    parser.add_argument("--requests", type=int, default=500, help="number of requests of one user")
    parser.add_argument("--users", type=int, default=16_384, help="number of users of the batch command")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=100, help="number of events for each session length")
    parser.add_argument("--large-items", type=int, default=LARGE_ITEMS, help="number of items of the large catalogue")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(JOBS[options.job](options)))
        return
    report = {job: _in_a_process(job) for job in JOBS}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def _in_a_process(job: str) -> Any:
    """Run a job in a new process, so that peak memory is measured per job."""
    command = [sys.executable, __file__, *sys.argv[1:], "--job", job]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def one_request(options: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds of requests of one random user each; the baseline has batches of one too."""
    recommender, histories = _load(options)
    naive = _Naive(recommender)
    drawn = histories[: options.requests]
    sides: dict[str, Callable[[Histories], Any]] = {"ours": lambda some: recommender.recommend(some, K), "naive": naive}
    for ask in sides.values():
        for history in drawn[:20]:
            ask([history])
    times: dict[str, list[float]] = {name: [] for name in sides}
    for history in drawn:
        for name, ask in sides.items():
            times[name].append(1e3 * _seconds(lambda ask=ask, history=history: ask([history])))  # type: ignore[misc]
    found = {
        f"{name}_p{share}_ms": float(np.percentile(values, share))
        for name, values in times.items()
        for share in (50, 90, 99)
    }
    return found | {"speedup_p50": found["naive_p50_ms"] / found["ours_p50_ms"], "requests": len(drawn)}


def appended_event(options: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds of one more event of a session by its number of items; the baseline reads all items."""
    from slmrec.serving.engine import Engine
    from slmrec.serving.limits import Limits
    from slmrec.serving.loading import load
    from slmrec.serving.messages import Query

    loaded = load(options.model)
    engine, naive = Engine(loaded, Limits()), _Naive(loaded.recommender)
    item_ids, draw = loaded.recommender.vocabulary.item_ids.to_pylist(), np.random.default_rng(0)
    found: dict[str, float] = {
        "events": options.events,
        "max_history_items": loaded.recommender.model.max_history_items,
    }
    for length in EVENT_LENGTHS:
        times: dict[str, list[float]] = {"event": [], "no_pause": [], "pause": [], "naive": []}
        for _ in range(options.events + 5):
            *before, item = (item_ids[place] for place in draw.integers(0, len(item_ids), length))
            event = Query(session_id="s", events=[item], k=K)
            for name in ("no_pause", "event"):
                engine.answer([[Query(session_id="s", history=before, k=K)]])
                if name == "event":
                    times["pause"].append(1e3 * _seconds(engine.read_ahead))
                times[name].append(1e3 * _seconds(lambda event=event: engine.answer([[event]])))  # type: ignore[misc]
            times["naive"].append(1e3 * _seconds(lambda whole=[*before, item]: naive([whole])))  # type: ignore[misc]
        middle = {name: float(np.median(values[5:])) for name, values in times.items()}
        found |= {f"items_{length}_{name}_p50_ms": value for name, value in middle.items()}
        found |= {
            f"items_{length}_event_p99_ms": float(np.percentile(times["event"][5:], 99)),
            f"items_{length}_speedup_p50": middle["naive"] / middle["event"],
        }
    return found


def batch(options: argparse.Namespace) -> dict[str, float]:
    """Return users per second of the batch command and of the baseline, and the share of matrix products."""
    from bench import flop

    recommender, histories = _load(options)
    many = [histories[user % len(histories)] for user in range(options.users)]
    few, naive = many[:1024], _Naive(recommender)
    products = _products(recommender, many)
    rates: dict[str, list[float]] = {"ours": [], "naive": [], "command": [], "share": [], "gflop": []}
    naive(few[:256])
    for _ in range(options.rounds):
        rates["ours"].append(len(few) / _seconds(lambda: recommender.recommend(few, K)))
        rates["naive"].append(
            len(few) / _seconds(lambda: [naive(few[at : at + 256]) for at in range(0, len(few), 256)])
        )
        seconds = _command(options.model, many)
        alone = _multiplied(products)
        rates["command"].append(len(many) / seconds)
        rates["share"].append(alone / seconds)
        rates["gflop"].append(flop(products) / alone / 1e9)
    middle = {name: float(np.median(values)) for name, values in rates.items()}
    return {
        "python_users_per_s": middle["ours"],
        "naive_users_per_s": middle["naive"],
        "speedup": float(np.median(np.divide(rates["ours"], rates["naive"]))),
        "command_users_per_s": middle["command"],
        "command_share_of_matmul": middle["share"],
        "matmul_gflop_per_s": middle["gflop"],
        "gflop_per_user": flop(products) / len(many) / 1e9,
        "users": len(many),
        "rounds": options.rounds,
    }


def large_catalogue(options: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds of exact top-k in a large catalogue, and the memory of vectors and of a request."""
    import torch

    from slmrec.topk import by_columns, top_k
    from slmrec.training.memory import growth_mb

    torch.manual_seed(0)
    plain_items = torch.randn(options.large_items + 1, LARGE_WIDTH)
    items = by_columns(plain_items)
    users, seen = torch.randn(100, 1, LARGE_WIDTH), torch.randint(1, options.large_items, (1, 9))

    def naive(user: torch.Tensor) -> None:
        torch.softmax(user @ plain_items[1:].T, dim=1).argsort(dim=1, descending=True)[:, :K]

    with torch.inference_mode():
        for user in users[:3]:
            top_k(user, items, K, excluded=seen)
        ours = [1e3 * _seconds(lambda user=user: top_k(user, items, K, excluded=seen)) for user in users]  # type: ignore[misc]
        plain = [1e3 * _seconds(lambda user=user: naive(user)) for user in users[:10]]  # type: ignore[misc]
        growth = growth_mb(lambda: top_k(users[0], items, K, excluded=seen))
    return {
        "items": options.large_items,
        "width": LARGE_WIDTH,
        "p50_ms": float(np.percentile(ours, 50)),
        "p99_ms": float(np.percentile(ours, 99)),
        "naive_p50_ms": float(np.percentile(plain, 50)),
        "speedup_p50": float(np.percentile(plain, 50) / np.percentile(ours, 50)),
        "vectors_mb": items.numel() * 4 / 2**20,
        "request_mb": growth,
    }


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Return the hardware, versions and load of this machine."""
    import os

    from bench import hardware

    return hardware() | {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]}


JOBS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "machine": machine,
    "one_request": one_request,
    "appended_event": appended_event,
    "batch": batch,
    "large_catalogue": large_catalogue,
}


class _Naive:
    """Baseline: top-k lists of one batch of histories in the common way."""

    def __init__(self, recommender: "Recommender") -> None:
        from slmrec.models.ensemble import Ensemble

        model, self._recommender = recommender.model, recommender
        weights, members = {"model": 1.0}, {"model": model}
        if isinstance(model, Ensemble):
            weights, members = model.config.weights, dict(model.members.items())
        self._encoders = [(weights[name], _padded(member)) for name, member in members.items()]
        self._items, self._width = recommender.ranker.model.item_vectors().contiguous(), model.max_history_items

    def __call__(self, histories: Histories) -> list[list[int]]:
        import torch
        from torch.nn import functional as F

        from slmrec.data.batching import pad_histories
        from slmrec.types import Histories as Padded

        known = [self._recommender.catalogue.known(history) for history in histories]
        items, lengths, _ = pad_histories(known, self._width)
        padded = Padded(F.pad(items, (0, self._width - items.shape[1])), lengths)
        with torch.inference_mode():
            users = torch.cat([weight * encoder.encode(padded).users for weight, encoder in self._encoders], dim=1)
            scores = torch.softmax(users @ self._items.T, dim=1)
            order = scores.argsort(dim=1, descending=True)
        return [
            [item for item in row.tolist() if item and item not in set(seen)][:K]
            for row, seen in zip(order[:, : K + 1 + max(map(len, known))], known, strict=True)
        ]


def _padded(model: "SequenceEncoder") -> "SequenceEncoder":
    """Return the padded form of a decoder; SASRec always runs on padded batches."""
    from slmrec.models.decoder import DecoderRecommender
    from slmrec.models.padded import PaddedEncoder

    return PaddedEncoder(model, model.max_history_items).eval() if isinstance(model, DecoderRecommender) else model


def _load(options: argparse.Namespace) -> "tuple[Recommender, Histories]":
    """Return the model, and the histories at test time in random order."""
    from slmrec import Recommender
    from slmrec.data.dataset import Dataset

    recommender, dataset = Recommender.from_pretrained(options.model), Dataset.load(options.data)
    samples, item_ids = dataset.held_out("test"), dataset.item_ids.to_pylist()
    starts, ends, _ = samples.spans(np.random.default_rng(0).permutation(len(samples)))
    histories = [[item_ids[i - 1] for i in samples.flat[a:b]] for a, b in zip(starts, ends, strict=True)]
    return recommender, histories


def _products(recommender: "Recommender", histories: Histories) -> list[Any]:
    """Return the matrix products of answering histories: those of the model for each batch, and of the catalogue."""
    from bench import Product, products_of

    from slmrec.data.batching import pad_histories
    from slmrec.inference.batch.recommend_file import CHUNK_USERS
    from slmrec.inference.recommender import BATCH_USERS
    from slmrec.types import Batch

    known, found = [recommender.catalogue.known(history) for history in histories], []
    num_items, width = recommender.model.item_vectors().shape
    for at in range(0, len(known), CHUNK_USERS):
        ordered = sorted(known[at : at + CHUNK_USERS], key=len)
        for start in range(0, len(ordered), BATCH_USERS):
            padded = pad_histories(ordered[start : start + BATCH_USERS], recommender.model.max_history_items)
            some = Batch(padded, padded.lengths, every_position=False)  # without a backward pass targets do not matter
            *of_the_model, _ = products_of(recommender.model, some, backward=False)  # type: ignore[arg-type]
            found += [*of_the_model, Product(len(padded.lengths), width, num_items - 1)]
    return found


def _multiplied(products: list[Any]) -> float:
    """Return the seconds of the bare products, one after the other, in float32."""
    import torch

    left = torch.randn(max(product.rows * product.inner for product in products))
    right = torch.randn(max(product.inner * product.columns for product in products))
    out = torch.empty(max(product.rows * _aligned(product.columns) for product in products))

    def multiply() -> None:
        for rows, inner, columns in products:
            operands = left[: rows * inner].view(rows, inner), right[: inner * columns].view(inner, columns)
            torch.mm(*operands, out=out[: rows * _aligned(columns)].view(rows, -1)[:, :columns])

    return _seconds(multiply)


def _aligned(columns: int) -> int:
    """Round up to a multiple of 64: products into aligned rows are faster."""
    return -(-columns // 64) * 64


def _command(model: Path, histories: Histories) -> float:
    """Return the seconds of the batch command on a Parquet file, without the time to open the model."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from slmrec import Recommender
    from slmrec.inference.batch.recommend_file import RankOptions, recommend_file

    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.parquet", Path(folder) / "out.parquet"
        pq.write_table(pa.table({"user_id": range(len(histories)), "history": histories}), source)
        loading = _seconds(lambda: Recommender.from_pretrained(model))
        return _seconds(lambda: recommend_file(model, source, target, RankOptions(K))) - loading


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
