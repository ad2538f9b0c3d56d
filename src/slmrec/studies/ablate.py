"""Ablation of the distillation: variants of the student, each with several seeds, from one shared teacher."""

import logging
import os
from pathlib import Path
from typing import Any

from slmrec.config import Config, DistillConfig, Section
from slmrec.config.load import vary
from slmrec.config.studies import DISTILLATION_SEEDS
from slmrec.errors import CheckpointError, ConfigError
from slmrec.pipeline.stage import run_step
from slmrec.pipeline.table import Step, stage_named, steps
from slmrec.studies.ablation import report
from slmrec.studies.evaluated import Split, read_evaluated

_LOG = logging.getLogger(__name__)
BASE = "base"
"""Folder of the steps that all variants share."""
OWN_STAGES = ("distill", "evaluate")
"""Stages that each cell runs itself."""
Variants = dict[str, dict[str, Any]]
"""Settings that differ from the recipe, by the name of the variant."""


def ablate(config: Config, output: Path, force: bool = False, split: Split = "valid") -> None:
    """Distil and evaluate every variant with every seed, and compare the variants with the baseline.

    Finished steps are skipped. A cell `OUT/VARIANT/seedN` is a run like any other; its earlier steps are links to those
    of `OUT/base`.

    Args:
        config: The recipe, with its section `ablate`.
        output: Folder of the ablation.
        force: Redo finished steps.
        split: Split on which the variants are compared; `test` ranks the items of both splits.

    Raises:
        ConfigError: A variant contradicts the recipe.
    """
    settings = config.ablate
    variants = default_variants(config.distill) if settings.variants is None else settings.variants
    variants = {settings.baseline: variants[settings.baseline], **variants}  # the baseline is first in all tables
    recipes = _recipes(config, variants)
    shared = _shared_steps(recipes)
    for step in shared:
        run_step(step, config, output / BASE, force)
    seeds = settings.seeds or DISTILLATION_SEEDS
    cells = [(name, seed) for name in variants for seed in seeds]
    for number, (name, seed) in enumerate(cells, 1):
        _LOG.info("ablate: %s with seed %d (%d of %d)", name, seed, number, len(cells))
        cell = _cell_config(recipes[name], seed, split)
        _run_cell(cell, output / name / f"seed{seed}", output / BASE, shared, force)
    results = {
        name: {seed: read_evaluated(output / name / f"seed{seed}", "student", split=split) for seed in seeds}
        for name in variants
    }
    report(output, variants, results, settings.baseline)


def default_variants(distill: DistillConfig) -> Variants:
    """Return the recipe, the recipe without each of its terms, with cross-entropy alone, and in the other mode.

    Source: SLMRec, the ablation of its losses.

    Example:
        >>> list(default_variants(DistillConfig()))[:2]
        ['full', 'no_cosine']
    """
    terms = [name for name, weight in distill.weights.model_dump().items() if weight and name != "ce"]
    variants: Variants = {"full": {}}
    if distill.weights.ce or len(terms) > 1:
        both = ["multiple", "block_kl"] if distill.weights.block_kl else ["multiple"]  # which reads its heads
        variants |= {f"no_{name}": _without(distill, both if name == "multiple" else [name]) for name in terms}
    if distill.weights.ce and len(terms) > 1:
        variants["ce_alone"] = _without(distill, terms)
    other_mode = "offline" if distill.mode == "online" else "online"
    return variants | {other_mode: {"distill.mode": other_mode}}


def _without(distill: DistillConfig, terms: list[str]) -> dict[str, Any]:
    """Return the settings that switch off some terms; settings that have no effect without them get their default."""
    changes: dict[str, Any] = {f"distill.weights.{term}": 0.0 for term in terms}
    weights = distill.weights.model_copy(update=dict.fromkeys(terms, 0.0))
    effects = {
        "kl_temperature": weights.kl + weights.stratified_kl + weights.block_kl > 0,
        "kl_top_k": weights.kl > 0,
        "num_popularity_groups": weights.stratified_kl > 0,
        "lists": weights.lists > 0,
        "list_weights": weights.lists > 0,
        "num_blocks": weights.needs_states,
    }
    for name, has_effect in effects.items():
        default = DistillConfig.model_fields[name].default
        if not has_effect and getattr(distill, name) != default:
            changes[f"distill.{name}"] = {} if isinstance(default, Section) else default
    return changes


def _recipes(config: Config, variants: Variants) -> dict[str, Config]:
    """Return the configuration of each variant; the faults of all variants are reported together."""
    recipes, faults = {}, []
    for name, changes in variants.items():
        try:
            recipes[name] = vary(config, changes, f"ablate.variants.{name}")
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("; ".join(faults))
    return recipes


def _shared_steps(recipes: dict[str, Config]) -> list[Step]:
    """Return the steps before the student that at least one variant needs, in order."""
    needed = {step.folder: step for recipe in recipes.values() for step in steps(recipe)}
    return [step for step in needed.values() if step.stage.name not in OWN_STAGES]


def _cell_config(recipe: Config, seed: int, split: Split) -> Config:
    splits = ["valid"] if split == "valid" else ["test", "valid"]
    changes = {"seed": seed, "evaluate.models": ["student"], "evaluate.splits": splits}
    return vary(recipe, changes, "ablate")


def _run_cell(config: Config, cell: Path, base: Path, shared: list[Step], force: bool) -> None:
    for step in shared:
        link_step(cell, base, step)
    for name in OWN_STAGES:
        for step in stage_named(name).steps(config):
            run_step(step, config, cell, force, cache=base / "teacher_outputs")


def link_step(run: Path, source: Path, step: Step) -> None:
    """Link the folder of a step to that of another run, by a relative path, so that both can be moved together.

    Args:
        run: Run that gets the link.
        source: Run that has the folder.
        step: The step.

    Raises:
        CheckpointError: The place of the link is taken.
    """
    place = run / step.folder
    place.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.relpath(source / step.folder, place.parent))
    if place.is_symlink() and place.readlink() == target:
        return
    if place.exists() or place.is_symlink():
        raise CheckpointError(f"{place} is in the way of a link to {target}; move it, or choose another --output")
    place.symlink_to(target)
