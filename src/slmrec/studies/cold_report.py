"""Results of the study of cold items: sentences and a table, as JSON, as Markdown and on the terminal."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from slmrec.config import Config
from slmrec.evaluation.metrics import Floats, user_metrics
from slmrec.evaluation.statistics import CONFIDENCE, Ratio, compare_means, compare_ratio
from slmrec.files import write_json, write_text
from slmrec.studies.compare import numbers
from slmrec.studies.evaluated import SPLIT_NAMES, label
from slmrec.studies.tables import markdown_table, show_sentences, show_table, signed

_LOG = logging.getLogger(__name__)
PROTOCOL = "full_history_excluded"
"""Protocol under which withheld items are ranked: the whole catalogue without the history."""
METRIC = "ndcg@10"
"""Metric of the sentences and ratios."""
SHOWN = (METRIC, "hit@10", "mrr")
"""Metrics of the numbers."""
TRAINED, WITHHELD, FLOOR = "trained", "withheld", "floor"
"""Models that rank: those that were trained on everything, those without the withheld items, and these with the mean of
all item vectors in place of the withheld ones."""
COLUMNS = ("model", "trained on everything", "withheld", "share kept", "floor", "times the floor", "over the floor")
FEW_USERS = 30
"""Number of users below which bootstrap intervals are too narrow."""
Content = dict[str, Any]
Values = dict[str, dict[str, Floats]]
"""(num_users,) values of a metric, by model and by `TRAINED`, `WITHHELD` or `FLOOR`."""


def report(output: Path, folder: Path, config: Config, split: str, *, shown: bool = True) -> Content:
    """Write `cold.json` and `cold.md`.

    Args:
        output: `OUT/cold`.
        folder: Folder with the ranks of the split.
        config: The recipe.
        split: Split whose held-out items were ranked.
        shown: Print the table and the sentences.

    Returns:
        The content of `cold.json`.
    """
    content = _content(folder, config, split)
    write_json(output / "cold.json", content)
    write_text(output / "cold.md", _markdown(content))
    if shown:
        show_table(title_of(content), COLUMNS, rows_of(content))
        show_sentences(content["sentences"])
    _LOG.info("cold: written to %s and %s", output / "cold.md", output / "cold.json")
    return content


def user_values(folder: Path, metric: str = METRIC) -> Values:
    """Return the value of each user of an evaluation of cold items, by model and by what ranked."""
    table = pq.read_table(folder / "per_user.parquet").to_pandas()
    values: Values = {}
    for (model, items), rows in table.groupby(["model", "items"], sort=False):
        values.setdefault(model, {})[items] = user_metrics(np.asarray(rows["rank"], np.int64))[metric]
    return values


def _content(folder: Path, config: Config, split: str) -> Content:
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    by_metric = {metric: user_values(folder, metric) for metric in SHOWN}
    values = by_metric[METRIC]
    models = {}
    for name, own in values.items():
        means = {row: {metric: float(by_metric[metric][name][row].mean()) for metric in SHOWN} for row in own}
        models[name] = {
            "origin": facts["origin"][name],
            "means": means,
            "share_kept": asdict(compare_ratio(own[TRAINED], own[WITHHELD])),
            "times_floor": asdict(compare_ratio(own[FLOOR], own[WITHHELD])),
            "to_trained": numbers(compare_means(own[TRAINED], own[WITHHELD]), None),
            "to_floor": numbers(compare_means(own[FLOOR], own[WITHHELD]), None),
        }
    content: Content = {
        "split": split,
        "protocol": PROTOCOL,
        "compared_metric": METRIC,
        "confidence": CONFIDENCE,
        "seed": config.seed,
        "share": config.cold.share,
        "min_train_events": config.cold.min_train_events,
        **{name: facts[name] for name in ("num_items", "num_withheld_items", "num_users_without_history")},
        "num_users": len(next(iter(values.values()))[WITHHELD]),
        "models": models,
        "student_to_teacher": None,
    }
    if {"teacher", "student"} <= values.keys():
        compared = compare_means(values["teacher"][WITHHELD], values["student"][WITHHELD])
        content["student_to_teacher"] = numbers(compared, None)
    return content | {"sentences": list(_sentences(content))}


def _sentences(content: Content) -> list[str]:
    sentences = [
        f"{content['num_withheld_items']:,} of {content['num_items']:,} items left training and histories; the "
        f"held-out item of {content['num_users']:,} users is one of them."
    ]
    if content["num_users"] < FEW_USERS:
        sentences.append(f"These are fewer than {FEW_USERS} users, so the intervals are too narrow to decide by.")
    sentences += [_sentence(name, model) for name, model in content["models"].items()]
    if content["student_to_teacher"] is not None:
        result = content["student_to_teacher"]
        shown = "no difference was shown" if result["low"] <= 0 <= result["high"] else "the difference is clear"
        sentences.append(
            f"On withheld items the student differs from the teacher by {signed(result)} {label(METRIC)}: {shown}."
        )
    return sentences


def _sentence(name: str, model: Content) -> str:
    means = {row: values[METRIC] for row, values in model["means"].items()}
    kept, times, floor = Ratio(**model["share_kept"]), Ratio(**model["times_floor"]), model["to_floor"]
    text = f"{name} knows them by {model['origin']}: {label(METRIC)} {means[WITHHELD]:.4f}"
    if kept.value is not None:
        text += f", {kept.value:.0%} ({_interval(kept, '.0%')}) of the {means[TRAINED]:.4f} when it is trained on them"
    text += f"; {signed(floor)} against the floor of {means[FLOOR]:.4f}"
    if floor["low"] <= 0 <= floor["high"]:
        return f"{text}, so no difference to it was shown."
    return (
        f"{text}." if times.value is None else f"{text}: {times.value:.1f} times as much ({_interval(times, '.1f')})."
    )


def _interval(ratio: Ratio, form: str) -> str:
    low, high = ("no bound" if end is None else format(end, form) for end in (ratio.low, ratio.high))
    return f"{low} to {high}"


def title_of(content: Content) -> str:
    """Return the title of the table."""
    return (
        f"{content['num_withheld_items']:,} withheld items, {content['num_users']:,} users, {content['protocol']}, "
        f"{SPLIT_NAMES[content['split']]}, {label(METRIC)}, seed {content['seed']}; {CONFIDENCE:.0%} intervals"
    )


def rows_of(content: Content) -> list[list[str]]:
    """Return the cells of the table, a row for each model."""
    rows = []
    for name, model in content["models"].items():
        means = {row: f"{values[METRIC]:.4f}" for row, values in model["means"].items()}
        kept, times = (_ratio(model["share_kept"], ".0%"), _ratio(model["times_floor"], ".1f"))
        rows.append([name, means[TRAINED], means[WITHHELD], kept, means[FLOOR], times, signed(model["to_floor"])])
    return rows


def _ratio(values: Content, form: str) -> str:
    ratio = Ratio(**values)
    return "-" if ratio.value is None else f"{ratio.value:{form}} ({_interval(ratio, form)})"


def _markdown(content: Content) -> str:
    sentences = "\n".join(f"- {sentence}" for sentence in content["sentences"])
    return f"# Cold items\n\n{title_of(content)}.\n\n{markdown_table(COLUMNS, rows_of(content))}\n\n{sentences}\n"
