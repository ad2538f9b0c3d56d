"""Results of the study of language: a question for each control, answered for all users, slices and cold items."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmrec.evaluation.metrics import Floats
from slmrec.evaluation.statistics import CONFIDENCE, compare_means, holm
from slmrec.files import write_json, write_text
from slmrec.studies import ablation
from slmrec.studies.ablation import METRIC, Cells
from slmrec.studies.cold_report import FEW_USERS, FLOOR, WITHHELD, Values
from slmrec.studies.compare import numbers
from slmrec.studies.evaluated import SPLIT_NAMES, Evaluated, Split, in_order_of, label
from slmrec.studies.language.questions import Question, questions
from slmrec.studies.language.variants import FULL, Rows, differences
from slmrec.studies.slices import slice_means, slices_of
from slmrec.studies.tables import markdown_table, show_sentences, show_table, signed

_LOG = logging.getLogger(__name__)
SEED_NOISE = 0.0015
"""Difference of NDCG@10 that another seed alone can make; a smaller one is not taken for an effect with one seed.

Source: docs/results.md, students of three seeds on Beauty. The largest standard deviation over the seeds is 0.0009, so
that of the difference between two seeds is 0.0013, which is rounded up.
"""
COLUMNS = ("question", "users", "model", "with", "without", "difference", "interval", "p (Holm)")
ALL, COLD = "all users", "cold items"
Content = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Evaluations of all rows."""

    teachers: Cells
    """Evaluations of the teacher, by row and seed."""
    students: Cells
    """Evaluations of the student, by row and seed."""
    cold: dict[str, Values]
    """Values of the users whose target is withheld, by row."""


def report(folder: Path, rows: Rows, results: Results, split: Split) -> None:
    """Write `language.json` and `language.md`, the table of all teachers as an ablation, and show the answers.

    Args:
        folder: `OUT/language`.
        rows: Rows of the study.
        results: Their evaluations.
        split: Split on which they are compared.
    """
    first = next(iter(results.teachers[FULL].values()))
    answers = [_answer(question, results, first) for question in questions(rows)]
    corrected = holm([one["slices"][ALL]["p_value"] for one in answers])
    for answer, p_value in zip(answers, corrected, strict=True):
        answer["slices"][ALL]["p_holm"] = p_value
        answer["verdict"] = _verdict(answer["slices"][ALL], len(results.teachers[FULL]))
        answer["sentence"] = _sentence(answer)
    content: Content = {
        "split": split,
        "protocol": first.protocol,
        "num_users": len(first),
        "seeds": list(results.teachers[FULL]),
        "compared_metric": METRIC,
        "confidence": CONFIDENCE,
        "seed_noise": SEED_NOISE,
        "rows": {row.name: row.about for row in rows.rows},
        "questions": answers,
        "slices": dict(_slices(results, first)),
        "cold": {name: _cold_means(values) for name, values in results.cold.items()},
    }
    write_json(folder / "language.json", content)
    base = next(row.config for row in rows.rows if row.name == FULL)
    changes = {name: differences(base, row.config) for row in rows.rows if (name := row.name) in results.teachers}
    ablation.report(folder, changes, results.teachers, FULL)
    write_text(folder / "language.md", _markdown(content))
    show_table(_title(content), COLUMNS, _cells(content))
    show_sentences(answer["sentence"] for answer in answers)
    _LOG.info("ablate: written to %s and %s", folder / "language.md", folder / "language.json")


def _answer(question: Question, results: Results, first: Evaluated) -> Content:
    """Return the comparison of two rows over all users, in slices, and on cold items."""
    cells = {"teacher": results.teachers, "student": results.students}
    control = _mean_over_seeds(cells[question.control_model][question.control], first)
    treated = _mean_over_seeds(cells[question.model][question.row], first)
    slices = {ALL: numbers(compare_means(control, treated), None)}
    for by, own in slices_of(first).items():
        for name, users in own:
            compared = compare_means(control[users], treated[users])
            slices[f"{by} {name}"] = numbers(compared, None)
    cold = [results.cold.get(name, {}).get(model) for name, model in question.sides()]
    if all(values is not None for values in cold):
        before, after = (values[WITHHELD] for values in cold if values is not None)
        slices[COLD] = numbers(compare_means(before, after), None)
    return {**question._asdict(), "slices": slices}


def _mean_over_seeds(cells: dict[int, Evaluated], first: Evaluated) -> Floats:
    """Return the value of each user (num_users,), averaged over the seeds, in the order of the first evaluation."""
    means: Floats = np.mean([in_order_of(first, cell).metrics[METRIC] for cell in cells.values()], axis=0)
    return means


def _verdict(result: Content, num_seeds: int) -> str:
    """Return `gain`, `loss`, or `not shown`."""
    is_noise = num_seeds == 1 and abs(result["difference"]) < SEED_NOISE
    if is_noise or result["low"] <= 0 <= result["high"]:
        return "not shown"
    return "gain" if result["difference"] > 0 else "loss"


def _sentence(answer: Content) -> str:
    result = answer["slices"][ALL]
    words = {"gain": answer["gain"], "loss": answer["loss"], "not shown": answer["none"]}
    text = (
        f"{words[answer['verdict']]}: {label(METRIC)} {result['mean_b']:.4f} {answer['with_it']}, "
        f"{result['mean_a']:.4f} {answer['without_it']}, a difference of {signed(result)}."
    )
    parts = {
        "rare targets (1-4 training events)": "target_count 1-4 (rare)",
        "short histories (1-5 items)": "history_length 1-5 (short)",
        COLD: COLD,
    }
    shown = [
        f"{title} {signed(part)}{', with few users' if part['num_users'] < FEW_USERS else ''}"
        for title, name in parts.items()
        if (part := answer["slices"].get(name))
    ]
    return f"{text} On {'; on '.join(shown)}." if shown else text


def _slices(results: Results, first: Evaluated) -> Iterator[tuple[str, Content]]:
    """Yield the mean of each slice, with its interval, for every row and model."""
    for model, cells in (("teacher", results.teachers), ("student", results.students)):
        for name, own in cells.items():
            means = slice_means(first, _mean_over_seeds(own, first))
            yield f"{model} of {name}", {by: [one._asdict() for one in parts] for by, parts in means.items()}


def _cold_means(values: Values) -> Content:
    return {
        model: {row: float(one.mean()) for row, one in own.items()} | {"num_users": len(own[WITHHELD])}
        for model, own in values.items()
    }


def _title(content: Content) -> str:
    seeds = ", ".join(map(str, content["seeds"]))
    return (
        f"{content['num_users']:,} users, {content['protocol']}, {SPLIT_NAMES[content['split']]}, {label(METRIC)}, "
        f"seeds {seeds}; {CONFIDENCE:.0%} intervals over users"
    )


def _cells(content: Content) -> list[list[str]]:
    """Return the cells of the table of questions, a row for each question and slice."""
    cells = []
    for answer in content["questions"]:
        for name, result in answer["slices"].items():
            is_all = name == ALL
            p_value = f"{result['p_holm']:.4f}" if is_all else ""
            low_high = f"{result['low']:+.4f} to {result['high']:+.4f}"
            means = f"{result['mean_b']:.4f}", f"{result['mean_a']:.4f}"
            title = f"{answer['title']}: {answer['verdict']}" if is_all else ""
            users = f"{name.replace('target_count', 'target').replace('history_length', 'history')}"
            number = f"{users}, {result['num_users']:,}"
            cells.append([title, number, answer["model"], *means, f"{result['difference']:+.4f}", low_high, p_value])
    return cells


def _markdown(content: Content) -> str:
    sentences = "\n".join(f"- {answer['sentence']}" for answer in content["questions"])
    rows = "\n".join(f"- `{name}`: {about}" for name, about in content["rows"].items())
    names = [one["name"] for one in content["slices"][f"teacher of {FULL}"]["target_count"]]
    names += [one["name"] for one in content["slices"][f"teacher of {FULL}"]["history_length"]]
    slices = [
        [name, *(f"{one['mean']:.4f} ({one['low']:.4f} to {one['high']:.4f})" for own in by.values() for one in own)]
        for name, by in content["slices"].items()
    ]
    cold = [
        [f"{model} of {name}", *(f"{means[row]:.4f}" for row in ("trained", WITHHELD, FLOOR))]
        for name, own in content["cold"].items()
        for model, means in own.items()
    ]
    parts = [
        f"# Does language pay here?\n\n{_title(content)}.\n\n{sentences}\n\n{_caution(content)}",
        f"## Questions\n\n{markdown_table(COLUMNS, _cells(content))}",
        f"## Slices\n\n{markdown_table(['model', *names], slices)}",
    ]
    if cold:
        table = markdown_table(["model", "trained on everything", "withheld", "floor"], cold)
        parts.append(f"## Cold items\n\n{table}")
    return "\n\n".join([*parts, f"## Rows\n\n{rows}\n\n`ablation.md` has the teachers of all rows.\n"])


def _caution(content: Content) -> str:
    if len(content["seeds"]) > 1:
        return "Values of a user are means over the seeds; the intervals cover the users, not the seeds."
    return (
        f"One seed: another seed alone can move {label(METRIC)} by about {SEED_NOISE}, so that a smaller difference is "
        "reported as not shown, whatever its interval over the users. `ablate.seeds=[42, 1, 2]` trains three."
    )
