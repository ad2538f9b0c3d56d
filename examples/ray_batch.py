"""Recommends for many users with Ray Data: python examples/ray_batch.py MODEL HISTORIES OUTPUT.

HISTORIES is a Parquet file or folder with the columns `user_id` and `history` (item ids, oldest first), OUTPUT a
folder. All three may be URIs; on several machines they must be URIs or paths that all machines see. Needs
`pip install 'slmrec[ray]'`.
"""

import sys
from pathlib import Path

import pyarrow as pa
import ray

from slmrec import Recommender


class Recommend:
    """Worker that opens the model once."""

    def __init__(self, model: str) -> None:
        self.recommender = Recommender.from_pretrained(model)

    def __call__(self, users: pa.Table) -> pa.Table:
        """Returns `user_id, item_id, score, rank` for some users."""
        return self.recommender.recommend(users, k=10).table


def main() -> None:
    """Reads histories, recommends on all cores of the cluster, and writes Parquet files."""
    if len(sys.argv) != 4:
        sys.exit("usage: python examples/ray_batch.py MODEL HISTORIES OUTPUT")
    model, histories, output = (path if "://" in path else str(Path(path).resolve()) for path in sys.argv[1:])
    ray.init()
    workers = ray.data.ActorPoolStrategy(min_size=1, max_size=int(ray.cluster_resources()["CPU"]))
    users = ray.data.read_parquet(histories, columns=["user_id", "history"])
    lists = users.map_batches(
        Recommend, fn_constructor_args=(model,), compute=workers, batch_size=4096, batch_format="pyarrow"
    )
    lists.write_parquet(output)


if __name__ == "__main__":
    main()
