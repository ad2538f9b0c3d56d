"""Variants of the distillation, each with several seeds, after one teacher that all share."""

from pathlib import Path
from typing import Any

from slmrec.config import Config, DistillConfig
from slmrec.config.load import vary
from slmrec.errors import CheckpointError, ConfigError
from slmrec.pipeline.stage import run_step
from slmrec.pipeline.table import stage_named, steps
from slmrec.studies.ablation import report
from slmrec.studies.evaluated import read_evaluated

SHARED = ("prepare", "pretrain", "finetune")
BASE = "base"
Variants = dict[str, dict[str, Any]]
"""By name, the settings that differ from the recipe."""


def ablate(config: Config, output: Path, force: bool = False) -> None:
    """Distils and evaluates every variant with every seed, and reports them beside the baseline.

    What is done is skipped. A cell `OUT/VARIANT/seedN` is a run like any other, whose first stages are links to those
    of `OUT/base`.

    Args:
        config: the recipe, with its `ablate` section.
        output: folder of the ablation.
        force: redo what is done.

    Raises:
        ConfigError: a variant does not go together with the recipe.
    """
    settings = config.ablate
    variants = default_variants(config.distill) if settings.variants is None else settings.variants
    variants = {settings.baseline: variants[settings.baseline], **variants}  # the baseline is first, here and in tables
    recipes = _recipes(config, variants)
    base = output / BASE
    needed = {step.stage.name for recipe in recipes.values() for step in steps(recipe)}
    for name in SHARED:
        for step in stage_named(name).steps(config) if name in needed else ():
            run_step(step, config, base, force)
    cells = [(name, seed) for name in variants for seed in settings.seeds]
    for number, (name, seed) in enumerate(cells, 1):
        print(f"ablate: {name} with seed {seed} ({number} of {len(cells)})", flush=True)
        _run_cell(_cell_config(recipes[name], seed, base), output / name / f"seed{seed}", base, force)
    found = {
        name: {seed: read_evaluated(output / name / f"seed{seed}", "student") for seed in settings.seeds}
        for name in variants
    }
    report(output, variants, found, settings.baseline)


def default_variants(distill: DistillConfig) -> Variants:
    """The recipe, without each of its terms, with cross-entropy alone, and in the other mode.

    Source: SLMRec, the ablation of its losses.
    """
    terms = {name: weight for name, weight in distill.weights.model_dump().items() if weight and name != "ce"}
    off = {name: _off(distill, name) for name in terms}
    variants: Variants = {"full": {}}
    if distill.weights.ce or len(terms) > 1:
        variants |= {f"no_{name}": changes for name, changes in off.items()}
    if distill.weights.ce and len(terms) > 1:
        variants["ce_alone"] = {key: value for changes in off.values() for key, value in changes.items()}
    if distill.mode == "online":
        return variants | {"offline": {"distill.mode": "offline"}}
    return variants | {"online": {"distill.mode": "online"}}


def _off(distill: DistillConfig, term: str) -> dict[str, Any]:
    """Leaves a term out, and with it the setting that belongs to it."""
    off: dict[str, Any] = {f"distill.weights.{term}": 0.0}
    if term == "kl" and distill.kl_temperature != 1:
        off["distill.kl_temperature"] = 1.0
    return off


def _recipes(config: Config, variants: Variants) -> dict[str, Config]:
    """The recipe of each variant; all faults are told before anything is run."""
    recipes, faults = {}, []
    for name, changes in variants.items():
        try:
            recipes[name] = vary(config, changes, f"ablate.variants.{name}")
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("; ".join(faults))
    return recipes


def _cell_config(recipe: Config, seed: int, base: Path) -> Config:
    changes: dict[str, Any] = {"seed": seed, "evaluate.models": ["student"]}
    return vary(recipe, changes, "ablate")


def _run_cell(config: Config, cell: Path, base: Path, force: bool) -> None:
    cell.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if (base / name).exists():
            link_stage(cell / name, Path("..", "..", BASE, name))
    for step in (*stage_named("distill").steps(config), *stage_named("evaluate").steps(config)):
        run_step(step, config, cell, force, cache=base / "teacher_outputs")


def link_stage(place: Path, target: Path) -> None:
    """A stage's folder by a relative link, so that the whole can be moved.

    Raises:
        CheckpointError: something else is in its place.
    """
    if place.is_symlink() and place.readlink() == target:
        return
    if place.exists() or place.is_symlink():
        raise CheckpointError(f"{place} is in the way of a link to {target}; move it, or choose another --output")
    place.symlink_to(target)
