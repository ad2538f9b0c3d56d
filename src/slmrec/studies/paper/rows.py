"""Rows of the study of the paper: models that are compared, each with the configuration that trains it."""

from dataclasses import dataclass
from math import gcd
from typing import Any

from slmrec.config import Config, DistillConfig, DistillWeights
from slmrec.config.load import vary
from slmrec.errors import ConfigError
from slmrec.models.backbone import read_architecture

SASREC, TEACHER, STUDENT, SHALLOW = "sasrec", "teacher", "student", "shallow"
FULL_DEPTH, FROM_FULL_DEPTH = "full_depth", "student_of_full_depth"
CE, COSINE, NORM, KL, ONLINE, UNTUNED, TIES = "ce", "cosine", "norm", "kl", "online", "untuned", "ties"
TEACHER_MULTIPLE, STUDENT_OF_MULTIPLE, BLOCK_KL = "teacher_multiple", "student_of_multiple", "block_kl"
FILE_ORDER = "file_order"
NO_STUDENT = {"student": {"kind": "sasrec"}, "weights": {"ce": 1, "cosine": 0, "norm": 0, "multiple": 0}}
"""Section `distill` that is valid for every teacher, for rows that train no student."""
Changes = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One model of the study."""

    name: str
    about: str
    """Description, such as `teacher of 8 layers`."""
    model: str
    """Model of the run that the row is about: the base model, `teacher` or `student`."""
    config: Config
    of_all_seeds: bool = False
    """True for the rows of the main table; others are trained with the first seed."""


@dataclass(frozen=True)
class Claim:
    """Comparison of two rows that a claim of the paper is about."""

    question: str
    row: str
    baseline: str


CLAIMS = (
    Claim("the LLM recommender of 8 layers is ahead of SASRec", TEACHER, SASREC),
    Claim("all layers are hardly better than 8", FULL_DEPTH, TEACHER),
    Claim("8 layers are better than 4", TEACHER, SHALLOW),
    Claim("the distilled student is ahead of a model of its depth without teacher", STUDENT, SHALLOW),
    Claim("the distilled student is ahead of the same student by cross-entropy alone", STUDENT, CE),
    Claim("the student is as good as its teacher", STUDENT, TEACHER),
    Claim("a teacher of all layers teaches worse than one of 8", FROM_FULL_DEPTH, STUDENT),
    Claim("the cosine loss helps", COSINE, CE),
    Claim("the norm loss helps", NORM, COSINE),
    Claim("multiple supervision helps", STUDENT, NORM),
    Claim("KL of the scores helps", KL, STUDENT),
    Claim("multiple supervision of the teacher helps it", TEACHER_MULTIPLE, TEACHER),
    Claim("multiple supervision of the teacher helps its student", STUDENT_OF_MULTIPLE, STUDENT),
    Claim("KL of the scores at all blocks helps", BLOCK_KL, STUDENT_OF_MULTIPLE),
    Claim("online distillation is better than offline", ONLINE, STUDENT),
    Claim("a student from untuned layers is as good as one from tuned layers", UNTUNED, STUDENT),
    Claim("ties counted as hits lift the figures", TIES, STUDENT),
    Claim("the order of the file lifts the figures", FILE_ORDER, STUDENT),
)
"""Claims of the paper, and likely reasons for differences to it; those whose rows exist are answered."""


def check_recipe(config: Config) -> None:
    """Refuse recipes that are not the paper's experiment.

    Raises:
        ConfigError: The recipe has no ID model, decoder or student of layers, or mixes base models.
    """
    faults = {
        "distill.teacher is not finetune, whose teachers the study trains; leave it out": not config.trains_teacher,
        "finetune.backbone is null, so there is no teacher; name a backbone": config.finetune.backbone is None,
        "finetune.item_vectors names no base model, so there is no SASRec to compare with; name one of pretrain": (
            config.base_model_of_teacher is None
        ),
        "finetune.ensemble mixes base models into the teacher, which the paper does not; leave it out": bool(
            config.finetune.ensemble
        ),
        f"distill.student.kind is {config.distill.student.kind!r}; the paper's student is a decoder": (
            config.distill.student.kind != "decoder"
        ),
        "distill.mode is online, which is a row of its own; leave it out": config.distill.mode == "online",
    }
    for fault, is_there in faults.items():
        if is_there:
            raise ConfigError(f"ablate --what paper: {fault}")


def rate_rows(config: Config, model: str, rates: tuple[float, ...]) -> dict[float, Row]:
    """Return a row for each learning rate of the teacher or of the student."""
    section = "finetune" if model == TEACHER else "distill"
    changes: Changes = {} if model == STUDENT else {"distill": NO_STUDENT}
    return {
        rate: _row(
            config,
            f"{model}_{rate:g}",
            f"{model} with a learning rate of {rate:g}",
            model,
            {f"{section}.train.learning_rate": rate, **changes},
        )
        for rate in rates
    }


def paper_rows(config: Config, full_depth_steps: int) -> list[Row]:
    """Return the rows of the study: those of the main table first, then the others from cheap to dear."""
    finetune, distill = config.finetune, config.distill
    depth, own_depth = _depth(config), distill.student.depth
    teacher_depth = finetune.num_layers if finetune.layers is None else len(finetune.layers)
    whole = {"finetune.layers": None, "finetune.layer_step": 1, "finetune.num_layers": depth}
    whole["finetune.train.max_steps"] = full_depth_steps
    alone: Changes = {"distill": NO_STUDENT}
    shallow = {"finetune.layers": None, "finetune.layer_step": 1, "finetune.num_layers": own_depth}
    id_model = config.base_model_of_teacher or SASREC
    rows = [
        _row(config, SASREC, "SASRec", id_model, {"finetune": {}, "distill": {"teacher": None}}, True),
        _row(config, SHALLOW, f"{own_depth} layers, no teacher", TEACHER, shallow | alone, True),
        _row(config, TEACHER, f"{teacher_depth} layers, the teacher", TEACHER, alone, True),
        _row(config, STUDENT, f"{own_depth} layers, distilled from {teacher_depth}", STUDENT, {}, True),
        *_rows_of_terms(config),
        *_rows_of_block_heads(config, gcd(teacher_depth, own_depth), alone),
        _row(config, TIES, "the student, ties counted as hits", STUDENT, {"evaluate.ties": "as_hits"}),
        _row(config, ONLINE, "teacher and student trained together", STUDENT, {"distill.mode": "online"}),
    ]
    if finetune.backbone != "random":
        untuned: Changes = {"distill.student.init": "pretrained"}
        rows.append(_row(config, UNTUNED, "the student from untuned layers", STUDENT, untuned))
    if _can_reorder(config):
        changes = {"prepare.order": "file", "prepare.tie_col": None}
        rows.append(_row(config, FILE_ORDER, "the student, events in the order of the file", STUDENT, changes))
    if depth > teacher_depth:
        steps = f"all {depth} layers, {full_depth_steps:,} steps"
        rows.append(_row(config, FULL_DEPTH, steps, TEACHER, whole | alone))
        changed = whole | _blocks(distill, gcd(depth, own_depth))
        rows.append(_row(config, FROM_FULL_DEPTH, f"{own_depth} layers, distilled from {depth}", STUDENT, changed))
    return rows


def _rows_of_terms(config: Config) -> list[Row]:
    """Return the student by cross-entropy, then with each term added; the recipe with all of them is another row."""
    own, names = config.distill.weights, ("ce", "cosine", "norm")
    values = {name: getattr(own, name) or DistillWeights.model_fields[name].default for name in names}
    without = dict.fromkeys(own.model_dump(), 0.0)
    rows, changed = [], dict(without)
    for name, words in zip(
        names, ("cross-entropy alone", "cross-entropy, cosine", "cross-entropy, cosine, norm"), strict=True
    ):
        changed = {**changed, name: values[name]}
        blocks = {"distill.num_blocks": DistillConfig.model_fields["num_blocks"].default} if name == "ce" else {}
        rows.append(_row(config, name, f"the student by {words}", STUDENT, {"distill.weights": changed, **blocks}))
    changes = {"distill.weights.kl": 1.0}
    return [*rows, _row(config, KL, "the student by the recipe and KL", STUDENT, changes)]


def _rows_of_block_heads(config: Config, common: int, alone: Changes) -> list[Row]:
    """Return the rows of a teacher with multiple supervision, whose heads KL at the blocks reads.

    Args:
        config: The recipe; with multiple supervision of its teacher, all rows have it, and there is no row without.
        common: Number that divides the depths of teacher and student.
        alone: Settings of a row without student.
    """
    blocks = _num_blocks(config.distill, common)
    if blocks == 1:
        return []
    weight = config.distill.weights.multiple or DistillWeights.model_fields["multiple"].default
    teacher: Changes = {"finetune.num_blocks": blocks}
    teacher["finetune.weights.multiple"] = config.finetune.weights.multiple or weight
    kl = {"distill.weights.multiple": weight, "distill.weights.kl": 1.0, "distill.weights.block_kl": 1.0}
    all_blocks = teacher | kl | {"distill.num_blocks": blocks}
    rows = [_row(config, BLOCK_KL, "the student by the recipe and KL at all blocks", STUDENT, all_blocks)]
    if not config.finetune.weights.multiple:
        about = "the student of the teacher with multiple supervision"
        rows.insert(0, _row(config, STUDENT_OF_MULTIPLE, about, STUDENT, teacher))
        rows.insert(0, _row(config, TEACHER_MULTIPLE, "the teacher, multiple supervision", TEACHER, teacher | alone))
    return rows


def _can_reorder(config: Config) -> bool:
    """Return whether the settings allow the order of the file; whether the log has times is known once it is read."""
    reads_times = any(getattr(model, "time_gaps", False) for model in config.pretrain.values())
    prepare = config.prepare
    return (
        prepare.order == "time" and prepare.split == "leave_one_out" and prepare.engine == "duckdb" and not reads_times
    )


def _num_blocks(distill: DistillConfig, common: int) -> int:
    """Return the largest number of blocks, up to that of the recipe, that divides a number."""
    return max(number for number in range(1, distill.num_blocks + 1) if common % number == 0)


def _blocks(distill: DistillConfig, common: int) -> Changes:
    """Return the settings of `_num_blocks`."""
    blocks = _num_blocks(distill, common)
    changes: Changes = {"distill.num_blocks": blocks}
    return changes | ({"distill.weights.multiple": 0.0} if blocks == 1 else {})


def _depth(config: Config) -> int:
    """Return the number of layers of the whole backbone."""
    finetune = config.finetune
    architecture = finetune.backbone_config or read_architecture(str(finetune.backbone), "finetune.backbone")
    return int(architecture["num_hidden_layers"])


def _row(config: Config, name: str, about: str, model: str, changes: Changes, of_all_seeds: bool = False) -> Row:
    changed = vary(config, {**changes, "evaluate.models": [model]}, f"ablate --what paper, row {name}")
    return Row(name, about, model, changed, of_all_seeds)
