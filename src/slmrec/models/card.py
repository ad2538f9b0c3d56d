"""The card of a model folder: what people and hubs are told of a model."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from slmrec.models.loader import Model, decoder_of

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_TASK = {"type": "sequential-recommendation", "name": "Sequential recommendation"}


@dataclass(frozen=True)
class Measured:
    """What an evaluation found of a model under one protocol."""

    protocol: str
    settings: Mapping[str, Any]
    """Of the protocol: `split`, `eval_mode`, `exclude_history`, `num_negatives`, `ties`, `seed`."""
    metrics: Mapping[str, float]
    num_users: int
    num_items: int
    """Of the catalogue at that time."""
    command: str
    """By which it was measured."""


@dataclass(frozen=True)
class About:
    """What the card of a model says, beyond what the model itself tells."""

    title: str = "SLMRec"
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the validation split, full ranking, history not excluded."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """How the data was prepared: `rules`, and the `sources` with their checksums."""
    measured: tuple[Measured, ...] = ()
    """What `evaluate` found, the primary protocol first."""


def card(model: Model, about: About, item_id: str | int, vocabulary_file: str) -> str:
    """The text of a card, with the metadata that hubs read at its head.

    Args:
        model: whose card it is.
        about: what else is known of it.
        item_id: an item, for the example.
        vocabulary_file: where its items stand.
    """
    use = f'from slmrec import Recommender\n\nRecommender.from_pretrained("this folder").recommend([[{item_id!r}]])'
    each_its_own = json.loads(json.dumps(_metadata(model, about)))  # else what is alike is written as a reference
    metadata = yaml.safe_dump(each_its_own, sort_keys=False, allow_unicode=True)
    text = (
        f"---\n{metadata}---\n\n# {about.title}\n\n"
        f"Next-item recommendation for {model.num_items} items, {model.num_parameters():,} parameters.\n\n"
        f"```python\n{use}\n```\n\n"
        f"A history is a list of item ids, oldest first, of which the newest {model.max_history_items} are read; items "
        f"that are not in `{vocabulary_file}` are left out. Without a known item the most popular items are given.\n"
    )
    for measured in about.measured:
        text += f"\n{_described(measured)}\n\n{_table(measured.metrics)}"
    if about.metrics:
        text += f"\nValidation split, full ranking, history not excluded:\n\n{_table(about.metrics)}"
    rules = about.preprocessing.get("rules")
    return text + (f"\nThe data was prepared with `{json.dumps(rules)}`.\n" if rules else "")


def _described(measured: Measured) -> str:
    settings = measured.settings
    sampled, history = settings["num_negatives"], "excluded" if settings["exclude_history"] else "not excluded"
    against = f"{sampled} sampled items" if sampled else f"all {measured.num_items:,} items"
    return (
        f"Protocol `{measured.protocol}`: split `{settings['split']}`, {measured.num_users:,} users, ranked against "
        f"{against}, history {history}, ties {settings['ties']}, seed {settings['seed']}; measured by "
        f"`{measured.command}`:"
    )


def _table(metrics: Mapping[str, float]) -> str:
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    return f"| metric | value |\n|---|---|\n{rows}\n"


def _metadata(model: Model, about: About) -> dict[str, Any]:
    """The head of the card, as hubs read it."""
    metadata: dict[str, Any] = {"library_name": "slmrec", "pipeline_tag": "other"}
    decoder = decoder_of(model)
    backbone = str(decoder and decoder.config.backbone)
    hub_id = _HUB_IDS.get(backbone, backbone)
    if HUB_ID.fullmatch(hub_id):
        metadata["base_model"] = hub_id
    metadata["tags"] = ["sequential-recommendation"]
    results = _results(about)
    if results:
        metadata["model-index"] = [{"name": about.title, "results": results}]
    return metadata


def _results(about: About) -> list[dict[str, Any]]:
    """Of a model index: one of each protocol on the test split, and one of validation."""
    files = [str(source.get("file")) for source in about.preprocessing.get("sources", ())]
    data = {"name": files[0] if files else "unnamed", "type": files[0] if files else "unnamed"}
    results: list[dict[str, Any]] = []
    for measured in about.measured:
        told = {"protocol": measured.protocol, **measured.settings}
        results.append(_result(data | {"config": measured.protocol, "split": "test", "args": told}, measured.metrics))
    if about.metrics:
        results.append(_result(data | {"split": "validation"}, about.metrics))
    return results


def _result(data: dict[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    values = [{"type": name, "value": round(value, 6)} for name, value in metrics.items()]
    return {"task": _TASK, "dataset": data, "metrics": values}
